"""Natural niches (M2N2, arXiv:2508.16204): an archive of individuals that share resources.

Every item is a resource that the individuals which solve it share, so those that solve what
few others do live on; a mate is sought among those that solve what one does not.

Individuals are compared item by item, so all of them need scores of the same items. Scored in
parts, an epoch has one part; at its end every individual is scored on the next part, and the search
goes on from these scores.
"""

from typing import Literal

import numpy as np

from evomerge.errors import EvomergeError
from evomerge.search.controllers import (
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    controller,
)
from evomerge.sections import Flag, Number, Whole, option


class NichesSection(ControllerSection):
    """Options of natural niches.

    >>> NichesSection().population
    15
    """

    kind: Literal["niches"] = "niches"
    population: Whole = option("individuals in the archive", 15, unit="individuals", ge=2)
    alpha: Number = option("competition; 0 for none, which is a genetic algorithm", 1.0, ge=0)
    attraction: Flag = option(
        "choose the second parent by what the first does not solve, not by fitness", True
    )
    warmup: Whole = option(
        "at most so many first children of evenly drawn parents, until the archive is full",
        50,
        unit="children",
        ge=0,
    )
    epoch: Whole = option(
        "children that are scored on one part of the items, before all individuals are scored on"
        " the next; without a meaning where all items are scored",
        60,
        unit="children",
        ge=1,
    )
    subtract_worst: Flag = option(
        "take each item's worst score from all before sharing, which sharpens the competition on"
        " scores between 0 and 1",
        False,
    )


@controller(NichesSection)
class NaturalNiches(Controller):
    """Steady state: every child that is told competes for a place, with any number in flight.

    Where the authors' code differs from their paper, or stops: a resource that nobody uses
    counts as used once (the code's rule; the paper adds an epsilon); its size is the best score
    on it (paper); where nobody solves what the first parent does not, its mate is drawn evenly
    (the code divides 0 by 0); equals are displaced at random (the code: the first).

    >>> search = NaturalNiches(Problem(2, 1, np.full(2, 0.5)), NichesSection())
    >>> items = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    >>> for candidate, scores in enumerate(items, start=1):
    ...     search.tell(Feedback(None, None, 0.5, (0.5,), 0.0, candidate, scores, breeds=True))
    >>> sorted(search.ask(1)[0].parents)
    [1, 2]
    """

    breeds = True
    reads_items = True

    def __init__(self, problem: Problem, options: NichesSection):
        self._rng = np.random.default_rng(problem.seed)
        self._dimension, self._options = problem.dimension, options
        self._in_parts = problem.parts > 1
        self._asked = self._children = self._bred = 0
        self._members: list[int] = []
        self._violations: list[float] = []
        self._scores = np.zeros((0, 0))  # (members, items)
        self._part = -1  # of the epoch, whose number it has
        self._waiting: list[int] = []  # individuals that are to be scored on the part
        self._again: dict[int, int] = {}  # ordinal -> individual, of those that are scored now
        self._epochs: dict[int, int] = {}  # ordinal -> epoch, of children in flight

    @property
    def members(self) -> tuple[int, ...]:
        """The numbers of the candidates that have a place now, the oldest first."""
        return tuple(self._members)

    def ask(self, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        while len(proposals) < n and (proposal := self._propose()) is not None:
            self._asked += 1
            proposals.append(proposal)
        return proposals

    def _propose(self) -> Proposal | None:
        """Return a child, or an individual for the new epoch; None while that is scored."""
        if not self._in_parts:
            return self._child()
        if self._part < 0 or self._bred >= self._options.epoch:
            self._begin_epoch()
        if self._waiting:
            again = self._waiting.pop(0)
            self._again[self._asked] = again
            return Proposal(np.zeros(self._dimension), (again,), self._part, again)
        if self._again:
            return None
        self._epochs[self._asked] = self._part
        return self._child()._replace(part=self._part)

    def _begin_epoch(self) -> None:
        """Let all individuals be scored on the next part of the items."""
        self._part, self._bred = self._part + 1, 0
        self._waiting = list(self._members)
        self._members, self._violations = [], []
        self._scores = np.zeros((0, 0))

    def _child(self) -> Proposal:
        if not self._members:
            raise EvomergeError("no source that could be a parent was scored; mend the sources")
        filling = (
            len(self._members) < self._options.population and self._children < self._options.warmup
        )
        first, second = self._pair() if filling else self._mates()
        self._children += 1
        self._bred += 1
        parents = (self._members[first], self._members[second])
        return Proposal(self._rng.random(self._dimension), parents)

    def _pair(self) -> tuple[int, int]:
        if len(self._members) == 1:
            return 0, 0
        first, second = self._rng.choice(len(self._members), 2, replace=False)
        return int(first), int(second)

    def _mates(self) -> tuple[int, int]:
        """Draw a first parent by fitness, and its mate by attraction to what it lacks."""
        shared = self._shared(self._scores)
        fitness = shared.sum(axis=1)
        first = self._roulette(fitness)
        if self._options.attraction:
            # g(A, B) = sum_j c_j / z_j^alpha max(s(x_j|B) - s(x_j|A), 0)  (equation 4;
            # with equation 5's alpha, as in the authors' code)
            lacking = shared - shared[first]
            fitness = np.maximum(lacking, 0.0, out=lacking).sum(axis=1)
        fitness[first] = 0.0
        return first, self._roulette(fitness, without=first)

    def _roulette(self, weights: np.ndarray, without: int | None = None) -> int:
        """Draw a member in proportion to its weight; evenly, but for one, where all are 0."""
        total = weights.sum()
        if total <= 0.0:
            weights = np.ones(len(self._members))
            if without is not None and len(weights) > 1:
                weights[without] = 0.0
            total = weights.sum()
        # as `Generator.choice` draws one, without its checks
        shares = (weights / total).cumsum()
        return int((shares / shares[-1]).searchsorted(self._rng.random(), side="right"))

    def _shared(self, scores: np.ndarray) -> np.ndarray:
        """Return each member's share of every resource, (members, items) float64 (equation 5)."""
        if self._options.subtract_worst:
            scores = scores - scores.min(axis=0)
        used = scores.sum(axis=0)
        size = scores.max(axis=0, initial=0.0)
        return scores * (size / np.where(used > 0.0, used, 1.0) ** self._options.alpha)  # (5)

    def tell(self, feedback: Feedback) -> None:
        candidate = feedback.candidate
        if feedback.ordinal is not None:
            candidate = self._again.pop(feedback.ordinal, candidate)
            if self._epochs.pop(feedback.ordinal, self._part) != self._part:
                return  # a child of the epoch before, whose items others are not scored on
        if feedback.value is None or feedback.items is None or not feedback.breeds:
            return
        if candidate in self._members:
            return
        if self._in_parts and self._part < 0:
            self._members.append(candidate)  # it is scored on a part when the first epoch begins
            return
        self._members.append(candidate)
        self._violations.append(feedback.violation)
        row = feedback.items[None].astype(np.float64)
        self._scores = np.concatenate([self._scores, row]) if self._scores.size else row
        if len(self._members) > self._options.population:
            worst = self._worst()
            del self._members[worst], self._violations[worst]
            self._scores = np.delete(self._scores, worst, axis=0)

    def _worst(self) -> int:
        """Return who has no place: the one that misses constraints most, or of least fitness."""
        fitness = self._shared(self._scores).sum(axis=1)
        violations = np.array(self._violations)
        order = np.lexsort((self._rng.random(len(fitness)), fitness, -violations))
        return int(order[0])
