"""The explicit space: individuals are weights, crossed and mutated; for models that are small.

M2N2's evolution from random weights (arXiv:2508.16204, section 4.1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.errors import Checks, Fault
from evomerge.recipes.lineage import Birth, Explicit
from evomerge.recipes.mixture import Layout
from evomerge.recipes.parameters import Recipe, single
from evomerge.registry import fits
from evomerge.search.spaces import RESOLUTION, Sources, space


@space("explicit", breeds=True)
class ExplicitSpace:
    """Crosses two individuals at a split point and adds Gaussian noise of deviation `sigma`.

    A genome is (mix, split, noise), the last the seed of the noise. The authors' angle of slerp
    is that of the whole vectors, on both sides of the split.
    """

    keys = ("kind", "sigma", "interpolation", "crossover", "split")

    carries = True  # weights travel with a job: the recipe tells only the last birth

    def __init__(self, spec: Mapping[str, Any], sources: Sources):
        self.sources = sources
        self.sigma = float(spec.get("sigma", 0.01))
        self.interpolation = spec.get("interpolation", "slerp")
        self.crossover, self.split = spec.get("crossover", True), spec.get("split", True)
        self.dtype = "float32"
        self.layout = Layout(sources.tensors)

    @property
    def names(self) -> list[str]:
        """One readable name per gene."""
        return [
            *(("mix",) if self.crossover else ()),
            *(("split",) if self.crossover and self.split else ()),
            *(("noise",) if self.sigma else ()),
        ]

    @property
    def dimension(self) -> int:
        return len(self.names)

    @property
    def start(self) -> np.ndarray:
        return np.full(self.dimension, 0.5)

    @property
    def first(self) -> Recipe:
        """The first model by itself."""
        return single(self.sources.models[0], self.dtype)

    def takes(self, candidate: Any) -> bool:
        """Tell whether a candidate may be a parent: a model, or a child of this search."""
        return candidate.origin != "baseline" or candidate.label in self.sources.labels

    def cross(
        self, genome: np.ndarray, parents: Sequence[Recipe | Explicit], ids: Sequence[str]
    ) -> Explicit:
        """Return the child of two parents, whose recipes have these ids.

        Args:
            genome: (dimension,) float64, multiples of 2^-24 in [0, 1].
            parents: their recipes.
            ids: of the recipes.
        """
        genes = dict(zip(self.names, map(float, genome), strict=True))
        mix = genes.get("mix", 0.0)
        split = int(genes.get("split", 1.0) * self.layout.total)
        seed = round(genes.get("noise", 0.0) / RESOLUTION)
        mates = (ids[0], ids[-1] if self.crossover else ids[0])
        birth = Birth(mates, mix, split, self.sigma, seed)
        return Explicit(self.sources.models, (birth,), self.layout.hash, self.interpolation)

    @classmethod
    def faults(
        cls, spec: Mapping[str, Any], labels: Sequence[str], base: bool, file: str
    ) -> list[Fault]:
        """Return what is wrong with a campaign's `space` mapping of this kind."""
        checks = Checks(spec, cls.keys, file, "space.")
        need, faults = checks.need, checks.faults
        sigma = spec.get("sigma", 0.01)
        need("sigma", fits(sigma, float) and sigma >= 0, "write a number of at least 0")
        said = spec.get("interpolation", "slerp")
        need("interpolation", said in ("lerp", "slerp"), "write lerp or slerp")
        for key in ("crossover", "split"):
            need(key, isinstance(spec.get(key, True), bool), "write true or false")
        if not faults and sigma == 0 and spec.get("crossover", True) is False:
            wrong = "without crossover and without noise every child is its parent"
            faults.append(Fault(file, "space.sigma", wrong, "raise sigma above 0"))
        return faults
