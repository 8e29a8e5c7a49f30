"""A mixture as a merge plan: each run of elements is a weighted sum of its own."""

from collections.abc import Sequence

import torch

from evomerge.errors import CandidateFailure
from evomerge.kernels.merge_plan import MergePlan, SegmentedSums
from evomerge.merging.source_weights import SourceWeights
from evomerge.recipes.mixture import MixtureRecipe
from evomerge.recipes.parameter_index import ParameterIndex


class MixtureMerge:
    """Plans the merges of one mixture.

    >>> import numpy as np
    >>> from evomerge.recipes.mixture import Chromosome
    >>> index = ParameterIndex({"w": 4})
    >>> halves = Chromosome(None, np.array([0, 2, 4]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> recipe = MixtureRecipe(("a", "b"), (halves,), "float32", index.hash)
    >>> MixtureMerge(recipe, index, SourceWeights({}, torch.device("cpu"))).dtype
    torch.float32
    """

    def __init__(self, recipe: MixtureRecipe, index: ParameterIndex, weights: SourceWeights):
        """
        Args:
            recipe: what to merge.
            index: of its models' parameters.
            weights: of its models.

        Raises:
            CandidateFailure: the recipe is of another index.
        """
        same = index.hash == recipe.parameter_index_hash
        if not same or index.total != recipe.chromosomes[0].edges[-1]:
            wrong = "the recipe is of models whose tensors have other names or sizes"
            raise CandidateFailure(wrong)
        self._recipe, self._index, self._weights = recipe, index, weights
        self.dtype: torch.dtype = getattr(torch, recipe.dtype)

    @property
    def remade(self) -> bool:
        """Whether operands are made anew for each merge, and so should be few at a time."""
        models = self._recipe.models
        return self._weights.adapted(models) or not self._weights.keeps(models)

    def plan(self, names: Sequence[str], again: bool = False) -> MergePlan:
        """Return the plan by which some tensors are merged; see `MethodMerge.plan`."""
        starts, coefficients = [], []
        for name in names:
            begins, rows = self._recipe.runs(name, *self._index.span[name])
            starts.append(begins)
            coefficients.append(rows)
        sums = SegmentedSums(tuple(names), tuple(starts), tuple(coefficients))
        operands = self._weights.operands(dict.fromkeys(names, self._recipe.models), keep=again)
        return MergePlan(operands, self.dtype, (sums,))
