"""mergekit's YAML for the recipes that it can express."""

from typing import Any

import yaml

from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.sources.source import Source
from evomerge.tensor_names import PARTS, place

# Random masks (DARE, DELLA) cannot be reproduced from a configuration.
_METHODS = {
    "linear", "task_arithmetic", "ties", "slerp", "nuslerp", "multislerp", "model_stock",
    "breadcrumbs",
}  # fmt: skip

# The methods' own defaults, which mergekit shares.
_NORMALIZE = {"linear": True, "ties": True, "task_arithmetic": False, "breadcrumbs": False}


def to_mergekit(recipe: ParametersRecipe, frame: Source) -> str | None:
    """Return a mergekit configuration that gives the recipe's model, or None if none does.

    Layer groups become slices; module groups and the parts outside the layers become
    filters, which mergekit matches as substrings, the first that fits. Its task vectors and
    thresholds are those of evomerge up to rounding when computed in float32.

    Args:
        recipe: to write.
        frame: one of its sources.

    >>> from pathlib import Path
    >>> from evomerge.recipes.parameters import uniform
    >>> from evomerge.sources.safetensors_file import Tensor
    >>> tensor = Tensor("F32", (4,), Path(), "layers.0.weight", 0, 16)
    >>> frame = Source("a", Path(), {}, {"layers.0.weight": tensor}, {})
    >>> text = to_mergekit(uniform(("a", "b"), "float32"), frame)
    >>> yaml.safe_load(text)["slices"][0]["sources"][1]
    {'model': 'b', 'layer_range': [0, 1], 'parameters': {'weight': [{'value': 0.5}]}}
    """
    if not _is_expressible(recipe):
        return None
    config: dict[str, Any] = {
        "merge_method": recipe.method + ("_ties" if recipe.options.get("elect") else ""),
        "slices": _slices(recipe, frame),
    }
    if recipe.base is not None:
        config["base_model"] = recipe.base
    elif recipe.method == "slerp":
        config["base_model"] = recipe.models[0]
    if recipe.method in _NORMALIZE:
        normalize = recipe.options.get("normalize", _NORMALIZE[recipe.method])
        config["parameters"] = {"normalize": normalize}
    config |= {"dtype": "float32", "out_dtype": recipe.dtype}
    return yaml.safe_dump(config, sort_keys=False, width=100)


def _is_expressible(recipe: ParametersRecipe) -> bool:
    if len(recipe.methods) > 1 or recipe.method not in _METHODS or recipe.options.get("whole"):
        return False
    scales = [group.values.get("scale", 1.0) for group in recipe.groups]
    return recipe.method != "model_stock" or all(scale == 1.0 for scale in scales)


def _slices(recipe: ParametersRecipe, frame: Source) -> list[dict[str, Any]]:
    for_all = [group for group in recipe.groups if group.layers is None]
    if for_all:
        filters = [(group.modules, group) for group in for_all]
        return [_slice(recipe, (0, frame.layers), filters)]
    # the parts outside the layers belong to the first and the last slice, by their tensors' names
    outside: dict[str, list[tuple[str | None, Group]]] = {part: [] for part in PARTS}
    by_part = {group.layers: group for group in recipe.groups if isinstance(group.layers, str)}
    for name in frame.tensors:
        part = place(name).part
        if part in outside:
            outside[part].append((name, by_part[part]))
    spans = sorted({group.layers for group in recipe.groups if isinstance(group.layers, tuple)})
    slices = []
    for span in spans:
        filters = [(group.modules, group) for group in recipe.groups if group.layers == span]
        if span == spans[-1]:
            filters = outside["norm"] + outside["head"] + filters
        if span == spans[0]:
            filters = outside["embed"] + filters
        slices.append(_slice(recipe, span, filters))
    return slices


def _slice(
    recipe: ParametersRecipe, span: tuple[int, int], filters: list[tuple[str | None, Group]]
) -> dict[str, Any]:
    """Return a slice as mergekit writes it.

    Args:
        recipe: of the slice.
        span: its layers.
        filters: (substring of tensor names or None for all, the group whose values these take).
    """
    per_model: set[str] = set()
    shared: set[str] = set()
    for _, group in filters:
        for name, value in group.values.items():
            (per_model if isinstance(value, tuple) else shared).add(name)
    sources: list[dict[str, Any]] = []
    if recipe.base is not None and recipe.base not in recipe.models:
        sources.append({"model": recipe.base, "layer_range": list(span)})
    for index, model in enumerate(recipe.models):
        source: dict[str, Any] = {"model": model, "layer_range": list(span)}
        if per_model:
            source["parameters"] = {
                name: _conditions(name, filters, index) for name in sorted(per_model)
            }
        sources.append(source)
    written: dict[str, Any] = {"sources": sources}
    if shared:
        written["parameters"] = {
            "lambda" if name == "scale" else name: _conditions(name, filters, None)
            for name in sorted(shared)
        }
    return written


def _conditions(
    name: str, filters: list[tuple[str | None, Group]], model: int | None
) -> list[dict[str, Any]]:
    """Return a parameter's values as mergekit's conditions: one model's, or those of all."""
    conditions = []
    for part, group in filters:
        if name in group.values:
            value = group.values[name]
            if isinstance(value, tuple) and model is not None:
                value = value[model]
            conditions.append(
                {"value": value} if part is None else {"filter": part, "value": value}
            )
    return conditions
