"""Recipes that are weighted sums of their sources, as mixtures of the same weights."""

from collections.abc import Sequence

import numpy as np

from evomerge.errors import BadInput, CandidateFailure, Fault
from evomerge.merging.validation import by_method, group_index, method_of, values_in
from evomerge.recipes.mixture import Chromosome, MixtureRecipe
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe


def as_mixture(
    recipe: Recipe,
    models: Sequence[str],
    index: ParameterIndex,
    modules: Sequence[str | None] = (None,),
    dtype: str | None = None,
) -> MixtureRecipe:
    """Return the mixture over `models` that merges to the same weights as `recipe`.

    Args:
        recipe: a mixture, or one whose methods weigh their models by numbers that do not depend
            on the weights: `linear`, and `task_arithmetic`, W_0 + sum c_k (W_k - W_0), which is
            (1 - sum c_k) W_0 + sum c_k W_k.
        models: of the mixture, the sources of the recipe among them.
        index: of their parameters.
        modules: of each chromosome, the last None.
        dtype: of the merged weights; the recipe's by default.

    Raises:
        BadInput: the recipe is no such sum, is of other sources, or of another parameter index.

    >>> from evomerge.recipes.parameters import Group
    >>> index = ParameterIndex({"embed_tokens.weight": 6, "lm_head.weight": 4})
    >>> groups = Group("embed", None, {"weight": (1.5,)}), Group("head", None, {"weight": (0.5,)})
    >>> recipe = ParametersRecipe("task_arithmetic", ("a",), groups, base="base")
    >>> chromosome = as_mixture(recipe, ("base", "a"), index).chromosomes[0]
    >>> chromosome.edges.tolist(), chromosome.coefficients.tolist()
    ([0, 6, 10], [[-0.5, 1.5], [0.5, 0.5]])
    """
    for source in recipe.sources:
        if source not in models:
            wrong = f"has {source}, which is none of the models that are mixed"
            raise BadInput(Fault("", wrong, f"take a recipe of {', '.join(models)}"))
    match recipe:
        case MixtureRecipe():
            edges, rows = _of_mixture(recipe, index)
            columns = recipe.models
        case ParametersRecipe():
            columns = recipe.sources
            edges, rows = index.edges, _of_methods(recipe, columns, index)
        case _:
            wrong = f"of kind {recipe.kind}, it is no weighted sum of its models"
            raise BadInput(Fault("", wrong, _MEND))
    coefficients = np.zeros((len(rows), len(models)))
    for column, source in enumerate(columns):
        coefficients[:, models.index(source)] += rows[:, column]
    chromosomes = tuple(Chromosome(m, edges, coefficients).joined() for m in modules)
    return MixtureRecipe(tuple(models), chromosomes, dtype or recipe.dtype, index.hash)


_MEND = "take a mixture, or a recipe of task_arithmetic or linear"


def _of_mixture(recipe: MixtureRecipe, index: ParameterIndex) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of a mixture's segments, whatever its chromosomes, and their rows."""
    if recipe.parameter_index_hash != index.hash:
        wrong = "is of models whose tensors have other names or sizes"
        raise BadInput(Fault("parameter_index_hash", wrong, "take a recipe of the same models"))
    if len(recipe.chromosomes) == 1:
        return recipe.chromosomes[0].edges, recipe.chromosomes[0].coefficients
    starts, rows = [], []
    for name, (first, last) in index.span.items():
        begins, of_tensor = recipe.runs(name, first, last)
        starts.append(begins + first)
        rows.append(of_tensor)
    return np.append(np.concatenate(starts), index.total), np.concatenate(rows)


def _of_methods(
    recipe: ParametersRecipe, columns: Sequence[str], index: ParameterIndex
) -> np.ndarray:
    """Return each tensor's coefficients by a recipe of methods, (tensors, columns) float64."""
    rows_of_groups: dict[int, np.ndarray] = {}
    parts = by_method(recipe)
    rows = []
    for name in index.names:
        try:
            number = group_index(recipe, name)
        except CandidateFailure as error:
            raise BadInput(Fault("groups", str(error), "end with a group of all")) from None
        if number not in rows_of_groups:
            group = recipe.groups[number]
            part = parts[group.method or recipe.method]
            method = method_of(part)
            if method.family != "linear" or method.needs_gram:
                wrong = f"{method.name} is no weighted sum whose weights are numbers of the recipe"
                raise BadInput(Fault("method", wrong, _MEND))
            weights = method.function(**values_in(part, method, group))
            assert isinstance(weights, np.ndarray), "a method is of one family"
            row = np.zeros(len(columns))
            for model, weight in zip(recipe.models, weights, strict=True):
                row[columns.index(model)] += weight
            if method.takes_base and recipe.base is not None:
                row[columns.index(recipe.base)] += 1.0 - weights.sum()
            rows_of_groups[number] = row
        rows.append(rows_of_groups[number])
    return np.array(rows)
