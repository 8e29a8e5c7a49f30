"""Adam's second moments at the end of a training, by the names of a checkpoint's tensors.

The Trainer of transformers saves an optimizer's state without names: by numbers, which count the
parameters that decay in the model's order, and then those that do not. It is read by torch's
restricted loader, which builds tensors and plain values and runs nothing.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from evomerge.errors import BadInput, Fault, one_line
from evomerge.merging.live_model import Live
from evomerge.sources.source import Source

_MEND = "write the optimizer.pt of this model's full training by the Trainer, or a .safetensors"


def adam_moments(file: Path, source: Source, live: Callable[[], Live]) -> dict[str, torch.Tensor]:
    """Return `exp_avg_sq` (Kingma and Ba 2015, arXiv:1412.6980: v) by tensors' names.

    Args:
        file: a safetensors file by names, or an optimizer's state.
        source: whose tensors they are; of as many rows as it has itself.
        live: gives a model like it, whose parameters' order numbers an optimizer's state.

    Raises:
        BadInput: it is no such state, or not of this model.

    >>> adam_moments(Path("nowhere.pt"), Source("a", Path("a"), {}, {}, {}), lambda: None)
    Traceback (most recent call last):
    evomerge.errors.BadInput: moments: 'nowhere.pt' cannot be read (...
    """
    own = (source.unaligned or source).tensors
    if file.suffix == ".safetensors":
        held = load_file(file)
        named = {source.prefix + name: name for name in own} | {name: name for name in own}
        return {named[key]: moment for key, moment in held.items() if key in named}
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:  # torch advises to run what it holds
        wrong = f"'{file}' holds more than tensors and plain values, and is not read"
        raise BadInput(Fault("moments", wrong, _MEND)) from None
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        wrong = f"'{file}' cannot be read ({one_line(error)})"
        raise BadInput(Fault("moments", wrong, _MEND)) from None
    numbered = _numbered(file, state)
    model = live()
    names = _trained_order(model)
    if len(names) != len(numbered):
        wrong = f"'{file}' has moments of {len(numbered)} parameters, and the model {len(names)}"
        raise BadInput(Fault("moments", wrong, _MEND))
    moments = {}
    for name, moment in zip(names, numbered, strict=True):
        if name and tuple(moment.shape) != tuple(own[name].shape):
            wrong = f"'{file}': {name} is {tuple(moment.shape)} there, and"
            wrong += f" {own[name].shape} in the model"
            raise BadInput(Fault("moments", wrong, _MEND))
        if name:
            moments[name] = moment
    return moments


def with_rows(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor with as many rows as a merge has: without its last, or with zeros.

    >>> with_rows(torch.ones(3, 2), (4, 2)).sum(1)
    tensor([2., 2., 2., 0.])
    """
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    fitting = torch.zeros(shape, dtype=tensor.dtype)
    rows = min(len(tensor), shape[0])
    fitting[:rows] = tensor[:rows]
    return fitting


def _numbered(file: Path, state: Any) -> list[torch.Tensor]:
    """Return the moments in the order of the optimizer's parameters."""
    try:
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        moments = [state["state"][number]["exp_avg_sq"] for number in numbers]
    except (KeyError, TypeError, IndexError):
        moments = []
    if not moments or not all(isinstance(moment, torch.Tensor) for moment in moments):
        wrong = f"'{file}' has no second moments of Adam"
        raise BadInput(Fault("moments", wrong, _MEND))
    return moments


def _trained_order(live: Live) -> list[str]:
    """Return the checkpoint's names of a model's parameters, as the Trainer's optimizer has them.

    Those of which a checkpoint's tensor is only a part are "".
    """
    from transformers import Trainer

    trainer: Any = None  # of which the rule needs nothing
    decayed = set(Trainer.get_decay_parameter_names(trainer, live.model))
    stored = {tensor.data_ptr(): name for name, tensor in live.direct.items()}
    both: Mapping[bool, list[str]] = {True: [], False: []}
    for name, parameter in live.model.named_parameters():
        both[name in decayed].append(stored.get(parameter.data_ptr(), ""))
    return both[True] + both[False]
