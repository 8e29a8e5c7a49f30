"""A routed model as an ordinary checkpoint: its tensors, with the scales folded in, and its config.

Nothing is loaded here but the tensors that are asked for, one at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from evomerge.kernels.merge_plan import check_finite
from evomerge.recipes.routing import RoutingRecipe
from evomerge.sources.architectures import INDICES, PER_LAYER, effective, family_of
from evomerge.sources.source import Source
from evomerge.tensor_names import before_layer, canonical_order, place, within_layer


class Origin(NamedTuple):
    """Where a routed checkpoint's tensor comes from, and what it is multiplied by.

    Attributes:
        source: name of a source.
        name: of its tensor.
        shape: of the tensor.
        factor: by which it is multiplied.
        offset: whether it is 1 + the tensor that is multiplied, as norms of some families have it.

    >>> Origin("a", "model.norm.weight", (16,), factor=-1.0, offset=False).factor
    -1.0
    """

    source: str
    name: str
    shape: tuple[int, ...]
    factor: float
    offset: bool


def routed_tensors(recipe: RoutingRecipe, sources: Mapping[str, Source]) -> dict[str, Origin]:
    """Return the tensors of a routed checkpoint by their new names, in canonical order.

    >>> import tempfile
    >>> from evomerge.recipes.routing import Hop
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sources = {"a": open_source(str(tiny_llama(folder, 0)))}
    >>> path = (Hop(0, 0), Hop(0, 1), Hop(0, 1))
    >>> tensors = routed_tensors(RoutingRecipe(("a",), path, 0, "float32"), sources)
    >>> tensors["model.layers.2.mlp.up_proj.weight"].name
    'model.layers.1.mlp.up_proj.weight'
    """
    fold, frame = recipe.fold(), recipe.models[recipe.frame]
    family = family_of(sources[frame].config)
    # A tied head is the embeddings, whose factor the final norm then takes back.
    unfold = 1.0 / fold.embed if has_tied_head(sources[frame]) else 1.0
    outside = {"embed": fold.embed, "norm": fold.norm * unfold, "norm bias": unfold}
    origins: dict[str, Origin] = {}

    def add(new: str, source: str, name: str, factors: Mapping[str, float]) -> None:
        role, shape = family.role(name), sources[source].tensors[name].shape
        factor = factors.get(role, 1.0) if role else 1.0
        origins[new] = Origin(source, name, shape, factor, role in family.offset)

    stem = ""
    for name in sources[frame].tensors:
        if place(name).layer is None:
            add(name, frame, name, outside)
        else:
            stem = before_layer(name)  # which may be another in checkpoints of other sources
    for index, (hop, (attention, mlp, sign)) in enumerate(zip(recipe.path, fold.hops, strict=True)):
        source = recipe.models[hop.model]
        factors = {"attention": attention, "mlp": mlp, "read": sign}
        for name in sources[source].tensors:
            if place(name).layer == hop.layer:
                add(f"{stem}{index}.{within_layer(name)}", source, name, factors)
    return {name: origins[name] for name in canonical_order(origins)}


def has_tied_head(source: Source) -> bool:
    """Tell whether a model's head is its embeddings: no weight of its own is stored.

    >>> from pathlib import Path
    >>> has_tied_head(Source("a", Path("a"), {}, {}, {}))
    True
    """
    heads = [name for name in source.tensors if place(name).part == "head"]
    return not any(name.endswith("weight") for name in heads)


def folded(origin: Origin, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return an origin's tensor with its factor, computed in float32 (or float64), rounded once.

    >>> doubled = Origin("a", "model.norm.weight", (1,), factor=2.0, offset=True)
    >>> folded(doubled, torch.tensor([0.5]), torch.float32)
    tensor([2.])
    """
    if origin.factor == 1.0:
        return tensor.to(dtype)
    wide = tensor.to(torch.promote_types(torch.promote_types(tensor.dtype, dtype), torch.float32))
    if origin.offset:
        return ((1.0 + wide) * origin.factor - 1.0).to(dtype)
    return (wide * origin.factor).to(dtype)


def layer_settings(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what a config says layer by layer, or means by a rule, as lists with one entry each.

    A list of layers' indices becomes one of true and false.

    >>> layer_settings({"model_type": "qwen3", "num_hidden_layers": 2})["layer_types"]
    ['full_attention', 'full_attention']
    """
    known = effective(config)
    depth = known["num_hidden_layers"]
    settings: dict[str, list[Any]] = {}
    for key in PER_LAYER:
        if isinstance(known[key], list | tuple) and len(known[key]) == depth:
            settings[key] = list(known[key])
    for key in INDICES:
        if known[key] is not None:
            settings[key] = [layer in known[key] for layer in range(depth)]
    return settings


def along(
    recipe: RoutingRecipe, settings: Mapping[str, Mapping[str, list[Any]]]
) -> dict[str, list[Any]]:
    """Return what configs say layer by layer for the layers of a path, as its config says it.

    Args:
        recipe: whose path it is.
        settings: `layer_settings` of each source.

    >>> from evomerge.recipes.routing import Hop
    >>> recipe = RoutingRecipe(("a",), (Hop(0, 1), Hop(0, 0), Hop(0, 1)), 0, "float32")
    >>> along(recipe, {"a": {"layer_types": ["full", "sliding"]}})
    {'layer_types': ['sliding', 'full', 'sliding']}
    """
    by_hop: dict[str, list[Any]] = {}
    for key in settings[recipe.models[recipe.frame]]:
        row = [settings[recipe.models[hop.model]][key][hop.layer] for hop in recipe.path]
        if key in INDICES:
            row = [index for index, listed in enumerate(row) if listed]
        by_hop[key] = row
    return by_hop


def routed_config(recipe: RoutingRecipe, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Return config.json of a routed model: the frame's, with the path's layers.

    >>> from pathlib import Path
    >>> from evomerge.recipes.routing import Hop
    >>> config = {"model_type": "llama", "num_hidden_layers": 2}
    >>> recipe = RoutingRecipe(("a",), (Hop(0, 0), Hop(0, 1), Hop(0, 1)), 0, "float32")
    >>> routed_config(recipe, {"a": Source("a", Path("a"), config, {}, {})})["num_hidden_layers"]
    3
    """
    config = sources[recipe.models[recipe.frame]].config
    settings = {name: layer_settings(sources[name].config) for name in recipe.sources}
    count = "n_layer" if "n_layer" in config else "num_hidden_layers"
    return {**config, count: len(recipe.path), **along(recipe, settings)}


def routed_stream(
    recipe: RoutingRecipe,
    sources: Mapping[str, Source],
    tensor_of: Callable[[str, str], torch.Tensor],
    names: Iterable[str] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of a routed checkpoint in canonical order, or that of `names`.

    Args:
        recipe: the path.
        sources: by name.
        tensor_of: gives a source's tensor by the two names.
        names: of the tensors; all by default.

    Raises:
        CandidateFailure: a tensor is not finite.

    >>> import tempfile
    >>> from evomerge.recipes.routing import whole
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sources = {"a": open_source(str(tiny_llama(folder, 0)))}
    >>> recipe = whole("a", layers=2, dtype="float32")
    >>> next(routed_stream(recipe, sources, lambda source, name: torch.zeros(3)))
    ('model.embed_tokens.weight', tensor([0., 0., 0.]))
    """
    origins = routed_tensors(recipe, sources)
    for name in origins if names is None else names:
        origin = origins[name]
        dtype = getattr(torch, sources[origin.source].dtype_of(origin.name, recipe.dtype))
        tensor = folded(origin, tensor_of(origin.source, origin.name), dtype)
        check_finite(name, tensor)
        yield name, tensor
