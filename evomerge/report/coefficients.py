"""The numbers that recipes are made of, by place and model, whatever their kind.

A recipe of parameters has coefficients by layers and modules; a mixture has them along the
parameters in their order; a routed one has the times that a token passes a layer. Weights that were
bred and mutated have none.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from evomerge.recipes.mixture import Chromosome, MixtureRecipe
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe

BINS = 40  # of a mixture's parameters, each of as many

ALL = "all models"


class Coefficient(NamedTuple):
    """One number of a recipe.

    Attributes:
        parameter: of the merge method, as weight or density; or what the number counts.
        place: layers, or where else in the model.
        module: a substring of tensor names; "" for all others.
        model: a label; `ALL` where one number is for all.
        value: the number.

    >>> Coefficient("weight", "layers 0–3", "mlp", "ja", 0.5).key
    ('weight', 'layers 0–3', 'mlp', 'ja')
    """

    parameter: str
    place: str
    module: str
    model: str
    value: float

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is the value of."""
        return self.parameter, self.place, self.module, self.model


def coefficients(
    recipe: Recipe, label: Callable[[str], str], bins: int = BINS
) -> list[Coefficient]:
    """Return the numbers of a recipe, in its order; none where it has none.

    Args:
        recipe: of any kind.
        label: of a model, by the name that the recipe has for it.
        bins: into which a mixture's parameters are divided.

    >>> from evomerge.recipes.parameters import uniform
    >>> [(c.model, c.place, c.value) for c in coefficients(uniform(("a", "b"), "float32"), str)]
    [('a', 'all layers', 0.5), ('b', 'all layers', 0.5)]
    """
    if isinstance(recipe, ParametersRecipe):
        return [one for group in recipe.groups for one in _of_group(recipe, group, label)]
    if isinstance(recipe, MixtureRecipe):
        models = [label(model) for model in recipe.models]
        return [one for c in recipe.chromosomes for one in _of_chromosome(c, models, bins)]
    if isinstance(recipe, RoutingRecipe):
        return _of_path(recipe, label)
    return []


def place_of(layers: tuple[int, int] | str | None) -> str:
    """Return the name of a group's layers.

    >>> place_of((0, 4)), place_of((4, 5)), place_of("embed"), place_of(None)
    ('layers 0–3', 'layer 4', 'embeddings', 'all layers')
    """
    if layers is None:
        return "all layers"
    if isinstance(layers, str):
        return {"embed": "embeddings", "norm": "final norm"}.get(layers, layers)
    first, last = layers
    return f"layer {first}" if last == first + 1 else f"layers {first}–{last - 1}"


def _of_group(
    recipe: ParametersRecipe, group: Group, label: Callable[[str], str]
) -> list[Coefficient]:
    place, module = place_of(group.layers), group.modules or ""
    several = len(recipe.methods) > 1
    found = []
    for name, value in group.values.items():
        parameter = f"{name} ({group.method or recipe.method})" if several else name
        if isinstance(value, tuple | list):
            for model, number in zip(recipe.models, value, strict=True):
                found.append(Coefficient(parameter, place, module, label(model), float(number)))
        else:
            found.append(Coefficient(parameter, place, module, ALL, float(value)))
    return found


def _of_chromosome(chromosome: Chromosome, models: Sequence[str], bins: int) -> list[Coefficient]:
    """Return each model's mean coefficient over each of as many parameters."""
    edges, rows = chromosome.edges.astype(float), chromosome.coefficients
    cuts = np.linspace(edges[0], edges[-1], bins + 1)
    # integrals from the first parameter on are piecewise linear, so exact where they are asked for
    sums = np.concatenate(
        [np.zeros((1, rows.shape[1])), np.cumsum(rows * np.diff(edges)[:, None], 0)]
    )
    found = []
    for column, model in enumerate(models):
        means = np.diff(np.interp(cuts, edges, sums[:, column])) / np.diff(cuts)
        for number, mean in enumerate(means):
            place = f"{number / bins:.1%} to {(number + 1) / bins:.1%}"
            found.append(Coefficient("weight", place, chromosome.modules or "", model, float(mean)))
    return found


def _of_path(recipe: RoutingRecipe, label: Callable[[str], str]) -> list[Coefficient]:
    """Return how often each layer of each model that is listed is passed."""
    depth = max(hop.layer for hop in recipe.path) + 1
    passes = np.zeros((len(recipe.models), depth))
    for hop in recipe.path:
        passes[hop.model, hop.layer] += 1
    return [
        Coefficient("passes", f"layer {layer}", "", label(model), passes[index, layer])
        for index, model in enumerate(recipe.models)
        for layer in range(depth)
    ]
