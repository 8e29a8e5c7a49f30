"""mergekit's YAML for the recipes that it can express."""

from typing import Any

import yaml

from evomerge.recipes.parameters import Group, Recipe
from evomerge.sources.source import Source
from evomerge.tensor_names import place

# Random masks (DARE, DELLA) cannot be reproduced from a configuration.
_METHODS = {
    "linear", "task_arithmetic", "ties", "slerp", "nuslerp", "multislerp", "model_stock",
    "breadcrumbs",
}  # fmt: skip

_NORMALIZE = {"linear": True, "ties": True, "task_arithmetic": False, "breadcrumbs": False}


def to_mergekit(recipe: Recipe, frame: Source) -> str | None:
    """Return a mergekit configuration that gives the recipe's model, or None if none does.

    Layer groups become slices; module groups and the parts outside the layers become
    filters, which mergekit matches as substrings, the first that fits. Its task vectors and
    thresholds are ours up to rounding when computed in float32.
    """
    if recipe.kind != "parameters" or len(recipe.methods) > 1:
        return None
    if recipe.method not in _METHODS or recipe.options.get("whole"):
        return None
    if recipe.method == "model_stock" and any(g.values.get("scale", 1) != 1 for g in recipe.groups):
        return None
    spans = sorted({g.layers for g in recipe.groups if isinstance(g.layers, tuple)})
    whole = [g for g in recipe.groups if g.layers is None]
    if whole:
        spans = [(0, frame.layers)]
    outside = {
        part: [n for n in frame.tensors if place(n).part == part]
        for part in ("embed", "norm", "head")
    }
    slices = []
    for index, span in enumerate(spans):
        groups = whole or [g for g in recipe.groups if g.layers == span]
        filters: list[tuple[str | None, Group]] = []
        if not whole:
            parts = ("embed",) if index == 0 else ()
            parts += ("norm", "head") if index == len(spans) - 1 else ()
            held = {g.layers: g for g in recipe.groups if isinstance(g.layers, str)}
            filters += [(name, held[part]) for part in parts for name in outside[part]]
        filters += [(g.modules, g) for g in groups]
        slices.append(_slice(recipe, span, filters))
    method = recipe.method + ("_ties" if recipe.options.get("elect") else "")
    config: dict[str, Any] = {"merge_method": method, "slices": slices}
    if recipe.base is not None:
        config["base_model"] = recipe.base
    elif recipe.method == "slerp":
        config["base_model"] = recipe.models[0]
    if recipe.method in _NORMALIZE:
        normalize = recipe.options.get("normalize", _NORMALIZE[recipe.method])
        config["parameters"] = {"normalize": normalize}
    config |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return yaml.safe_dump(config, sort_keys=False, width=100)


def _slice(recipe: Recipe, span: tuple[int, int], filters: list[tuple[str | None, Group]]) -> dict:
    names = list(recipe.models)
    per_model = sorted({k for _, g in filters for k, v in g.values.items() if isinstance(v, tuple)})
    shared = sorted({k for _, g in filters for k, v in g.values.items() if isinstance(v, float)})
    sources = [] if recipe.base in (None, *names) else [_base(recipe.base, span)]
    for index, name in enumerate(names):
        source: dict[str, Any] = {"model": name, "layer_range": list(span)}
        if per_model:
            source["parameters"] = {
                k: [_entry(modules, g.values[k][index]) for modules, g in filters if k in g.values]
                for k in per_model
            }
        sources.append(source)
    found: dict[str, Any] = {"sources": sources}
    if shared:
        found["parameters"] = {
            {"scale": "lambda"}.get(k, k): [
                _entry(modules, g.values[k]) for modules, g in filters if k in g.values
            ]
            for k in shared
        }
    return found


def _base(name: str, span: tuple[int, int]) -> dict:
    return {"model": name, "layer_range": list(span)}


def _entry(modules: str | None, value: float) -> dict:
    return {"value": value} if modules is None else {"filter": modules, "value": value}
