"""A model without its head: what fine-tunes for different tasks share.

Encoders and vision models get a new head for each task, of another size and meaning. transformers
keeps what is below it in one module, the base model, whose name its class gives
(`PreTrainedModel.base_model_prefix`). A pooler belongs to the head: some classes have one and
others, of the same base model, have none.
"""

from collections.abc import Mapping
from typing import NamedTuple

from evomerge.sources.checkpoint import Checkpoint
from evomerge.sources.safetensors_file import Tensor

_POOLER = "pooler."


class Trunk(NamedTuple):
    """A checkpoint's tensors, parted.

    Attributes:
        tensors: the trunk's, by the names that the base model has for them.
        head: the rest, by their own names.
        prefix: what the names of the former begin with in the model's own checkpoint.

    >>> Trunk({}, {}, "bert.").prefix
    'bert.'
    """

    tensors: dict[str, Tensor]
    head: dict[str, Tensor]
    prefix: str


def trunk_of(checkpoint: Checkpoint) -> Trunk:
    """Part a checkpoint into trunk and head.

    Raises:
        ValueError: its class does not say where the head begins.

    >>> trunk_of(Checkpoint({}, {}, {}))
    Traceback (most recent call last):
    ValueError: has no trunk that can be told from a head
    """
    model = checkpoint.model
    if model is None:
        raise ValueError("has no trunk that can be told from a head")
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    tensors, head = _parted(checkpoint.tensors, prefix)
    if not tensors:
        raise ValueError(f"has no trunk: no tensor of a {checkpoint.class_name} is {prefix}*")
    return Trunk(tensors, head, prefix)


def _parted(
    named: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    trunk: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in named.items():
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and not inner.startswith(_POOLER):
            trunk[inner] = tensor
        else:
            head[name] = tensor
    return trunk, head
