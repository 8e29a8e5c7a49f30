"""A recipe of any kind, read back from its JSON."""

import sys
from typing import Any

from evomerge.dtypes import DTYPES
from evomerge.errors import BadInput, Checks, Fault
from evomerge.recipes.parameters import VERSION, Group, Recipe
from evomerge.tensor_names import PARTS

_LARGEST = sys.float_info.max  # JSON knows longer integers, and NaN

_KEYS = {"version", "kind", "models", "base", "dtype", "seed", "method", "options", "groups"}


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
        from evomerge.recipes.mixture import mixture_from_json  # which needs this module

        return mixture_from_json(data, file)
    if data.get("kind") == "explicit":
        from evomerge.recipes.lineage import explicit_from_json

        return explicit_from_json(data, file)
    if data.get("kind") == "routing":
        from evomerge.recipes.routing import routing_from_json

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
