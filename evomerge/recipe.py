"""Recipe: the frozen, JSON-able, complete description of one merged model. Outcome: what
became of it.

A recipe's id is the sha256 of its canonical JSON with each model replaced by the hash of
its content, so the same merge has the same id wherever its sources lie.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.errors import BadInput, Checks, Fault
from evomerge.layout import PARTS, Place

VERSION = 1
_LARGEST = sys.float_info.max  # JSON knows longer integers, and NaN
DTYPES = ("bfloat16", "float16", "float32", "float64")
_KEYS = {"version", "kind", "models", "base", "dtype", "seed", "method", "options", "groups"}


@dataclass(frozen=True)
class Group:
    """The coefficients of the tensors in `layers` whose name contains `modules`.

    `layers` is (first, last + 1), "embed", "norm", "head", or None for every tensor;
    `modules` is a substring, or None for every name. `values` maps a parameter of the
    method to a float, or to a tuple with one float per model. `method` is that of the group,
    where it is not the recipe's.
    """

    layers: tuple[int, int] | str | None
    modules: str | None
    values: Mapping[str, float | tuple[float, ...]]
    method: str | None = None

    def holds(self, name: str, where: Place) -> bool:
        if self.modules is not None and self.modules not in name:
            return False
        if self.layers is None:
            return True
        if isinstance(self.layers, str):
            return where.part == self.layers
        return where.layer is not None and self.layers[0] <= where.layer < self.layers[1]


@dataclass(frozen=True)
class Recipe:
    """One merged model of kind `parameters`: a method and its coefficients by group.

    `models` and `base` name sources (a directory, or a hub id with or without @revision). A
    tensor takes the values of the first group that holds it. `seed` is there only if the
    method draws.
    """

    method: str
    models: tuple[str, ...]
    groups: tuple[Group, ...]
    base: str | None = None
    dtype: str = "bfloat16"
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "parameters"

    def to_json(self) -> dict:
        """Return the recipe as JSON-able data; `from_json` reads it back, equal."""
        data = {
            "version": VERSION,
            "kind": self.kind,
            "method": self.method,
            "models": list(self.models),
            "base": self.base,
            "dtype": self.dtype,
            "options": dict(self.options),
            "groups": [_group_to_json(g) for g in self.groups],
        }
        return data | ({} if self.seed is None else {"seed": self.seed})

    @property
    def methods(self) -> tuple[str, ...]:
        """The distinct methods of its groups, in their order."""
        return tuple(dict.fromkeys(group.method or self.method for group in self.groups))

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct sources it reads, the base first."""
        named = ((self.base,) if self.base else ()) + self.models
        return tuple(dict.fromkeys(named))

    def id(self, hashes: Mapping[str, str]) -> str:
        """Return the recipe's id, 64 hex digits.

        Args:
            hashes: the content hash of each of `sources`.
        """
        data = self.to_json()
        data["models"] = [hashes[m] for m in self.models]
        data["base"] = hashes[self.base] if self.base else None
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def canonical_json(data: Any) -> str:
    """Return `data` as JSON with sorted keys, no spaces, no NaN and no negative zero."""
    return json.dumps(_positive_zeros(data), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _positive_zeros(data: Any) -> Any:
    if isinstance(data, float):
        return data + 0.0  # -0.0 + 0.0 is 0.0
    if isinstance(data, Mapping):
        return {k: _positive_zeros(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_positive_zeros(v) for v in data]
    return data


def _group_to_json(group: Group) -> dict:
    layers = list(group.layers) if isinstance(group.layers, tuple) else group.layers
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in group.values.items()}
    own = {} if group.method is None else {"method": group.method}
    return {"layers": layers, "modules": group.modules, **own, **_positive_zeros(values)}


def from_json(data: Any, file: str = "recipe") -> Any:
    """Read a recipe of any kind back from its JSON.

    Args:
        data: what `json.load` gave.
        file: the name that faults carry.

    Raises:
        BadInput: with every fault of form. Whether the method knows the parameters and the
            sources exist is for `methods.check_methods` to say.
    """
    if not isinstance(data, dict):
        raise BadInput(Fault(file, "", "a recipe is a JSON object", "see the README"))
    if data.get("kind") == "mixture":
        from evomerge.mixture import mixture_from_json  # which needs this module

        return mixture_from_json(data, file)
    if data.get("kind") == "explicit":
        from evomerge.lineage import explicit_from_json

        return explicit_from_json(data, file)
    if data.get("kind") == "routing":
        from evomerge.routing import routing_from_json

        return routing_from_json(data, file)
    checks = Checks(data, _KEYS, file)
    need, faults = checks.need, checks.faults
    models, base = data.get("models"), data.get("base")
    need("version", data.get("version") == VERSION, f"write {VERSION}")
    need("kind", data.get("kind") == "parameters", "write parameters, mixture, explicit or routing")
    need("method", isinstance(data.get("method"), str), "write the name of a merge method")
    need("models", _texts(models) and bool(models), "write a list of model directories or hub ids")
    need(
        "base",
        base is None or (isinstance(base, str) and base != ""),
        "write a model directory, hub id or null",
    )
    need("dtype", data.get("dtype") in DTYPES, f"write one of {', '.join(DTYPES)}")
    seed = data.get("seed")
    need("seed", seed is None or _whole(seed), "write a whole number of at least 0")
    need("options", isinstance(data.get("options", {}), dict), "write a mapping")
    need("groups", isinstance(data.get("groups"), list) and bool(data["groups"]), "write a list")
    if faults:
        raise BadInput(*faults)
    groups = []
    for index, entry in enumerate(data["groups"]):
        try:
            groups.append(_group_from_json(entry))
        except ValueError as error:
            faults.append(Fault(file, f"groups.{index}", str(error)))
    if faults:
        raise BadInput(*faults)
    return Recipe(
        data["method"],
        tuple(models),
        tuple(groups),
        base,
        data["dtype"],
        seed,
        data.get("options", {}),
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _group_from_json(entry: Any) -> Group:
    if not isinstance(entry, dict) or not {"layers", "modules"} <= set(entry):
        raise ValueError("a group is an object with layers, modules and the method's values")
    layers, modules = entry["layers"], entry["modules"]
    if isinstance(layers, list):
        if len(layers) != 2 or not all(map(_whole, layers)) or layers[0] >= layers[1]:
            raise ValueError(f"layers {layers!r} is not [first, last + 1]")
        layers = tuple(layers)
    elif layers is not None and layers not in PARTS:
        raise ValueError(f"layers {layers!r} is not [first, last + 1], {', '.join(PARTS)} or null")
    if modules is not None and not (isinstance(modules, str) and modules):
        raise ValueError(f"modules {modules!r} is not a substring of tensor names, or null")
    method = entry.get("method")
    if method is not None and not isinstance(method, str):
        raise ValueError(f"method {method!r} is not the name of a merge method")
    known = ("layers", "modules", "method")
    values = {k: _value(k, v) for k, v in entry.items() if k not in known}
    return Group(layers, modules, values, method)


def _value(key: str, value: Any) -> float | tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    for n in numbers:
        number = isinstance(n, int | float) and not isinstance(n, bool)
        if not number or not -_LARGEST <= n <= _LARGEST:
            raise ValueError(f"{key}: {n!r} is not a finite number")
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def single(model: str, dtype: str) -> Recipe:
    """Return the recipe of one source as it is: the baseline that a merge has to beat."""
    return uniform((model,), dtype)


def uniform(models: tuple[str, ...], dtype: str) -> Recipe:
    """Return the recipe of the uniform average of `models` (a model soup, arXiv:2203.05482)."""
    weight = (1.0 / len(models),) * len(models)
    return Recipe("linear", models, (Group(None, None, {"weight": weight}),), dtype=dtype)


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate on one split.

    `scores` maps an objective to its item scores, float32, in the order of the split's
    items; empty unless `status` is "ok". Seconds are wall time in the worker. `answers` maps
    an objective to what the model said to each item, where that is kept.
    """

    status: str  # "ok" | "failed"; "stopped" is for candidates that are not scored in full
    reason: str = ""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    seconds_merge: float = 0.0
    seconds_score: float = 0.0
    weights_checksum: str = ""
    worker: str = ""
    answers: Mapping[str, list[str]] = field(default_factory=dict)
