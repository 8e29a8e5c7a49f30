"""Routed models and mergekit's `passthrough`: slices one after the other, some tensors scaled."""

from collections.abc import Mapping
from typing import Any

import yaml

from evomerge.errors import BadInput, Fault, Faults, placed
from evomerge.mergekit.form import Configuration, Parameters, Slice
from evomerge.mergekit.scopes import Depth, look_up
from evomerge.merging.routed_checkpoint import has_tied_head, layer_settings, routed_tensors
from evomerge.recipes.parse import parse_recipe
from evomerge.recipes.routing import Hop, RoutingRecipe
from evomerge.sources.architectures import family_of
from evomerge.sources.source import Source, open_source
from evomerge.sources.trust import NOBODY, Trust
from evomerge.tensor_names import place, within_layer

_Scales = list[tuple[str, float]]  # (part of tensor names, what they are multiplied by)


def to_passthrough(recipe: RoutingRecipe, sources: Mapping[str, Source]) -> str | None:
    """Return a mergekit configuration that stacks a routed model, or None if none does.

    mergekit takes what is outside the layers from the first and the last slice, and can multiply a
    tensor, but not 1 plus a tensor.

    Args:
        recipe: the path.
        sources: by name.

    >>> import tempfile
    >>> from evomerge.recipes.routing import whole
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     name = str(tiny_llama(folder, seed=0))
    ...     text = to_passthrough(whole(name, 2, "float32"), {name: open_source(name)})
    >>> yaml.safe_load(text)["slices"][0]["sources"][0]["layer_range"]
    [0, 2]
    """
    if {recipe.frame} != {recipe.path[0].model, recipe.path[-1].model}:
        return None
    if not _keeps_layer_settings(recipe, sources):
        return None
    outside: dict[str, _Scales] = {"embed": [], "norm": [], "head": []}
    by_hop: list[_Scales] = [[] for _ in recipe.path]
    for name, origin in routed_tensors(recipe, sources).items():
        if origin.factor == 1.0:
            continue
        if origin.offset:
            return None
        where = place(name)
        if where.layer is None:
            outside[where.part].append((name, origin.factor))
        else:
            by_hop[where.layer].append((within_layer(name), origin.factor))
    by_hop[0] = outside["embed"] + by_hop[0]
    by_hop[-1] += outside["norm"] + outside["head"]
    config = {"merge_method": "passthrough", "slices": _slices(recipe, by_hop)}
    config |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return yaml.safe_dump(config, sort_keys=False, width=100)


def _keeps_layer_settings(recipe: RoutingRecipe, sources: Mapping[str, Source]) -> bool:
    """Tell whether the frame's config, which mergekit copies, says of layers what the path has."""
    settings = {name: layer_settings(sources[name].config) for name in recipe.sources}
    frame = recipe.models[recipe.frame]
    for key, row in settings[frame].items():
        path = [settings[recipe.models[hop.model]][key][hop.layer] for hop in recipe.path]
        # a list that is written in the config stays as it is; a rule means the same for each layer
        written = bool(sources[frame].config.get(key))
        alike = all(value == row[0] for value in (*path, *row))
        if path != row and (written or not alike):
            return False
    return True


def _slices(recipe: RoutingRecipe, by_hop: list[_Scales]) -> list[dict[str, Any]]:
    """Return slices as mergekit writes them, successive layers that are scaled alike in one."""
    slices: list[dict[str, Any]] = []
    next_layer: tuple[int, int, _Scales] | None = None  # that would belong to the last slice
    for hop, scaled in zip(recipe.path, by_hop, strict=True):
        if (hop.model, hop.layer, scaled) == next_layer:
            slices[-1]["sources"][0]["layer_range"][1] += 1
        else:
            model = recipe.models[hop.model]
            source: dict[str, Any] = {"model": model, "layer_range": [hop.layer, hop.layer + 1]}
            if scaled:
                listed = [{"filter": name, "value": factor} for name, factor in scaled]
                source["parameters"] = {"scale": [*listed, {"value": 1.0}]}
            slices.append({"sources": [source]})
        next_layer = (hop.model, hop.layer + 1, scaled)
    return slices


def from_passthrough(
    configuration: Configuration,
    trust: Trust = NOBODY,
) -> RoutingRecipe:
    """Return the path that a mergekit configuration stacks.

    Args:
        configuration: with one source in each slice.
        trust: what code of the models may run.

    Raises:
        BadInput: it scales what is no branch's output, or embeddings without the final norm.

    >>> import tempfile
    >>> from evomerge.mergekit.form import read_configuration
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sources = [{"model": str(tiny_llama(folder, seed=0))}]
    ...     data = {"merge_method": "passthrough", "slices": [{"sources": sources}] * 2}
    ...     recipe = from_passthrough(read_configuration(data))
    >>> [hop.layer for hop in recipe.path]
    [0, 1, 0, 1]
    """
    opened = _open_all(configuration, trust)
    models = list(opened)
    faults = Faults()
    hops: list[Hop] = []
    for part in configuration.slices:
        source = part.sources[0]
        with faults.gather():
            hops += _hops(configuration, part, opened[source.model], models.index(source.model))
    faults.check()
    first, last = configuration.slices[0], configuration.slices[-1]
    if first.sources[0].model != last.sources[0].model:
        wrong = f"begins with '{first.sources[0].model}' and ends with '{last.sources[0].model}'"
        mend = "embeddings and head have to be of one model: begin and end with it"
        raise BadInput(Fault("slices", wrong, mend))
    frame = opened[models[0]]
    try:
        embed = _embed_factor(configuration, frame)
    except ValueError as error:
        mend = "leave what is outside the layers as it is"
        raise BadInput(Fault("slices", str(error), mend)) from None
    hops[0] = hops[0]._replace(scale=embed)
    dtype = configuration.dtype or frame.dtype
    recipe = RoutingRecipe(tuple(models), tuple(hops), 0, dtype)
    parse_recipe(recipe.to_json())  # which refuses what no recipe may be
    return recipe


def _open_all(configuration: Configuration, trust: Trust) -> dict[str, Source]:
    """Open the one source of each slice, by name, in the order in which they first come."""
    opened: dict[str, Source] = {}
    faults = Faults()
    tried = set()
    for part in configuration.slices:
        if len(part.sources) != 1:
            wrong = f"has {len(part.sources)} sources"
            mend = "passthrough merges nothing; write one source in each slice"
            faults.add(part.key, wrong, mend)
            continue
        source = part.sources[0]
        if source.model not in tried:
            tried.add(source.model)
            with faults.gather(under=source.key):
                opened[source.model] = open_source(source.model, trust)
    faults.check()
    return opened


def _hops(configuration: Configuration, part: Slice, source: Source, model: int) -> list[Hop]:
    """Return the hops of a slice.

    Args:
        configuration: of the slice.
        part: the slice.
        source: its one source.
        model: the source's index among the recipe's models.
    """
    entry = part.sources[0]
    first, last = entry.layers or (0, source.layers)
    if not 0 <= first < last <= source.layers:
        mend = f"write a range within 0 to {source.layers}"
        wrong = f"[{first}, {last}] will not do"
        raise BadInput(Fault(f"{entry.key}.layer_range", wrong, mend))
    scopes = configuration.scopes(part, entry)
    hops = []
    with placed(f"{entry.key}.parameters.scale"):
        for layer in range(first, last):
            depth = Depth(layer - first, last - first)
            try:
                gains = _gains(source, layer, scopes, depth)
            except ValueError as error:
                mend = "scale o_proj and down_proj (or what the architecture calls them) alone"
                raise BadInput(Fault("", str(error), mend)) from None
            hops.append(Hop(model, layer, 1.0, gains))
    return hops


def _gains(
    source: Source, layer: int, scopes: list[Parameters], depth: Depth
) -> tuple[float, float]:
    """Return what a layer's attention and MLP are multiplied by.

    Raises:
        ValueError: something else in the layer is multiplied, or a branch unevenly.
    """
    family = family_of(source.config)
    factors: dict[str, set[float]] = {"attention": set(), "mlp": set(), "other": {1.0}}
    for name in source.tensors:
        if place(name).layer == layer:
            role = family.role(name)
            branch = role if role in ("attention", "mlp") else "other"
            factors[branch].add(_scale(scopes, name, depth))
    if any(len(values) > 1 for values in factors.values()):
        raise ValueError(f"layer {layer} is scaled elsewhere than where it adds to the stream")
    attention, mlp = (max(factors[branch], default=1.0) for branch in ("attention", "mlp"))
    if family.offset and (attention, mlp) != (1.0, 1.0):
        raise ValueError("norms of this family are 1 + weight, which no scale multiplies")
    return attention, mlp


def _embed_factor(configuration: Configuration, frame: Source) -> float:
    """Return the embeddings' factor, which has to be undone where the head is tied to them.

    Raises:
        ValueError: it is not, or the embeddings are multiplied unevenly or by 0.
    """
    family = family_of(frame.config)
    first, last = configuration.slices[0], configuration.slices[-1]
    embed: set[float] = set()
    norm: set[float] = set()
    others: set[float] = set()
    for name in frame.tensors:
        where = place(name)
        if where.layer is not None:
            continue
        part = first if where.part == "embed" else last
        start, end = part.sources[0].layers or (0, frame.layers)
        scopes = configuration.scopes(part, part.sources[0])
        role = family.role(name)
        factors = embed if role == "embed" else norm if role == "norm" else others
        factors.add(_scale(scopes, name, Depth(0, end - start)))
    if len(embed) > 1:
        raise ValueError("the embeddings are scaled unevenly")
    factor = embed.pop() if embed else 1.0
    if factor == 0.0:
        raise ValueError("embeddings of 0 leave nothing")
    undone = 1.0 / factor if has_tied_head(frame) else 1.0
    if norm - {undone} or others - {undone, 1.0}:
        raise ValueError("the final norm or the head is scaled otherwise than the embeddings ask")
    return factor


def _scale(scopes: list[Parameters], tensor: str, depth: Depth) -> float:
    factor = look_up(scopes, "scale", tensor, depth)
    return 1.0 if factor is None else factor
