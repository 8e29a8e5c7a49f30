"""A checkpoint as the model that it fills has it: its tensors under one set of names.

What transformers would do with a directory on loading it is done here by headers: other names for
the same tensors, tied ones that are stored twice or under the head's name alone, tensors that the
class has no use for, and settings of a quantization that the weights no longer have.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, Fault
from evomerge.sources.model_class import Layout, empty_model, is_ignored, layout_of
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.transformers_loading import conversions, tied_names
from evomerge.tensor_names import place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAVE = "save it again with save_pretrained"

_CHUNK = 1 << 24  # bytes compared at once

_LISTED = 3  # names in a note


@dataclass(frozen=True)
class Checkpoint:
    """What a model takes of a directory.

    Attributes:
        config: what config.json says, as far as it is true of the weights.
        tensors: the weights by the names that transformers would save.
        carried: tensors of integers that the model keeps.
        class_name: of the model.
        notes: what a user should know, one line each.
        model: empty, of the class.
        layout: of the stored names.

    >>> Checkpoint({}, {}, {}).name_of("lm_head.weight") is None
    True
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    carried: dict[str, Tensor]
    class_name: str = ""
    notes: tuple[str, ...] = ()
    model: "PreTrainedModel | None" = None
    layout: Layout = field(default_factory=Layout)

    def name_of(self, name: str) -> str | None:
        """Return the known name of a tensor by any that it has: stored, saved, or in memory."""
        if name in self.tensors:
            return name
        if name in self.layout.names:
            return self.layout.names[name]
        if name in self.layout.in_memory:
            return self.layout.in_memory[name]
        if self.model is None:
            return None
        own = conversions(self.model, [name])[name].target
        return self.layout.in_memory.get(tied_names(self.model).get(own, own))

    def module_of(self, name: str, stored: str) -> str:
        """Return what PEFT calls the module of a weight: as the model has it in memory.

        Args:
            name: the known one of the weight.
            stored: the module's in the adapter's file, which is that of a part of the model if
                the adapter was trained on the part.
        """
        own = self._own(name)
        if own is None or f".{own}".endswith(f".{stored}.weight"):
            return stored
        return own.removesuffix(".weight")

    def whole_module_of(self, name: str, otherwise: str) -> str:
        """Return the module of a weight in the whole model in memory; `otherwise` of no model."""
        own = self._own(name)
        return otherwise if own is None else own.removesuffix(".weight")

    def is_transposed(self, name: str, said: bool) -> bool:
        """Tell whether a weight is (in, out), as of GPT-2's layers; `said` where it is unknown."""
        from transformers.pytorch_utils import Conv1D

        own = self._own(name)
        if self.model is None or own is None:
            return said
        return isinstance(self.model.get_submodule(own.removesuffix(".weight")), Conv1D)

    def _own(self, name: str) -> str | None:
        return self._own_names.get(name)

    @functools.cached_property
    def _own_names(self) -> dict[str, str]:
        return {ours: own for own, ours in self.layout.in_memory.items()}

    def is_tied(self, name: str) -> bool:
        """Tell whether a tensor, by its known name, is another one of the model's too."""
        if self.model is None:
            return False
        sources = set(tied_names(self.model).values())
        return any(self.layout.in_memory.get(own) == name for own in sources)


def read_checkpoint(
    path: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor], remote_code: bool
) -> Checkpoint:
    """Return what the model of a config takes of a directory's tensors.

    Args:
        path: the directory.
        config: what its config.json says.
        stored: its tensors by name.
        remote_code: import code that comes with the model, where transformers knows no such type.

    Raises:
        BadInput: transformers has no such model, or the tensors do not fill it.

    >>> import json, tempfile
    >>> from evomerge.sources.safetensors_file import read_header
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = tiny_llama(folder, seed=0)
    ...     config = json.loads((path / "config.json").read_text())
    ...     stored = read_header(path / "model.safetensors")
    ...     checkpoint = read_checkpoint(path, config, stored, False)
    >>> checkpoint.class_name, len(checkpoint.tensors)
    ('LlamaForCausalLM', 20)
    """
    settings = {key: value for key, value in config.items() if key != "quantization_config"}
    was_quantized = len(settings) < len(config)
    try:
        model = empty_model(settings, path, remote_code)
        layout = layout_of(model, stored)
        if _differing(layout, stored) and tied_names(model):
            # as transformers does: what is stored twice and differs is not tied
            settings = _untied(settings)
            model = empty_model(settings, path, remote_code)
            layout = layout_of(model, stored)
    except ValueError as error:
        mend = "write a Hugging Face model directory of a type that it knows"
        raise BadInput(Fault("", f"{path}: {error}", mend)) from None
    if differing := _differing(layout, stored):
        wrong = f"{differing[0]} and {differing[1]} are one tensor, and differ"
        raise BadInput(Fault("", f"{path}: {wrong}", _SAVE))
    tensors, carried = _by_dtype(path, model, layout, stored, was_quantized)
    if layout.wrong:
        wrong = f"does not fill a {type(model).__name__}: {layout.wrong}"
        if was_quantized:
            wrong = "holds quantized weights, which are not merged"
        raise BadInput(Fault("", f"{path}: {wrong}", _mend(was_quantized)))
    name = type(model).__name__
    notes = []
    heads = [n for n in layout.unused if place(n).part == "head"]
    if heads and model.base_model is model:
        wrong = f"{path}: a {name}, by its architectures, has no use for {heads[0]}"
        mend = "write the class with a head, e.g. of kind ForCausalLM, into config.json"
        raise BadInput(Fault("", wrong, mend))
    unused = [n for n in layout.unused if not is_ignored(model, n)]
    if unused:
        listed = ", ".join(unused[:_LISTED]) + (", ..." if len(unused) > _LISTED else "")
        tensors_are = "1 tensor" if len(unused) == 1 else f"{len(unused)} tensors"
        notes.append(f"'{path}': a {name} has no use for {tensors_are}, left out: {listed}")
    if was_quantized:
        notes.append(f"'{path}': its weights are whole, so its quantization_config is left out")
    return Checkpoint(settings, tensors, carried, name, tuple(notes), model, layout)


def _mend(was_quantized: bool) -> str:
    return "dequantize it (model.dequantize()) and save it again" if was_quantized else _SAVE


def _differing(layout: Layout, stored: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return two stored names of one tensor that hold different numbers, if there are any."""
    read = {ours: name for name, ours in layout.names.items()}
    for name, ours in layout.copies.items():
        if not same_numbers(stored[name], stored[read[ours]]):
            return name, read[ours]
    return None


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Tell whether two stored tensors are the same to the last bit.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "numbers"
    ...     _ = file.write_bytes(bytes(8))
    ...     same_numbers(*(Tensor("F32", (1,), file, "", at, at + 4) for at in (0, 4)))
    True
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if not (one.file.exists() and other.file.exists()):  # on the hub still: told once it is here
        return True
    with open(one.file, "rb") as first, open(other.file, "rb") as second:
        first.seek(one.begin)
        second.seek(other.begin)
        left = one.bytes
        while left:
            size = min(_CHUNK, left)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config whose head is no copy of the embeddings, nor is that of a part of it."""
    untied: dict[str, Any] = {"tie_word_embeddings": False}
    for key, value in config.items():
        if isinstance(value, Mapping) and value.get("tie_word_embeddings"):
            untied[key] = {**value, "tie_word_embeddings": False}
    return {**config, **untied}


def _by_dtype(
    path: Path,
    model: "PreTrainedModel",
    layout: Layout,
    stored: Mapping[str, Tensor],
    was_quantized: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part the tensors that a model takes into weights and integers that it keeps, by name.

    Raises:
        BadInput: a weight is stored in a dtype that is not merged.
    """
    own_name = {ours: own for own, ours in layout.in_memory.items()}
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    carried: dict[str, Tensor] = {}
    for name, ours in layout.names.items():
        tensor = stored[name]
        own = own_name.get(ours)
        if tensor.dtype in STORED_DTYPES:
            tensors[ours] = tensor
        elif own in state and not state[own].dtype.is_floating_point:
            carried[ours] = tensor
        else:
            wrong = f"{path}: tensor {name} has dtype {tensor.dtype}, which is not merged"
            mend = f"save the model as one of {', '.join(STORED_DTYPES.values())}"
            raise BadInput(Fault("", wrong, _mend(True) if was_quantized else mend))
    return tensors, carried
