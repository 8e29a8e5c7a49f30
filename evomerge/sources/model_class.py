"""The model that transformers makes of a config, and what it asks of a checkpoint.

A checkpoint is not the model: it may hold tensors that the model's class has no use for (masks,
value heads), or hold the same ones under other names (with or without the base model's prefix, an
older layout of a vision-language model, a tied head under the head's name). What transformers would
load is asked of an empty model of the class, on the meta device, where no number takes memory.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import one_line
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.transformers_loading import (
    Conversion,
    conversions,
    converted,
    decoded,
    ignored_patterns,
    optional_patterns,
    saved_names,
    tied_names,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What a model of no stranger has more of takes a while to make, even of no numbers.
_MOST_PARTS = 10_000

_PARTS = re.compile(r"layer|expert|block|depth|head")  # keys of configs that count modules


class ClassOf(NamedTuple):
    """A transformers model's class by its config.

    Attributes:
        model: the class.
        config: as transformers reads it.

    >>> class_of({"model_type": "llama"}, Path("a"), False).config.model_type
    'llama'
    """

    model: "type[PreTrainedModel]"
    config: "PreTrainedConfig"


def is_known(config: Mapping[str, Any]) -> bool:
    """Tell whether transformers itself knows a config's model type, so that it runs no other code.

    >>> is_known({"model_type": "llama", "auto_map": {}}), is_known({"model_type": "own"})
    (True, False)
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def class_of(config: Mapping[str, Any], path: Path, remote_code: bool) -> ClassOf:
    """Return the class that transformers has for a config, or that comes with the model.

    That which `architectures` names, where transformers has it; else that which speaks.

    Args:
        config: what config.json says.
        path: the model's directory.
        remote_code: import code that comes with the model, where transformers knows no such type.

    Raises:
        ValueError: there is none.

    >>> class_of({"model_type": "gpt2"}, Path("gpt2"), False).model.__name__
    'GPT2LMHeadModel'
    >>> class_of({"model_type": "own"}, Path("own"), False)
    Traceback (most recent call last):
    ValueError: transformers ... does not know the model type 'own'
    """
    import transformers

    refuse_absurd(config)
    if not is_known(config):
        if not remote_code:
            version, kind = transformers.__version__, config.get("model_type")
            raise ValueError(f"transformers {version} does not know the model type {kind!r}")
        return _remote_class(config, path)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = CONFIG_MAPPING[config["model_type"]].from_dict(decoded(config))
    named = [n for n in config.get("architectures") or () if isinstance(n, str)]
    for name in named:
        model = getattr(transformers, name, None)
        if not isinstance(model, type) or not issubclass(model, transformers.PreTrainedModel):
            continue
        if model.config_class is type(settings):
            return ClassOf(model, settings)
    for auto in _speaking_first():
        if type(settings) in auto._model_mapping:
            model = auto._model_mapping[type(settings)]
            return ClassOf(model[0] if isinstance(model, tuple) else model, settings)
    raise ValueError(f"transformers has no model of the type {config['model_type']!r}")


def _speaking_first() -> Iterable[Any]:
    """Return transformers' auto classes: those that give text, then all that are left."""
    import transformers

    return (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModel,
    )


def _remote_class(config: Mapping[str, Any], path: Path) -> ClassOf:
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    listed = config.get("auto_map") or {}
    for auto in ("AutoModelForCausalLM", "AutoModel", *sorted(listed)):
        if auto in listed and auto.startswith("AutoModel"):
            settings = AutoConfig.from_pretrained(path, trust_remote_code=True)
            return ClassOf(get_class_from_dynamic_module(listed[auto], str(path)), settings)
    raise ValueError("config.json has code of its own, but no model in it")


def refuse_absurd(config: Any, key: str = "") -> None:
    """Raise ValueError where a config asks for so many modules that making them would not end.

    Args:
        config: or a part of it.
        key: of that part.

    >>> refuse_absurd({"num_layers": 10**9})
    Traceback (most recent call last):
    ValueError: config.json says num_layers = 1000000000
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            refuse_absurd(value, str(name))
    elif isinstance(config, int) and config > _MOST_PARTS and _counts_parts(key):
        raise ValueError(f"config.json says {key} = {config}")


def _counts_parts(key: str) -> bool:
    return bool(_PARTS.search(key)) and not re.search(r"dim|size|token|width", key)


def speaks(class_name: str) -> bool:
    """Tell whether a model gives text; of a class that came with the model it is believed.

    >>> speaks("LlamaForCausalLM"), speaks("T5ForConditionalGeneration"), speaks("BertModel")
    (True, True, False)
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    mappings = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    if any(class_name in names.values() for names in mappings):
        return True
    return not hasattr(transformers, class_name)


def empty_model(config: Mapping[str, Any], path: Path, remote_code: bool) -> "PreTrainedModel":
    """Return a config's model on the meta device; the same object for equal configs.

    Args:
        config, path, remote_code: see `class_of`.

    Raises:
        ValueError: there is no such class, or it does not take the config.

    >>> model = empty_model({"model_type": "gpt2", "n_layer": 1}, Path("gpt2"), False)
    >>> model.device, len(model.state_dict())
    (device(type='meta'), 17)
    """
    place = "" if is_known(config) else str(path)  # elsewhere other code may lie
    try:
        text = json.dumps(config, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.json makes no sense ({one_line(error)})") from None
    return _empty_model(text, place, remote_code)


@functools.lru_cache(maxsize=8)
def _empty_model(text: str, path: str, remote_code: bool) -> "PreTrainedModel":
    import torch

    try:
        model, config = class_of(json.loads(text), Path(path), remote_code)
        with torch.device("meta"):
            made: PreTrainedModel = model._from_config(config, dtype=torch.float32)
    except ValueError:
        raise
    except Exception as error:  # of a config that is no such model's: any kind
        raise ValueError(f"config.json makes no model ({one_line(error)})") from None
    return made


@dataclass(frozen=True)
class Layout:
    """What a model takes of a checkpoint.

    Attributes:
        names: stored name -> the name under which the tensor is known here, of those it takes.
        copies: stored name -> the known name of a tensor that it repeats.
        unused: stored names that the class has no use for.
        in_memory: the model's own name -> the known one, of tensors that are stored as they are.
        wrong: why the model cannot be filled; "" if it can.

    >>> Layout(names={"wte.weight": "transformer.wte.weight"}).unused
    ()
    """

    names: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    in_memory: dict[str, str] = field(default_factory=dict)
    wrong: str = ""


def layout_of(model: "PreTrainedModel", stored: Mapping[str, Tensor]) -> Layout:
    """Return what a model takes of a checkpoint's tensors, and under which names.

    A name that `save_pretrained` would write stays; another one for the same tensor becomes that.

    Args:
        model: on the meta device.
        stored: the checkpoint's tensors by name.

    >>> model = empty_model({"model_type": "gpt2", "n_layer": 1}, Path("gpt2"), False)
    >>> shapes = {n: tuple(t.shape) for n, t in model.state_dict().items() if n != "lm_head.weight"}
    >>> here = Path("model.safetensors")
    >>> stored = {n.removeprefix("transformer."): Tensor("F32", s, here, n, 0, 0)
    ...           for n, s in shapes.items()}
    >>> layout = layout_of(model, stored)
    >>> layout.names["wte.weight"], layout.wrong
    ('transformer.wte.weight', '')
    """
    state, tied = model.state_dict(), tied_names(model)
    found = conversions(model, stored)
    usual = [name for name in saved_names(model) if name not in tied]
    home = {}  # the model's own name -> the one that is saved
    for name, conversion in conversions(model, usual).items():
        if conversion.converter is None and conversion.target not in tied:
            home[conversion.target] = name
    known, unused = set(usual), []
    taken: set[str] = set()
    names: dict[str, str] = {}
    copies: dict[str, str] = {}
    for name in stored:
        conversion = found[name]
        target = tied.get(conversion.target, conversion.target)
        if conversion.target not in state and not conversion.splits:
            unused.append(name)
            continue
        as_it_is = conversion.converter is None
        ours = home.get(target, name) if as_it_is and name not in known else name
        if ours in taken:
            copies[name] = ours
        else:
            names[name] = ours
            taken.add(ours)
    # of several stored names for one tensor, that which is saved is the one that is read
    for name, ours in list(copies.items()):
        if name == ours:
            other = next(n for n, o in names.items() if o == ours)
            del names[other], copies[name]
            names[name], copies[other] = ours, ours
    in_memory = {}
    for name, ours in names.items():
        conversion = found[name]
        if conversion.converter is None:
            in_memory[tied.get(conversion.target, conversion.target)] = ours
    read = {name: found[name] for name in names}
    wrong = _what_is_wrong(model, stored, read, tied, state)
    return Layout(names, copies, tuple(unused), in_memory, wrong)


def _what_is_wrong(
    model: "PreTrainedModel",
    stored: Mapping[str, Tensor],
    taken: Mapping[str, Conversion],
    tied: Mapping[str, str],
    state: Mapping[str, Any],
) -> str:
    """Return what the model misses in a checkpoint, or what has not the model's shape; "" if none.

    Args:
        model: on the meta device.
        stored: the checkpoint's tensors by name.
        taken: what becomes of those that it takes.
        tied: names of the model's that are others.
        state: the model's.
    """
    filled: dict[str, tuple[int, ...]] = {}
    waiting: dict[str, list[tuple[str, Conversion, Any]]] = {}
    for name, conversion in taken.items():
        if conversion.converter is None:
            target = tied.get(conversion.target, conversion.target)
            filled[target] = stored[name].shape
        else:
            part = (name, conversion, _empty(stored[name]))
            waiting.setdefault(conversion.target, []).append(part)
    for target, parts in waiting.items():
        try:
            for name, made in converted(model, parts).items():
                filled[tied.get(name, name)] = tuple(made.shape)
        except Exception as error:  # transformers' own code, which raises what it likes
            return f"{target} cannot be made of its tensors ({one_line(error)})"
    optional = optional_patterns(model)
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for name in dict.fromkeys(tied.get(name, name) for name in parameters):
        if name not in filled and not any(re.search(pattern, name) for pattern in optional):
            return f"{name} is missing"
    for name, shape in filled.items():
        if name in state and tuple(state[name].shape) != shape:
            return f"{name} is {shape}, and {tuple(state[name].shape)} by config.json"
    return ""


def _empty(tensor: Tensor) -> Any:
    """Return a tensor of no numbers with the shape of a stored one."""
    import torch

    dtype = getattr(torch, STORED_DTYPES.get(tensor.dtype, "float32"))
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def is_ignored(model: "PreTrainedModel", name: str) -> bool:
    """Tell whether a class says itself that it passes over a tensor of this name in silence.

    >>> model = empty_model({"model_type": "gpt2", "n_layer": 1}, Path("gpt2"), False)
    >>> is_ignored(model, "v_head.weight")
    False
    """
    return any(re.search(pattern, name) for pattern in ignored_patterns(model))
