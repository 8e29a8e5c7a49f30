"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) in PEFT's format, by their headers.

A low-rank update stays two factors: W + scale * B A is made when a tensor is asked for. What PEFT
would make of a base otherwise is refused: factors that were taken out of the base's weights when
training began, and a change of embeddings from which the head is to stay apart.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, Fault, one_line
from evomerge.sources.checkpoint import Checkpoint, same_numbers
from evomerge.sources.safetensors_file import Tensor, read_header, read_json

_PREFIX = "base_model.model."

_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
# What changes the update's formula in a way that is not built here: key -> values that do not.
_PLAIN: dict[str, tuple[str | bool | None, ...]] = {
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "alora_invocation_tokens": (None,),
    "layer_replication": (None,),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "trainable_token_indices": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}

# Beginnings that take the first factors out of the base's weights, which are then others: PiSSA
# (arXiv:2404.02948), OLoRA (arXiv:2406.01775), CorDA (arXiv:2406.05223), LoftQ (arXiv:2310.08659)
# and LoRA-GA (arXiv:2407.05000); PEFT 0.21 writes "pissa_niter_4" and the like too.
_OUT_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LowRank(NamedTuple):
    """What an adapter adds to one weight: scale * B A.

    Attributes:
        a: (rank, in).
        b: (out, rank).
        scale: of the product.
        transposed: whether the weight is (in, out), and so takes the product's transpose.
        module: of the weight, as PEFT calls it in the whole model.

    >>> a = Tensor("F32", (4, 16), Path("adapter_model.safetensors"), "lora_A", 0, 256)
    >>> b = Tensor("F32", (32, 4), Path("adapter_model.safetensors"), "lora_B", 256, 768)
    >>> LowRank(a, b, 2.0, False).scale
    2.0
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool
    module: str = ""

    @property
    def is_embedding(self) -> bool:
        """Whether it adds to embeddings, of which PEFT names the factors otherwise."""
        return self.a.key.endswith(_FACTORS[2])


@dataclass(frozen=True)
class Adapter:
    """An opened adapter.

    Attributes:
        path: its directory.
        factors: tensor name -> what it adds there.
        replaced: tensor name -> what it puts in the tensor's place.
        notes: what a user should know of it, one line each.

    >>> Adapter(Path("lora"), {}, {}).tensors
    []
    """

    path: Path
    factors: dict[str, LowRank]
    replaced: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[tuple[str, Tensor]]:
        """Every stored tensor with a label that says what it is for."""
        labelled = [(f"{name} replaced", tensor) for name, tensor in sorted(self.replaced.items())]
        for name, pair in sorted(self.factors.items()):
            label = f"{name} {pair.scale!r} {pair.transposed}"
            labelled += [(f"{label} A", pair.a), (f"{label} B", pair.b)]
        return labelled


def open_adapter(path: Path, checkpoint: Checkpoint, model: str = "") -> Adapter:
    """Open a PEFT directory that holds a LoRA adapter of a model.

    Args:
        path: with adapter_config.json and adapter_model.safetensors.
        checkpoint: of the model that it is put on.
        model: what the user wrote for it.

    Raises:
        BadInput: it is no such directory, or does not fit the model.

    >>> open_adapter(Path("nowhere"), Checkpoint({}, {}, {}))
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere: adapter_config.json is missing or not JSON; save the \
adapter with PEFT
    """
    try:
        return _read_adapter(path, checkpoint, model)
    except ValueError as error:
        wrong = str(error)
    except (AttributeError, TypeError, re.error) as error:  # of what adapter_config.json says
        wrong = one_line(error)
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
    raise BadInput(Fault("", f"{path}: {wrong}", "save the adapter with PEFT"))


def _read_adapter(path: Path, checkpoint: Checkpoint, base: str) -> Adapter:
    config = read_json(path / "adapter_config.json")
    if not isinstance(config, dict):
        raise ValueError("adapter_config.json is missing or not JSON")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"is an adapter of type {config.get('peft_type')!r}, not LORA")
    _refuse_other_beginnings(path, config)
    for key, values in _PLAIN.items():
        if config.get(key) not in values:
            raise ValueError(f"{key} = {config[key]!r} in adapter_config.json is not supported")
    weights = path / "adapter_model.safetensors"
    if not weights.exists():
        pickled = (path / "adapter_model.bin").exists()
        raise ValueError("holds pickled weights only" if pickled else "holds no weights")
    model = checkpoint.tensors
    pairs: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, str] = {}  # as PEFT calls them
    replaced: dict[str, dict[str, Tensor]] = {}  # by the name here, then by the one it has there
    for key, tensor in read_header(weights).items():
        if tensor.dtype not in STORED_DTYPES:
            raise ValueError(f"tensor {key} has dtype {tensor.dtype}, which is not merged")
        if not key.startswith(_PREFIX):
            raise ValueError(f"tensor {key} does not begin with {_PREFIX}")
        name = key.removeprefix(_PREFIX)
        ending = next((ending for ending in _FACTORS if name.endswith(ending)), None)
        if ending is None:
            name = name.replace(".modules_to_save.default", "").replace(".base_layer", "")
            known = checkpoint.name_of(name) or name
            if known not in model or model[known].shape != tensor.shape:
                raise ValueError(_misfit(name, tensor.shape, model))
            replaced.setdefault(known, {})[name] = tensor
        elif name.removesuffix(ending).endswith(".base_layer"):
            wrong = "target_parameters in adapter_config.json: several of one module"
            raise ValueError(f"{wrong} are not supported")
        else:
            name = name.removesuffix(ending) + ".weight"
            known = checkpoint.name_of(name) or name
            pairs.setdefault(known, {})[ending] = tensor
            modules[known] = checkpoint.module_of(known, name.removesuffix(".weight"))
    if not pairs and not replaced:
        raise ValueError("holds no tensors")
    for name in pairs:
        if checkpoint.is_tied(name):
            raise ValueError(_tied(name))
    instead = {}
    for name, given in replaced.items():
        first, *others = given.values()
        agree = all(same_numbers(first, other) for other in others)
        if checkpoint.is_tied(name):
            # the head has the same numbers only if it is there as well, or nothing is changed
            agree = agree and (bool(others) or same_numbers(first, model[name]))
        if not agree:
            raise ValueError(_tied(name))
        instead[name] = first
    factors = {}
    for name, pair in pairs.items():
        transposed = checkpoint.is_transposed(name, bool(config.get("fan_in_fan_out")))
        low_rank = _low_rank(name, pair, config, model, modules[name], transposed)
        factors[name] = low_rank._replace(module=checkpoint.whole_module_of(name, modules[name]))
    return Adapter(path, factors, instead, _notes(path, config, base))


def _refuse_other_beginnings(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse an adapter whose base is no longer what the base's directory holds.

    Raises:
        BadInput: it is one.
    """
    beginning = str(config.get("init_lora_weights", True)).lower()
    if not beginning.startswith(_OUT_OF_THE_BASE):
        return
    wrong = f"{path}: init_lora_weights = {beginning!r}: PEFT takes the first factors out of the"
    wrong += " base's weights before it adds these"
    mend = "save it as a plain LoRA (save_pretrained(path_initial_model_for_weight_conversion=...))"
    mend += ", or merge it into its base with PEFT (merge_and_unload) and take that model"
    raise BadInput(Fault("", wrong, mend))


def _tied(name: str) -> str:
    return (
        f"changes {name}, which the model has as its head too, and PEFT leaves the head as it was"
    )


def _notes(path: Path, config: Mapping[str, Any], base: str) -> tuple[str, ...]:
    """Return a note if an adapter says that it was trained on another model than it is put on."""
    said = config.get("base_model_name_or_path")
    if not base or not isinstance(said, str) or not said:
        return ()
    name = base.partition("@")[0]
    same_folder = Path(said).resolve() == Path(base).resolve()
    # .../models--org--name/snapshots/HASH is org/name
    in_cache = f"models--{said.replace('/', '--')}" in Path(base).parts
    if said == name or same_folder or in_cache or Path(said).name == Path(name).name:
        return ()
    return (f"'{path}': the adapter was trained on '{said}' by its own word, not on '{base}'",)


def _low_rank(
    name: str,
    pair: Mapping[str, Tensor],
    config: Mapping[str, Any],
    model: Mapping[str, Tensor],
    module: str,
    transposed: bool,
) -> LowRank:
    embedding = ".lora_embedding_A" in pair or ".lora_embedding_B" in pair
    endings = _FACTORS[2:] if embedding else _FACTORS[:2]
    if set(pair) != set(endings):
        raise ValueError(f"has one factor of {name} only")
    a, b = (pair[ending] for ending in endings)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise ValueError(f"the factors of {name} are {a.shape} and {b.shape}: no matrices")
    # embeddings are looked up by row, and some linear layers (GPT-2's) store (in, out)
    transposed = embedding or transposed
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    if name not in model or model[name].shape != shape:
        raise ValueError(_misfit(name, shape, model))
    return LowRank(a, b, _scale(module, a.shape[0], config), transposed)


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):  # regular expressions, as PEFT reads them
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"lora_alpha = {alpha!r} in adapter_config.json is no number")
    if config.get("use_rslora"):
        return alpha / math.sqrt(rank)  # rank-stabilized LoRA, arXiv:2312.03732, theorem 3.2
    return alpha / rank  # arXiv:2106.09685, section 4.1


def _misfit(name: str, shape: tuple[int, ...], model: Mapping[str, Tensor]) -> str:
    expected = model[name].shape if name in model else "missing"
    return f"does not fit the model: {name} is {shape}, and {expected} in the model"
