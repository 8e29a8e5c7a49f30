"""The explicit space: individuals are weights, crossed and mutated; for models that are small.

M2N2's evolution from random weights (arXiv:2508.16204, section 4.1).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from evomerge.errors import Fault
from evomerge.recipes.lineage import Birth, ExplicitRecipe
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.recipes.recipe import Recipe
from evomerge.search.spaces import RESOLUTION, BreedingSpace, SourceShapes, SpaceSection, space
from evomerge.sections import Flag, Number, option


class ExplicitSection(SpaceSection):
    """How weights are crossed and mutated.

    >>> ExplicitSection(sigma=0.0).interpolation
    'slerp'
    """

    kind: Literal["explicit"] = "explicit"
    sigma: Number = option(
        "standard deviation of the noise added to every weight; 0 for none", 0.01, ge=0
    )
    interpolation: Literal["slerp", "lerp"] = option("how two weights are mixed", "slerp")
    crossover: Flag = option("cross two parents; if not, a child is one parent with noise", True)
    split: Flag = option("exchange the shares of the parents from a split point on", True)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        if fields.get("sigma") == 0 and fields.get("crossover") is False:
            wrong = "without crossover and without noise every child is its parent"
            yield Fault("sigma", wrong, "raise sigma above 0")


@space(ExplicitSection)
class ExplicitSpace(BreedingSpace):
    """Crosses two individuals at a split point and adds Gaussian noise of deviation `sigma`.

    A genome is (mix, split, noise), the last the seed of the noise. As in the authors' code, the
    angle of slerp is that of the whole vectors, on both sides of the split.

    >>> shapes = SourceShapes(None, ("a", "b"), ("a", "b"), 1, "float32", 0, {"w": 4})
    >>> space = ExplicitSpace(ExplicitSection(split=False), shapes)
    >>> space.names
    ['mix', 'noise']
    """

    def __init__(self, options: ExplicitSection, shapes: SourceShapes):
        self.shapes, self._options = shapes, options
        self.dtype = "float32"
        self.index = ParameterIndex(shapes.tensors)

    @property
    def names(self) -> list[str]:
        """One readable name per gene."""
        names = []
        if self._options.crossover:
            names.append("mix")
        if self._options.crossover and self._options.split:
            names.append("split")
        if self._options.sigma:
            names.append("noise")
        return names

    @property
    def first(self) -> Recipe:
        return self.single(self.shapes.models[0])

    def cross(
        self, genome: np.ndarray, parents: Sequence[Recipe], ids: Sequence[str]
    ) -> ExplicitRecipe:
        """Return the child of two parents, whose recipes have these ids.

        Args:
            genome: (dimension,) float64, multiples of 2^-24 in [0, 1].
            parents: their recipes.
            ids: of the recipes.
        """
        genes = dict(zip(self.names, map(float, genome), strict=True))
        mix = genes.get("mix", 0.0)
        split = int(genes.get("split", 1.0) * self.index.total)
        seed = round(genes.get("noise", 0.0) / RESOLUTION)
        mates = (ids[0], ids[-1] if self._options.crossover else ids[0])
        birth = Birth(mates, mix, split, self._options.sigma, seed)
        return ExplicitRecipe(
            self.shapes.models, (birth,), self.index.hash, self._options.interpolation
        )
