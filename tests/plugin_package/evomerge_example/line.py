"""A (1+1) search along random directions."""

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


class LineSection(ControllerSection):
    """Options of the search along lines."""

    kind: Literal["line"] = "line"
    step: Number = option("length of a step, as a share of the box", 0.3, gt=0, le=1)


@controller(LineSection)
class LineSearch(Controller):
    """Steps along random directions from the best so far."""

    def __init__(self, problem: Problem, options: LineSection):
        self._rng = np.random.default_rng(problem.seed)
        self._best, self._rank = np.asarray(problem.start, float), (-np.inf, -np.inf)
        self._step = options.step

    def ask(self, n: int) -> list[Proposal]:
        found = []
        for _ in range(n):
            way = self._rng.normal(size=len(self._best))
            length = self._step * self._rng.random()
            found.append(
                Proposal(np.clip(self._best + length * way / np.linalg.norm(way), 0.0, 1.0))
            )
        return found

    def tell(self, feedback: Feedback) -> None:
        if feedback.genome is None or feedback.value is None:
            return
        rank = (-feedback.violation, feedback.value)
        if rank > self._rank:
            self._rank, self._best = rank, feedback.genome
