"""Points that fill the box evenly, whatever is found."""

from typing import Literal

import numpy as np

from evomerge.search.controllers import (
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    controller,
)
from evomerge.sections import Number, option


class SweepSection(ControllerSection):
    """Options of the sweep."""

    kind: Literal["sweep"] = "sweep"
    share: Number = option("of the box that is filled, around its middle", 1.0, gt=0, le=1)


@controller(SweepSection)
class Sweep(Controller):
    """Multiples of an irrational step in each gene, modulo 1, from a drawn begin."""

    learns = False

    def __init__(self, problem: Problem, options: SweepSection):
        self._rng = np.random.default_rng(problem.seed)
        self._at = self._rng.random(problem.dimension)
        self._step = np.sqrt(np.arange(2, 2 + problem.dimension)) % 1.0
        self._share = options.share

    def ask(self, n: int) -> list[Proposal]:
        found = []
        for _ in range(n):
            self._at = (self._at + self._step + 0.618) % 1.0
            found.append(Proposal(0.5 + self._share * (self._at - 0.5)))
        return found

    def tell(self, feedback: Feedback) -> None:
        """Learn nothing."""
