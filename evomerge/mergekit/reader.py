"""mergekit's YAML as a recipe: models or slices, filters, gradients, precedence.

As mergekit reads it: a parameter is looked up at the source, the slice, then the whole; a list
of numbers is a gradient over the slice's own layers; a list of conditions takes the first whose
filter is in the tensor's name; tensors before the layers belong to the first slice, those after
them to the last, and take a gradient's first value.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge import yaml_file
from evomerge.dtypes import DTYPES
from evomerge.errors import BadInput, Fault, nearest
from evomerge.mergekit.passthrough import from_passthrough
from evomerge.merging.methods import OPERATORS, Operator
from evomerge.recipes.parameters import Group, Recipe
from evomerge.recipes.routing import Routing
from evomerge.sources.source import Source, open_source
from evomerge.tensor_names import place

# mergekit's name: (ours, options it implies)
METHODS: dict[str, tuple[str, dict[str, bool]]] = {
    "linear": ("linear", {}),
    "task_arithmetic": ("task_arithmetic", {}),
    "slerp": ("slerp", {}),
    "nuslerp": ("nuslerp", {}),
    "multislerp": ("multislerp", {}),
    "karcher": ("karcher", {}),
    "model_stock": ("model_stock", {}),
    "ties": ("ties", {}),
    "dare_linear": ("dare_linear", {}),
    "dare_ties": ("dare_ties", {}),
    "breadcrumbs": ("breadcrumbs", {"elect": False}),
    "breadcrumbs_ties": ("breadcrumbs", {"elect": True}),
    "della": ("della", {"elect": True}),
    "della_linear": ("della", {"elect": False, "normalize": False}),
    "sce": ("sce", {}),
}

_NAMES = {"scale": "lambda"}  # our axis: mergekit's parameter

_SCE = {"density": "select_topk"}

_TOP = {
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "name",
}  # fmt: skip

_DEFAULTS = {"weight": None, "density": 1.0, "gamma": 0.01, "epsilon": 0.15, "scale": 1.0}

_UNWEIGHTED = ("karcher", "sce")  # mergekit gives these no weights

_SWITCHES = {  # what mergekit can do and we cannot: its default, which is what we do
    "nuslerp_flatten": True,
    "nuslerp_row_wise": False,
    "filter_wise": False,
    "normalize_weights": True,
    "override_global_angle": False,
}


def read_file(file: Path) -> Any:
    """Return what a recipe's JSON or a mergekit configuration (.yml, .yaml) holds.

    Raises:
        BadInput: it cannot be read.
    """
    if file.suffix in (".yml", ".yaml"):
        return yaml_file.read_yaml(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(Fault(str(file), "", f"cannot be read ({error.strerror})")) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(Fault(str(file), "", f"is not JSON ({error})", "mend it")) from None


def from_mergekit(data: Mapping[str, Any], file: str, seed: int = 0) -> Recipe | Routing:
    """Return the recipe that a mergekit configuration describes.

    Args:
        data: the YAML's content.
        file: the name that faults carry.
        seed: of the masks of methods that draw; mergekit's own cannot be reproduced.

    Raises:
        BadInput: with every fault, among them what evomerge does not do.
    """
    faults = list(_form_faults(data, file))
    if faults:
        raise BadInput(*faults)
    data, module = _unwrapped(data)
    if data["merge_method"] == "passthrough":
        return from_passthrough(data, file, module)
    method, options = METHODS[data["merge_method"]]
    operator = OPERATORS.get(method)
    base = data.get("base_model")
    slices = list(_slices(data))
    names = list(dict.fromkeys(s["model"] for part in slices for s in part["sources"]))
    if method == "slerp":  # its base is one of the two, the one at t = 0
        names = sorted(names, key=lambda n: n != base)
    models = [n for n in names if n != base or method == "slerp"]
    if not models:
        raise BadInput(Fault(file, "models", "there is no model beside the base", "list some"))
    frame = open_source((base if operator.takes_base and base else models[0]), file=file)
    for part in slices:
        for source in part["sources"]:
            source.setdefault("layer_range", [0, frame.layers])
    faults = list(_slice_faults(slices, frame, file))
    if faults:
        raise BadInput(*faults)
    top = data.get("parameters") or {}
    look = _Lookup([module, top], slices, operator, models)
    top = {**top, **module}
    options = {k: v for k, v in options.items() if k in operator.options}
    options |= {k: bool(top[k]) for k in operator.options if isinstance(top.get(k), bool)}
    return Recipe(
        method,
        tuple(models),
        tuple(_groups(look, frame, file)),
        base if operator.takes_base else None,
        data.get("out_dtype") or data.get("dtype") or frame.dtype,
        seed if operator.draws else None,
        options,
    )


def _form_faults(data: Any, file: str) -> Iterator[Fault]:
    if not isinstance(data, Mapping):
        yield Fault(file, "", "a mergekit configuration is a mapping", "see mergekit's README")
        return
    for key in data:
        if key not in _TOP:
            yield Fault(file, str(key), f"'{key}' is not supported", nearest(str(key), _TOP))
    method = data.get("merge_method")
    known = (*METHODS, "passthrough")
    if method not in known:
        wrong = f"'{method}' is not supported"
        yield Fault(file, "merge_method", wrong, nearest(str(method), known))
    if sum(key in data for key in ("models", "slices", "modules")) != 1:
        wrong = "exactly one of models, slices and modules"
        yield Fault(file, "models", wrong, "write one of them")
    module: Mapping[str, Any] = {}
    if "modules" in data:
        modules = data["modules"]
        if not isinstance(modules, Mapping) or list(modules) != ["default"]:
            mend = "a decoder's one module is `default`; write models or slices in it"
            yield Fault(file, "modules", "is not a mapping of `default` alone", mend)
            return
        inner = modules["default"]
        known = isinstance(inner, Mapping) and inner.keys() <= {"models", "slices", "parameters"}
        if not known or ("models" in inner) == ("slices" in inner):
            mend = "write models or slices, and parameters if need be"
            yield Fault(file, "modules.default", "has no form that mergekit knows", mend)
            return
        data, module = _unwrapped(data)
    for key in ("dtype", "out_dtype"):
        if data.get(key) is not None and data[key] not in DTYPES:
            yield Fault(
                file, key, f"{data[key]!r} is no dtype", f"write one of {', '.join(DTYPES)}"
            )
    tokenizer = data.get("tokenizer_source", "base")
    if tokenizer != "base" and tokenizer not in _model_names(data):
        wrong = f"{tokenizer!r}: vocabularies are not joined"
        yield Fault(file, "tokenizer_source", wrong, "write base, or leave it out")
    if "tokenizer" in data:
        yield Fault(file, "tokenizer", "vocabularies are not joined", "leave it out")
    wrong = "is not a mapping of parameters"
    yield from (Fault(file, key, wrong, "write name: value") for key in _unreadable(data, module))
    top = data.get("parameters")
    outer = [scope for scope in (top, module) if isinstance(scope, Mapping)]
    for scope, key in ((s, k) for s in outer for k in s):
        if key in _SWITCHES and scope[key] is not _SWITCHES[key]:
            mend = f"write {str(_SWITCHES[key]).lower()}, or leave it out"
            yield Fault(file, f"parameters.{key}", "is not supported", mend)
    key = "models" if "models" in data else "slices"
    mend = "see mergekit's README"
    if not isinstance(data.get(key), list) or not data[key]:
        yield Fault(file, key, "is not a list of {model: ...}", mend)
        return
    for index, entry in enumerate(data[key]):
        sources = [entry] if key == "models" else _sources_of(entry)
        named = [isinstance(s, Mapping) and isinstance(s.get("model"), str) for s in sources]
        if not named or not all(named):
            form = "{model: NAME}" if key == "models" else "{sources: [{model: NAME}]}"
            yield Fault(file, f"{key}.{index}", f"is not {form}", mend)


def _unreadable(data: Mapping[str, Any], module: Any) -> Iterator[str]:
    """Yield where parameters are no mapping."""
    scopes = [("parameters", data), ("modules.default.parameters", {"parameters": module})]
    for key in ("models", "slices"):
        for index, entry in enumerate(data[key] if isinstance(data.get(key), list) else ()):
            parts = [p for p in (entry, *_sources_of(entry)) if isinstance(p, Mapping)]
            scopes += [(f"{key}.{index}.parameters", part) for part in parts]
    for at, scope in scopes:
        if not isinstance(scope.get("parameters"), Mapping | None):
            yield at


def _unwrapped(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a configuration without its one module, and the module's own parameters."""
    if "modules" not in data:
        return data, {}
    module = dict(data["modules"]["default"])
    parameters = module.pop("parameters", None) or {}
    return {k: v for k, v in data.items() if k != "modules"} | module, parameters


def _model_names(data: Mapping) -> list:
    listed = data["models"] if isinstance(data.get("models"), list) else data.get("slices")
    entries = listed if isinstance(listed, list) else []
    sources = [s for e in entries for s in (_sources_of(e) or [e])]
    return [s.get("model") for s in sources if isinstance(s, Mapping)]


def _sources_of(entry: Any) -> list:
    found = entry.get("sources") if isinstance(entry, Mapping) else None
    return found if isinstance(found, list) else []


def _slices(data: Mapping[str, Any]) -> Iterator[dict]:
    """Yield each slice with its sources as plain dicts; `models` is one slice of all layers."""
    entries = data["slices"] if "slices" in data else [{"sources": data["models"]}]
    for entry in entries:
        yield {
            "sources": [dict(s) for s in entry["sources"]],
            "parameters": entry.get("parameters") or {},
        }


def _slice_faults(slices: list[dict], frame: Source, file: str) -> Iterator[Fault]:
    at = 0
    for index, part in enumerate(slices):
        ranges = {tuple(s["layer_range"]) for s in part["sources"]}
        key = f"slices.{index}"
        if len(ranges) != 1:
            mend = "layers are merged with those of the same number; write one layer_range"
            yield Fault(file, key, f"its sources have different layers: {sorted(ranges)}", mend)
            return
        ((first, last),) = ranges
        if first != at or last <= first or last > frame.layers:
            mend = "slices follow one another, but in passthrough"
            yield Fault(file, key, f"begins at layer {first} to {last}, not at {at}", mend)
            return
        at = last
    if at != frame.layers:
        yield Fault(file, "slices", f"end at layer {at} of {frame.layers}", "cover every layer")


class _Lookup:
    """Finds a parameter's value for a tensor, as mergekit does."""

    def __init__(
        self,
        outer: list[Mapping],
        slices: list[dict],
        operator: Operator,
        models: list[str],
    ):
        self.slices, self.operator, self.models = slices, operator, models
        self._outer = outer  # the module's parameters and the whole's

    def values(self, part: dict, name: str) -> dict[str, float | tuple[float, ...]]:
        """Return every axis' value for a tensor of a slice."""
        found: dict[str, Any] = {}
        unweighted = self.operator.name in _UNWEIGHTED
        for parameter in self.operator.parameters:
            axis = parameter.name
            key = (_SCE if self.operator.name == "sce" else _NAMES).get(axis, axis)
            default = 1.0 if axis == "weight" and unweighted else _DEFAULTS.get(axis)
            each = [
                default if value is None else value
                for model in (self.models if parameter.axis.per_model else [None])
                for value in [self._value(part, key, name, model)]
            ]
            if None in each:
                raise ValueError(f"{key} is missing for {self.models[each.index(None)]}")
            found[axis] = tuple(each) if parameter.axis.per_model else each[0]
        return found

    def _value(self, part: dict, key: str, name: str, model: str | None) -> float | None:
        own = [s for s in part["sources"] if s["model"] == model]
        scopes = [s.get("parameters") or {} for s in own]
        for scope in (*scopes, part["parameters"], *self._outer):
            value = self._resolve(scope.get(key), part, name)
            if value is not None:
                return value
        return None

    def _resolve(self, said: Any, part: dict, name: str) -> float | None:
        if isinstance(said, list) and said and all(isinstance(s, Mapping) for s in said):
            for condition in said:
                wanted = condition.get("filter")
                if wanted in (None, "*") or wanted in name:
                    return self._resolve(condition.get("value"), part, name)
            return None
        if isinstance(said, list) and said:
            return _on_gradient([float(v) for v in said], *self._depth(part, name))
        return None if said is None else float(said)

    def _depth(self, part: dict, name: str) -> tuple[int, int]:
        """Return a tensor's layer within its slice, and the slice's number of layers."""
        first, last = part["sources"][0]["layer_range"]
        layer = place(name).layer
        return (0 if layer is None else layer - first), last - first

    def part_of(self, name: str) -> dict:
        where = place(name)
        if where.layer is None:
            return self.slices[0 if where.part == "embed" else -1]
        spans = ((p, p["sources"][0]["layer_range"]) for p in self.slices)
        return next(p for p, (first, last) in spans if first <= where.layer < last)


def _on_gradient(points: list[float], layer: int, layers: int) -> float:
    """Interpolate evenly spread points at a layer."""
    at = layer / max(layers - 1, 1) * (len(points) - 1)
    low = min(int(at), len(points) - 1)
    high = min(low + 1, len(points) - 1)
    return points[low] + (points[high] - points[low]) * (at - low)


def _groups(look: _Lookup, frame: Source, file: str) -> Iterator[Group]:
    """Yield groups that give every tensor its values: neighbours that agree share one."""
    tensors = list(frame.tensors)
    try:
        valued = {n: look.values(look.part_of(n), n) for n in tensors}
    except (TypeError, ValueError) as error:
        raise BadInput(Fault(file, "parameters", str(error), "write numbers")) from None
    if all(v == valued[tensors[0]] for v in valued.values()):
        yield Group(None, None, valued[tensors[0]])
        return
    by_place: dict[Any, list[str]] = {}
    for name in tensors:
        where = place(name)
        by_place.setdefault(where.part if where.layer is None else where.layer, []).append(name)
    for where, names in by_place.items():
        span = (where, where + 1) if isinstance(where, int) else where
        common = max((valued[n] for n in names), key=lambda v: [valued[n] for n in names].count(v))
        yield from (Group(span, n, valued[n]) for n in names if valued[n] != common)
        yield Group(span, None, common)
