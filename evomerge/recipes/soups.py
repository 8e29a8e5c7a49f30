"""Soups of the sources, without a search: baselines to beat, and where a search may begin."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from evomerge.recipes.category_soup import TENTHS, category_experts, climb
from evomerge.recipes.parameters import Group, ParametersRecipe, uniform

SOUPS = ("model_stock", "metrics", "greedy", "soce")


def model_stock(models: tuple[str, ...], base: str, dtype: str) -> ParametersRecipe:
    """Return Model Stock's recipe: per tensor, as far to the average as the models agree.

    >>> model_stock(("a", "b"), "base", "float32").method
    'model_stock'
    """
    group = Group(None, None, {"scale": 1.0})
    return ParametersRecipe("model_stock", models, (group,), base, dtype)


def by_metrics(
    models: tuple[str, ...], values: Mapping[str, float], dtype: str
) -> ParametersRecipe:
    """Return the average weighed by the models' own values.

    That is metrics-weighted averaging (arXiv:2504.18580).

    Args:
        models: to average.
        values: of each model, 0 for the worst source; one that has none weighs nothing. Equal
            weights where no value is above 0.
        dtype: of the soup.

    >>> by_metrics(("a", "b", "c"), {"a": 3.0, "b": 1.0}, "float32").groups[0].values
    {'weight': (0.75, 0.25, 0.0)}
    """
    worth = np.array([max(values.get(model, 0.0), 0.0) for model in models])
    if not worth.any():
        return uniform(models, dtype)
    return _average(models, tuple(float(share) for share in worth / worth.sum()), dtype)


def _average(models: tuple[str, ...], weight: tuple[float, ...], dtype: str) -> ParametersRecipe:
    group = Group(None, None, {"weight": weight})
    return ParametersRecipe("linear", models, (group,), dtype=dtype)


def greedy(
    models: Sequence[str],
    values: Mapping[str, float],
    dtype: str,
    value_of: Callable[[tuple[str, ...], ParametersRecipe], float | None],
) -> tuple[str, ...]:
    """Return the greedy soup's members (Wortsman et al. 2022, arXiv:2203.05482, recipe 1).

    From the best model on, each next one stays if their uniform average gets no worse.

    Args:
        models: to take from; those without a value are left out.
        values: of each model by itself.
        dtype: of the soups.
        value_of: scores a soup of members; None if it failed.

    >>> scores = {("a", "b"): 0.4, ("a", "c"): 0.6}
    >>> greedy("abc", {"a": 0.5, "b": 0.3, "c": 0.2}, "float32", lambda soup, _: scores[soup])
    ('a', 'c')
    """
    ranked = sorted((model for model in models if model in values), key=lambda m: -values[m])
    if not ranked:
        return ()
    soup: tuple[str, ...] = (ranked[0],)
    best = values[ranked[0]]
    for model in ranked[1:]:
        larger = (*soup, model)
        value = value_of(larger, uniform(larger, dtype))
        if value is not None and value >= best:
            soup, best = larger, value
    return soup


def cook(
    wanted: Sequence[str],
    models: tuple[str, ...],
    labels: Mapping[str, str],
    values: Mapping[str, float],
    categories: Mapping[str, Sequence[float]],
    dtype: str,
    value_of: Callable[[str, ParametersRecipe], float | None],
) -> list[tuple[ParametersRecipe, float]]:
    """Score the uniform soup, and those wanted that depend on the models' values.

    Args:
        wanted: some of SOUPS.
        models: in the campaign's order.
        labels: of the models, by name.
        values: of the models, by name.
        categories: of the same models, by name, their scores of each objective, more is better.
        dtype: of the soups.
        value_of: scores a soup under a label, or says what it scored.

    Returns:
        Each soup of weights that was scored, and its value.

    >>> def value_of(label, soup):
    ...     print(label, soup.groups[0].values["weight"])
    ...     return 0.5
    >>> soups = cook(["metrics"], ("a", "b"), {}, {"a": 3.0, "b": 1.0}, {}, "float32", value_of)
    uniform (0.5, 0.5)
    metrics (0.75, 0.25)
    """
    scored: list[tuple[ParametersRecipe, float]] = []

    def score(label: str, soup: ParametersRecipe) -> float | None:
        value = value_of(label, soup)
        if value is not None:
            scored.append((soup, value))
        return value

    def score_members(members: tuple[str, ...], soup: ParametersRecipe) -> float | None:
        return score("greedy " + "+".join(labels[model] for model in members), soup)

    def score_shares(experts: tuple[str, ...], tenths: tuple[int, ...]) -> float | None:
        shares = {m: tenth / TENTHS for m, tenth in zip(experts, tenths, strict=True) if tenth}
        label = "soce " + "+".join(f"{labels[model]} {share}" for model, share in shares.items())
        return score(label, _average(tuple(shares), tuple(shares.values()), dtype))

    if len(models) > 1:
        score("uniform", uniform(models, dtype))
    if models and "metrics" in wanted:
        score("metrics", by_metrics(models, values, dtype))
    if "greedy" in wanted:
        greedy(models, values, dtype, score_members)
    if models and "soce" in wanted:
        experts = tuple(category_experts(categories, values))[:TENTHS]
        if len(experts) > 1:  # a single one is scored already
            climb(len(experts), lambda tenths: score_shares(experts, tenths))
    return scored


def seasoned(recipe: ParametersRecipe, soup: ParametersRecipe) -> ParametersRecipe:
    """Return `recipe` with the weights of a linear soup in all its groups.

    >>> recipe = uniform(("a", "b", "c"), "float32")
    >>> seasoned(recipe, by_metrics(("b", "a"), {"a": 1.0, "b": 3.0}, "float32")).groups[0].values
    {'weight': (0.25, 0.75, 0.0)}
    """
    values = soup.groups[0].values["weight"]
    assert isinstance(values, tuple)  # linear has one weight a model
    weights = dict(zip(soup.models, values, strict=True))
    weight = tuple(weights.get(model, 0.0) for model in recipe.models)
    groups = []
    for group in recipe.groups:
        groups.append(replace(group, values={**group.values, "weight": weight}))
    return replace(recipe, groups=tuple(groups))
