"""A routed model as an ordinary checkpoint: its tensors, with the scales folded in, and its config.

Nothing is loaded here but the tensors that are asked for, one at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from evomerge.recipes.routing import Routing
from evomerge.sources.architectures import INDICES, PER_LAYER, effective, family_of
from evomerge.sources.source import Source
from evomerge.tensor_names import before_layer, canonical_order, place, within_layer


class Origin(NamedTuple):
    """Where a routed checkpoint's tensor comes from, and what it is multiplied by."""

    source: str
    name: str
    shape: tuple[int, ...]
    factor: float
    offset: bool  # it is 1 + the tensor that is multiplied


def routed_tensors(recipe: Routing, sources: Mapping[str, Source]) -> dict[str, Origin]:
    """Return the tensors of a routed checkpoint by their new names, in canonical order."""
    fold, frame = recipe.fold(), recipe.models[recipe.frame]
    family = family_of(sources[frame].config)
    tied = has_tied_head(sources[frame])
    apart = 1.0 / fold.embed if tied else 1.0  # undoes the embeddings' factor in the head
    outside = {"embed": fold.embed, "norm": fold.norm * apart, "norm bias": apart}
    found: dict[str, Origin] = {}

    def add(new: str, source: str, name: str, factors: Mapping[str, float]) -> None:
        role, shape = family.role(name), sources[source].tensors[name].shape
        found[new] = Origin(source, name, shape, factors.get(role, 1.0), role in family.offset)

    for name in sources[frame].tensors:
        if place(name).layer is None:
            add(name, frame, name, outside)
        else:
            stem = before_layer(name)  # which may be another in checkpoints of other sources
    for index, (hop, by) in enumerate(zip(recipe.path, fold.hops, strict=True)):
        source = recipe.models[hop.model]
        factors = dict(zip(("attention", "mlp", "read"), by, strict=True))
        for name in sources[source].tensors:
            if place(name).layer == hop.layer:
                add(f"{stem}{index}.{within_layer(name)}", source, name, factors)
    return {name: found[name] for name in canonical_order(found)}


def has_tied_head(source: Source) -> bool:
    """Tell whether a model's head is its embeddings: no weight of its own is stored."""
    heads = [name for name in source.tensors if place(name).part == "head"]
    return not any(name.endswith("weight") for name in heads)


def folded(origin: Origin, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return an origin's tensor with its factor, computed in float32 (or float64), rounded once."""
    if origin.factor == 1.0:
        return tensor.to(dtype)
    wide = tensor.to(torch.promote_types(torch.promote_types(tensor.dtype, dtype), torch.float32))
    if origin.offset:
        return ((1.0 + wide) * origin.factor - 1.0).to(dtype)
    return (wide * origin.factor).to(dtype)


def layer_settings(config: Mapping[str, Any]) -> dict[str, list]:
    """Return what a config says layer by layer, or means by a rule, as lists with one entry each.

    A list of layers' indices becomes one of true and false.
    """
    known, found = effective(config), {}
    depth = known["num_hidden_layers"]
    for key in PER_LAYER:
        if isinstance(known[key], list | tuple) and len(known[key]) == depth:
            found[key] = list(known[key])
    for key in INDICES:
        if known[key] is not None:
            found[key] = [layer in known[key] for layer in range(depth)]
    return found


def along(recipe: Routing, settings: Mapping[str, Mapping[str, list]]) -> dict[str, list]:
    """Return what configs say layer by layer for the layers of a path, as its config says it.

    Args:
        recipe: whose path it is.
        settings: `layer_settings` of each source.
    """
    found = {}
    for key in settings[recipe.models[recipe.frame]]:
        row = [settings[recipe.models[hop.model]][key][hop.layer] for hop in recipe.path]
        found[key] = [i for i, there in enumerate(row) if there] if key in INDICES else row
    return found


def routed_config(recipe: Routing, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Return config.json of a routed model: the frame's, with the path's layers."""
    config = sources[recipe.models[recipe.frame]].config
    settings = {name: layer_settings(sources[name].config) for name in recipe.sources}
    count = "n_layer" if "n_layer" in config else "num_hidden_layers"
    return {**config, count: len(recipe.path), **along(recipe, settings)}


def routed_stream(
    recipe: Routing,
    sources: Mapping[str, Source],
    tensor_of: Callable[[str, str], torch.Tensor],
    names: Iterable[str] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of a routed checkpoint in canonical order, or that of `names`.

    Args:
        recipe: the path.
        sources: by name.
        tensor_of: gives a source's tensor by the two names.
    """
    origins, dtype = routed_tensors(recipe, sources), getattr(torch, recipe.dtype)
    for name in origins if names is None else names:
        origin = origins[name]
        yield name, folded(origin, tensor_of(origin.source, origin.name), dtype)
