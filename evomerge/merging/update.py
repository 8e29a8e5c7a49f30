"""What a LoRA adapter adds to a weight: the factors of a product, and never the product."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Update(NamedTuple):
    """What is added to one weight: scale * left @ right (arXiv:2106.09685, section 4.1).

    Attributes:
        left: B, (out, rank) float32 or float64.
        right: A, (rank, in), of the same dtype.
        scale: of the product.

    >>> import torch
    >>> Update(torch.ones(2, 1), torch.tensor([[1.0, 3.0]]), 0.5).rank
    1
    """

    left: "torch.Tensor"
    right: "torch.Tensor"
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """The inner dimension; 0 of what adds nothing."""
        return len(self.right)
