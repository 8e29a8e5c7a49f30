"""Each task's head on the one trunk that lives: models that share its memory."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from evomerge.errors import BadInput, Fault
from evomerge.merging.source_weights import read_stored
from evomerge.sources.model_class import class_of
from evomerge.sources.opened import Source
from evomerge.sources.transformers_loading import conversions, initialize_rest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Heads(Mapping[str, "PreTrainedModel"]):
    """The sources' models by their labels: each with its own head, all with the live trunk.

    A model is made when it is first asked for, and takes the memory of its head. Whatever the live
    trunk becomes, they are of it.

    >>> len(Heads(torch.nn.Linear(1, 1), {}))
    0
    """

    def __init__(self, live: torch.nn.Module, sources: Mapping[str, Source]):
        """
        Args:
            live: a transformers model, whose trunk is filled.
            sources: label -> source, all of which the live model's trunk fits.
        """
        self._live, self._sources = live, dict(sources)
        self._made: dict[str, PreTrainedModel] = {}

    def __getitem__(self, label: str) -> "PreTrainedModel":
        if label not in self._made:
            self._made[label] = _with_head(self._live, self._sources[label])
        return self._made[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


@torch.inference_mode(False)
@torch.no_grad()
def _with_head(live: "torch.nn.Module", source: Source) -> "PreTrainedModel":
    """Return a source's model with its own head and the live model's trunk.

    Raises:
        BadInput: a tensor of its trunk is none of the live model's.
    """
    theirs: dict[str, torch.Tensor] = {}
    theirs |= dict(live.named_parameters(remove_duplicate=False))
    theirs |= dict(live.named_buffers(remove_duplicate=False))
    device, dtype = next(iter(theirs.values())).device, live.dtype
    class_, config = class_of(source.config, source.path, False)
    with torch.device("meta"):
        model: PreTrainedModel = class_._from_config(config, dtype=dtype)
    ours, mine = conversions(live, source.tensors), conversions(model, source.tensors)  # type: ignore[arg-type]
    for name in source.tensors:
        if ours[name].target not in theirs or mine[name].converter is not None:
            wrong = f"'{source.name}': {name} of its trunk has no place in the live model"
            raise BadInput(Fault("", wrong, "merge models of one architecture"))
        _put(model, mine[name].target, theirs[ours[name].target])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            memory = torch.empty_like(tensor, device=device)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            _put(model, name, torch.nn.Parameter(memory, False) if is_parameter else memory)
    model.tie_weights()
    model.eval().requires_grad_(False)
    state = model.state_dict(keep_vars=True)
    heads = conversions(model, source.carried)
    filled = [state[mine[name].target] for name in source.tensors]
    filled += [state[conversion.target] for conversion in heads.values()]
    initialize_rest(model, filled)
    for name, conversion in heads.items():
        state[conversion.target].copy_(read_stored(source.carried[name]))
    model.name_or_path = str(source.path)
    return model


def _put(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Let a model have another tensor in the place of one of its own."""
    place, _, leaf = name.rpartition(".")
    module = model.get_submodule(place)
    held = module._parameters if leaf in module._parameters else module._buffers
    held[leaf] = tensor  # type: ignore[assignment]
