"""Uniform random search: the baseline that every search is compared with."""

from typing import Literal

import numpy as np

from evomerge.search.controllers import (
    CANDIDATES_A_PART,
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    controller,
)


class RandomSection(ControllerSection):
    """Random search has no options.

    >>> RandomSection()
    RandomSection(kind='random')
    """

    kind: Literal["random"] = "random"


@controller(RandomSection)
class RandomSearch(Controller):
    """Draws every genome uniformly from [0, 1]^d, whatever it is told (Bergstra & Bengio 2012).

    >>> problem = Problem(dimension=2, seed=1, start=np.full(2, 0.5))
    >>> len(RandomSearch(problem, RandomSection()).ask(3))
    3
    """

    learns = False

    def __init__(self, problem: Problem, options: RandomSection):
        self._rng = np.random.default_rng(problem.seed)
        self._dimension = problem.dimension
        self._asked = 0

    def ask(self, n: int) -> list[Proposal]:
        proposals = []
        for genome in self._rng.random((n, self._dimension)):
            proposals.append(Proposal(genome, part=self._asked // CANDIDATES_A_PART))
            self._asked += 1
        return proposals

    def tell(self, feedback: Feedback) -> None:
        """Learn nothing."""
