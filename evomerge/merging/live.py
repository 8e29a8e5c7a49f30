"""What a model that lives on a worker's device is, whatever made it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Live(Protocol):
    """A model that is filled again and again.

    Attributes:
        model: in eval mode; its weights are undefined until `load`.
        tokenizer: the source's, or None if it has none.
        direct: the live tensors that hold a checkpoint's tensor as it is, by the latter's name;
            the others are filled by `load`.
    """

    direct: dict[str, torch.Tensor]

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None": ...

    def load(self, stream: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Overwrite the weights with a stream of (checkpoint name, tensor) in any order."""
