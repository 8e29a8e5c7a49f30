"""What a method that prepares task vectors sees of them, and what it gives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from evomerge.kernels.signs import Signs
    from evomerge.merging.observations import LinearInputs
    from evomerge.merging.replayed_inputs import Replay


class TaskVectorsView(Protocol):
    """What a `prepare` sees of the task vectors, tensor by tensor.

    Attributes:
        names: of the tensors, in canonical order.
        count: models.
        size: elements of one whole task vector.
    """

    names: Sequence[str]
    count: int
    size: int

    def base(self, name: str) -> "torch.Tensor":
        """Return W_0 in float32."""

    def of(self, name: str) -> "list[torch.Tensor]":
        """Return every model's tau of one tensor, in float32."""

    def one(self, i: int, name: str) -> "torch.Tensor":
        """Return one model's tau of one tensor, in float32."""

    def kth_largest(self, make: Callable[[str], "torch.Tensor"], k: int) -> float:
        """Return the k-th largest magnitude of what `make` gives for all tensors together."""

    def inputs(self, name: str) -> "LinearInputs | None":
        """Return what each model's linear layer took in; only where the method `reads` "inputs"."""

    def curvature(self, name: str) -> "list[torch.Tensor] | None":
        """Return each model's diagonal curvature; only where the method `reads` "curvature"."""

    def replay(self, merged: "Mapping[str, torch.Tensor]") -> "Replay":
        """Begin to read layer by layer behind what is merged; only where it `reads` "texts"."""


# (tensor's name, one direction a model), of every tensor in the order of `names`; a direction that
# is signs of one size is yielded as `Signs`, and kept as a bit or two an element
Directions = Iterator[tuple[str, "Sequence[torch.Tensor | Signs]"]]
