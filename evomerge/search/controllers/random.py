"""Uniform random search: the baseline that every search is compared with."""

import numpy as np

from evomerge.search.controllers import Proposal, Told, controller


@controller("random")
class RandomSearch:
    """Draws every genome uniformly from [0, 1]^d, whatever it is told (Bergstra & Bengio 2012)."""

    def __init__(self, *, dimension: int, seed: int, start: np.ndarray, objectives: int = 1):
        self._rng = np.random.default_rng(seed)
        self._dimension = dimension

    def ask(self, n: int) -> list[Proposal]:
        return [Proposal(genome) for genome in self._rng.random((n, self._dimension))]

    def tell(self, told: Told) -> None:
        """Learn nothing."""
