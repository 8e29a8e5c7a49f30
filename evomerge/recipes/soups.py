"""Soups of the sources, without a search: baselines to beat, and where a search may begin."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from evomerge.recipes.parameters import Group, Recipe, uniform

SOUPS = ("model_stock", "metrics", "greedy")


def model_stock(models: tuple[str, ...], base: str, dtype: str) -> Recipe:
    """Return Model Stock's recipe: per tensor, as far to the average as the models agree."""
    group = Group(None, None, {"scale": 1.0})
    return Recipe("model_stock", models, (group,), base, dtype)


def by_metrics(models: tuple[str, ...], values: Mapping[str, float], dtype: str) -> Recipe:
    """Return the average weighed by the models' own values (metrics-weighted averaging,
    arXiv:2504.18580).

    Args:
        values: of each model, 0 for the worst source; one that has none weighs nothing. Equal
            weights where no value is above 0.
    """
    weight = np.array([max(values.get(m, 0.0), 0.0) for m in models])
    weight = weight / weight.sum() if weight.sum() > 0 else np.full(len(models), 1 / len(models))
    group = Group(None, None, {"weight": tuple(map(float, weight))})
    return Recipe("linear", models, (group,), dtype=dtype)


def greedy(
    models: Sequence[str],
    values: Mapping[str, float],
    dtype: str,
    value_of: Callable[[tuple[str, ...], Recipe], float | None],
) -> tuple[str, ...]:
    """Return the greedy soup's members (Wortsman et al. 2022, arXiv:2203.05482, recipe 1).

    From the best model on, each next one stays if their uniform average gets no worse.

    Args:
        models: to take from; those without a value are left out.
        values: of each model by itself.
        dtype: of the soups.
        value_of: scores a soup of members; None if it failed.
    """
    known = sorted((m for m in models if m in values), key=lambda m: -values[m])
    soup, best = known[:1], values[known[0]] if known else 0.0
    for model in known[1:]:
        members = (*soup, model)
        value = value_of(members, uniform(members, dtype))
        if value is not None and value >= best:
            soup, best = list(members), value
    return tuple(soup)


def cook(
    wanted: Sequence[str],
    models: tuple[str, ...],
    labels: Mapping[str, str],
    values: Mapping[str, float],
    dtype: str,
    value_of: Callable[[str, Recipe], float | None],
) -> list[tuple[Recipe, float]]:
    """Score the uniform soup and those wanted that hang on the models' values.

    Args:
        wanted: some of SOUPS.
        models: in the campaign's order.
        labels, values: of the models, by name.
        dtype: of the soups.
        value_of: scores a soup under a label, or tells what it scored.

    Returns:
        Each soup of weights that was scored, and its value.
    """
    found: list[tuple[Recipe, float | None]] = []
    if not models:
        return []

    def taste(label: str, soup: Recipe) -> float | None:
        found.append((soup, value_of(label, soup)))
        return found[-1][1]

    if len(models) > 1:
        taste("uniform", uniform(models, dtype))
    if "metrics" in wanted:
        taste("metrics", by_metrics(models, values, dtype))
    if "greedy" in wanted:
        greedy(
            models,
            values,
            dtype,
            lambda members, soup: taste("greedy " + "+".join(labels[m] for m in members), soup),
        )
    return [(soup, value) for soup, value in found if value is not None]


def seasoned(recipe: Recipe, soup: Recipe) -> Recipe:
    """Return `recipe` with the weights of a linear soup in all its groups."""
    weights = dict(zip(soup.models, soup.groups[0].values["weight"], strict=True))
    weight = tuple(weights.get(model, 0.0) for model in recipe.models)
    groups = (replace(g, values=dict(g.values) | {"weight": weight}) for g in recipe.groups)
    return replace(recipe, groups=tuple(groups))
