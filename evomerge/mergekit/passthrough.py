"""Routed models and mergekit's `passthrough`: slices one after the other, some tensors scaled."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from evomerge.errors import BadInput, Fault
from evomerge.merging.routed_checkpoint import has_tied_head, layer_settings, routed_tensors
from evomerge.recipes.routing import Hop, Routing, routing_from_json
from evomerge.sources.architectures import Family, family_of
from evomerge.sources.source import Source, open_source
from evomerge.tensor_names import place, within_layer


def to_passthrough(recipe: Routing, sources: Mapping[str, Source]) -> str | None:
    """Return a mergekit configuration that stacks a routed model, or None if none does.

    mergekit takes what is outside the layers from the first and the last slice, and can multiply a
    tensor, but not 1 plus a tensor.
    """
    if {recipe.frame} != {recipe.path[0].model, recipe.path[-1].model}:
        return None
    settings = {name: layer_settings(sources[name].config) for name in recipe.sources}
    frame = recipe.models[recipe.frame]
    rows = settings[frame].items()
    if not all(_goes_on(sources[frame], key, row, recipe, settings) for key, row in rows):
        return None
    origins = routed_tensors(recipe, sources)
    scaled = {name: o for name, o in origins.items() if o.factor != 1.0}
    if any(o.offset for o in scaled.values()):
        return None
    outside: dict[str, list] = {"embed": [], "norm": [], "head": []}
    inside: list[list] = [[] for _ in recipe.path]
    for name, origin in scaled.items():
        where = place(name)
        if where.layer is None:
            outside[where.part].append((name, origin.factor))
        else:
            inside[where.layer].append((within_layer(name), origin.factor))
    inside[0] = outside["embed"] + inside[0]
    inside[-1] += outside["norm"] + outside["head"]
    slices: list[dict] = []
    before: tuple = ()
    for hop, factors in zip(recipe.path, inside, strict=True):
        if (hop.model, hop.layer, factors) == before:
            slices[-1]["sources"][0]["layer_range"][1] += 1
        else:
            model = recipe.models[hop.model]
            source: dict[str, Any] = {"model": model, "layer_range": [hop.layer, hop.layer + 1]}
            if factors:
                listed = [{"filter": name, "value": factor} for name, factor in factors]
                source["parameters"] = {"scale": [*listed, {"value": 1.0}]}
            slices.append({"sources": [source]})
        before = (hop.model, hop.layer + 1, factors)
    config = {"merge_method": "passthrough", "slices": slices}
    config |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return yaml.safe_dump(config, sort_keys=False, width=100)


def _goes_on(
    frame: Source, key: str, row: list, recipe: Routing, settings: Mapping[str, Mapping[str, list]]
) -> bool:
    """Tell whether mergekit, which changes no list of layers, leaves one as the path has it."""
    path = [settings[recipe.models[hop.model]][key][hop.layer] for hop in recipe.path]
    return path == row or (not frame.config.get(key) and len({*path, *row}) == 1)


def from_passthrough(
    data: Mapping[str, Any], file: str, module: Mapping[str, Any] | None = None
) -> Routing:
    """Return the path that a mergekit configuration stacks.

    Args:
        data: the YAML's content, `models` or `slices` of `{model: ...}` each.
        file: the name that faults carry.
        module: the parameters of its one module.

    Raises:
        BadInput: it scales what is no branch's output, or embeddings without the final norm.
    """
    outer = [{"parameters": module}, data]
    entries = data["slices"] if "slices" in data else [{"sources": data["models"]}]
    opened: dict[str, Source | None] = {}
    hops: list[Hop] = []
    faults: list[Fault] = []
    for index, entry in enumerate(entries):
        try:
            hops += _hops(entry, opened, outer, file, f"slices.{index}")
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(*faults)
    models = list(opened)
    ends = [(e["sources"][0], e) for e in (entries[0], entries[-1])]
    names = [source["model"] for source, _ in ends]
    if names[0] != names[1]:
        wrong = f"begins with '{names[0]}' and ends with '{names[1]}'"
        mend = "embeddings and head have to be of one model: begin and end with it"
        raise BadInput(Fault(file, "slices", wrong, mend))
    try:
        embed = _outside(opened[models[0]], *(_said(*end, *outer) for end in ends))
    except ValueError as error:
        mend = "leave what is outside the layers as it is"
        raise BadInput(Fault(file, "slices", str(error), mend)) from None
    hops[0] = hops[0]._replace(scale=embed)
    dtype = data.get("out_dtype") or data.get("dtype") or opened[models[0]].dtype
    recipe = Routing(tuple(models), tuple(hops), 0, dtype)
    return routing_from_json(recipe.to_json(), file)  # with whatever a recipe has to keep


def _hops(
    entry: Mapping[str, Any],
    opened: dict[str, Source | None],
    outer: Sequence[Mapping[str, Any]],
    file: str,
    key: str,
) -> list[Hop]:
    """Return the hops of one slice, and add its model to what is opened, None if it cannot be."""
    if len(entry["sources"]) != 1:
        mend = "passthrough merges nothing; write one source in each slice"
        raise BadInput(Fault(file, key, f"has {len(entry['sources'])} sources", mend))
    (source,) = entry["sources"]
    name = source["model"]
    if name not in opened:
        opened[name] = None
        opened[name] = open_source(name, file=file, key=key)
    if opened[name] is None:  # said at the slice before
        return []
    given = source.get("layer_range") or [0, opened[name].layers]
    whole = isinstance(given, list) and len(given) == 2 and all(type(n) is int for n in given)
    if not whole or not 0 <= given[0] < given[1] <= opened[name].layers:
        mend = f"write a range within 0 to {opened[name].layers}"
        raise BadInput(Fault(file, f"{key}.layer_range", f"{given!r} will not do", mend))
    said = _said(source, entry, *outer)
    try:
        return [_hop(opened[name], list(opened).index(name), n, said) for n in range(*given)]
    except ValueError as error:
        mend = "scale o_proj and down_proj (or what the architecture calls them) alone"
        raise BadInput(Fault(file, f"{key}.parameters.scale", str(error), mend)) from None


def _said(*parts: Mapping[str, Any]) -> list:
    """Return what source, slice, module and whole say of the scale, the innermost first."""
    scopes = (part.get("parameters") or {} for part in parts)
    return [scope["scale"] for scope in scopes if "scale" in scope]


def _hop(source: Source, model: int, layer: int, said: Sequence) -> Hop:
    """Return a layer as a hop with gains, if its scales are such."""
    family = family_of(source.config)
    found: dict[str, set[float]] = {"attention": set(), "mlp": set(), "other": set()}
    for name in source.tensors:
        if place(name).layer == layer:
            role = family.role(name)
            found[role if role in found else "other"].add(_scale(said, name))
    if any(len(values) > 1 for values in found.values()) or found["other"] - {1.0}:
        raise ValueError(f"layer {layer} is scaled elsewhere than where it adds to the stream")
    gains = [(found[role] or {1.0}).pop() for role in ("attention", "mlp")]
    if family.offset and gains != [1.0, 1.0]:
        raise ValueError("norms of this family are 1 + weight, which no scale multiplies")
    return Hop(model, layer, 1.0, (gains[0], gains[1]))


def _outside(source: Source, first: Sequence, last: Sequence) -> float:
    """Return the embeddings' factor, which has to be undone where the head is tied to them."""
    family: Family = family_of(source.config)
    factors: dict[str | None, set[float]] = {}
    for name in source.tensors:
        if place(name).layer is None:
            role = family.role(name)
            said = first if place(name).part == "embed" else last
            factors.setdefault(role, set()).add(_scale(said, name))
    (embed,) = factors.get("embed", {1.0})
    tied = has_tied_head(source)
    if not embed:
        raise ValueError("embeddings of 0 leave nothing")
    wanted = {1.0 / embed if tied else 1.0}
    others = set().union(*(v for role, v in factors.items() if role not in ("embed", "norm")))
    if factors.get("norm", wanted) != wanted or others - (wanted if tied else {1.0}) - {1.0}:
        raise ValueError("the final norm or the head is scaled otherwise than the embeddings ask")
    return embed


def _scale(said: Sequence, name: str) -> float:
    """Return a tensor's scale: that of the innermost scope that has one for it."""
    found = (_scale_in(scope, name) for scope in said)
    return next((scale for scale in found if scale is not None), 1.0)


def _scale_in(scope: Any, name: str) -> float | None:
    """Return a number as it is, or the value of the first condition that holds."""
    if isinstance(scope, Sequence) and not isinstance(scope, str):
        for condition in scope:
            if not isinstance(condition, Mapping):
                raise ValueError("a scale is a number or a list of {filter, value}")
            wanted = condition.get("filter")
            if not isinstance(wanted, str | None):
                raise ValueError(f"{wanted!r} is no filter")
            if wanted in (None, "*") or wanted in name:
                return _scale_in(condition.get("value"), name)
        return None
    if scope is not None and (isinstance(scope, bool) or not isinstance(scope, int | float)):
        raise ValueError(f"{scope!r} is no number")
    return None if scope is None else float(scope)
