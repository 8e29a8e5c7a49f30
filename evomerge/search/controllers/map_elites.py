"""MAP-Elites (Mouret & Clune 2015, arXiv:1504.04909) over a grid of the objectives; and CycleQD.

Children vary by iso+line (Vassiliades & Mouret 2018, arXiv:1804.03906). CycleQD (Kuroki et al.
2024, arXiv:2410.14735) keeps one archive per objective, and looks at them in turn; its crossing
and mutating of weights is not here, where children are genomes.

Scored in parts, a lucky candidate would keep its cell for ever. So elites are scored again, on
other items, and what counts of each is its mean less its standard error: one that has been scored
but once must be better by much to take the place of one that is well known.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from evomerge.errors import Fault
from evomerge.search.controllers import (
    CANDIDATES_A_PART,
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    controller,
)
from evomerge.sections import Flag, Number, Whole, option


class Elite(NamedTuple):
    """The best that was told of a cell: less violation first, then more quality.

    >>> worse = Elite(0.0, 0.25, np.zeros(2), (0.25,))
    >>> Elite(0.0, 0.5, np.ones(2), (0.5,)).beats(worse), worse.beats(None)
    (True, True)
    """

    violation: float
    quality: float
    genome: np.ndarray
    objectives: tuple[float, ...]
    candidate: int = 0

    def beats(self, other: "Elite | None") -> bool:
        """Tell whether this one takes the other's cell."""
        if other is None:
            return True
        return (-self.violation, self.quality) > (-other.violation, other.quality)


class _Known:
    """All that was told of one genome."""

    def __init__(self, genome: np.ndarray):
        self.genome = genome
        self.cells: list[tuple[int, ...]] = []  # in each archive
        self._told: list[Feedback] = []

    @property
    def times(self) -> int:
        """How often it was scored."""
        return len(self._told)

    def add(self, feedback: Feedback) -> None:
        self._told.append(feedback)

    @property
    def objectives(self) -> np.ndarray:
        """The (objectives,) float64 means over all its scorings."""
        return np.mean([told.objectives or () for told in self._told], axis=0)

    def elite(self, candidate: int, focus: int | None) -> Elite:
        """Return it as an elite, by its value or by one objective, less the standard error."""
        objectives = self.objectives
        errors = np.square([told.errors or (0.0,) for told in self._told]).sum(axis=0)
        errors = np.sqrt(errors) / self.times
        violation = float(np.mean([told.violation for told in self._told]))
        if focus is None:  # the value's error as though objectives weighed the same
            mean = float(np.mean([told.value or 0.0 for told in self._told]))
            quality = mean - float(np.sqrt((errors**2).sum())) / len(objectives)
        else:
            quality = float(objectives[focus] - errors[focus])
        return Elite(violation, quality, self.genome, tuple(objectives.tolist()), candidate)


class MapElitesSection(ControllerSection):
    """Options of MAP-Elites and CycleQD; bins lie on the objectives' scale.

    >>> MapElitesSection(bins=5).high
    1.25
    """

    kind: Literal["map_elites"] = "map_elites"
    initial: Whole = option(
        "genomes before the first child, all but the first drawn uniformly", 20, ge=1
    )
    bins: Whole = option("bins of each objective", 10, ge=2)
    low: Number = option(
        "where the first bin begins (0 is the worst baseline, 1 the best); lower values join it",
        0.0,
    )
    high: Number = option("where the last bin ends; what is above counts in it", 1.25)
    sigma_iso: Number | None = option(
        "standard deviation of every gene's own noise; null: 0.01, and 0.06 scored in parts, where"
        " what a smaller step does is lost in the noise",
        None,
        unit="share of the box",
        gt=0,
    )
    sigma_line: Number = option(
        "standard deviation of the step towards another elite",
        0.2,
        unit="share of the way there",
        ge=0,
    )
    cyclic: Flag = option("keep an archive for each objective, and use them in turn", False)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        low, high = fields.get("low"), fields.get("high")
        if low is not None and high is not None and low >= high:
            yield Fault("high", f"{high} is not above low, {low}", "write e.g. high: 1.25")

    def faults(self, objectives: int) -> Iterable[Fault]:
        if self.cyclic and objectives < 2:
            yield Fault("cyclic", "there is one objective only", "write false")


@controller(MapElitesSection)
class MapElites(Controller):
    """MAP-Elites on [0, 1]^d, told in any order, with any number in flight.

    There is one archive, whose cells are bins of every objective and whose quality is their
    weighted mean. If `cyclic`, there is one for each objective, whose quality it is and whose cells
    are bins of the others; every outcome is offered to all of them, and parents are drawn from
    the next one at each ask.

    Attributes:
        archives: of each, the elite of every cell that has one, by its bins.

    >>> problem = Problem(dimension=2, seed=1, start=np.full(2, 0.5))
    >>> search = MapElites(problem, MapElitesSection())
    >>> search.tell(Feedback(0, search.ask(1)[0].genome, 0.55, (0.55,)))
    >>> list(search.archives[0])
    [(4,)]
    """

    seeks_front = True

    def __init__(self, problem: Problem, options: MapElitesSection):
        self._rng = np.random.default_rng(problem.seed)
        self._dimension, self._start = problem.dimension, np.array(problem.start, float)
        self._options, self._in_parts = options, problem.parts > 1
        usual = 0.06 if self._in_parts else 0.01
        self._sigma_iso = options.sigma_iso or usual
        self._asked = 0
        self._again: dict[int, int] = {}  # ordinal -> the candidate that it is
        self._known: dict[int, _Known] = {}  # by candidate
        self._cells: list[dict[tuple[int, ...], list[int]]] = [
            {} for _ in range(problem.objectives if options.cyclic else 1)
        ]  # who ever fell into each, if candidates are scored in parts
        self.archives: list[dict[tuple[int, ...], Elite]] = [
            {} for _ in range(problem.objectives if options.cyclic else 1)
        ]

    def ask(self, n: int) -> list[Proposal]:
        proposals = []
        for _ in range(n):
            part = self._asked // CANDIDATES_A_PART
            again = self._least_known() if self._in_parts else None
            if again is not None:
                self._again[self._asked] = again
                known = self._known[again]
                proposals.append(Proposal(known.genome, part=part, again=again))
                self._asked += 1
            else:
                proposals.append(Proposal(self._propose(), part=part))
        return proposals

    def _least_known(self) -> int | None:
        """Return the elite that was scored least often, at every other ask; None for a new one."""
        if self._asked % 2 or self._asked < self._options.initial:
            return None
        pending = set(self._again.values())
        elites = {e.candidate for archive in self.archives for e in archive.values()} - pending
        return min(elites, key=lambda c: (self._known[c].times, c), default=None)

    def tell(self, feedback: Feedback) -> None:
        again = None if feedback.ordinal is None else self._again.pop(feedback.ordinal, None)
        if feedback.genome is None or feedback.objectives is None or feedback.value is None:
            return
        if self._in_parts:
            self._place(again if again is not None else feedback.candidate, feedback)
            return
        bins = self._bins_of(feedback.objectives)
        for focus, archive in enumerate(self.archives):
            cell, quality = bins, feedback.value
            if self._options.cyclic:
                cell, quality = bins[:focus] + bins[focus + 1 :], feedback.objectives[focus]
            elite = Elite(feedback.violation, quality, feedback.genome, feedback.objectives)
            if elite.beats(archive.get(cell)):
                archive[cell] = elite

    def _place(self, candidate: int, feedback: Feedback) -> None:
        """Put a genome into the cells where its mean belongs, and find who is best there."""
        assert feedback.genome is not None
        known = self._known.setdefault(candidate, _Known(feedback.genome))
        known.add(feedback)
        bins = self._bins_of(tuple(known.objectives.tolist()))
        cells = [bins]
        if self._options.cyclic:
            cells = [bins[:focus] + bins[focus + 1 :] for focus in range(len(self.archives))]
        before, known.cells = known.cells, cells
        for focus, cell in enumerate(cells):
            touched = {cell}
            if before:
                self._cells[focus][before[focus]].remove(candidate)
                touched.add(before[focus])
            self._cells[focus].setdefault(cell, []).append(candidate)
            for each in touched:
                self._choose(focus, each)

    def _choose(self, focus: int, cell: tuple[int, ...]) -> None:
        """Let the best of a cell be its elite."""
        best: Elite | None = None
        for candidate in self._cells[focus][cell]:
            known = self._known[candidate]
            elite = known.elite(candidate, focus if self._options.cyclic else None)
            if elite.beats(best):
                best = elite
        if best is None:
            self.archives[focus].pop(cell, None)
        else:
            self.archives[focus][cell] = best

    def _bins_of(self, objectives: tuple[float, ...]) -> tuple[int, ...]:
        share = (np.array(objectives) - self._options.low) / (
            self._options.high - self._options.low
        )
        bins = (np.clip(share, 0.0, 1.0) * self._options.bins).astype(int)
        return tuple(np.minimum(bins, self._options.bins - 1).tolist())

    def _propose(self) -> np.ndarray:
        number = self._asked
        self._asked += 1
        if number == 0:
            return np.clip(self._start, 0.0, 1.0)
        elites = list(self.archives[number % len(self.archives)].values())
        if number < self._options.initial or not elites:
            return self._rng.random(self._dimension)
        first, second = self._parents(elites)
        # x1 + sigma_iso N(0, I) + sigma_line (x2 - x1) N(0, 1)  (Vassiliades & Mouret, equation 1)
        own = self._sigma_iso * self._rng.standard_normal(self._dimension)
        along = self._options.sigma_line * self._rng.standard_normal()
        return np.clip(first + own + along * (second - first), 0.0, 1.0)

    def _parents(self, elites: list[Elite]) -> tuple[np.ndarray, np.ndarray]:
        """Draw two: evenly, or if cyclic two that differ, better in everything more often."""
        # CycleQD's code: prod over objectives of 0.5 + 0.8 (v - min) / (max - min)
        chance = None
        if self._options.cyclic:
            scores = np.array([elite.objectives for elite in elites])
            spread = np.ptp(scores, axis=0)
            share = (scores - scores.min(axis=0)) / np.where(spread > 0.0, spread, 1.0)
            chance = (0.5 + 0.8 * share).prod(axis=1)
            chance /= chance.sum()
        differ = self._options.cyclic and len(elites) > 1
        first, second = self._rng.choice(len(elites), 2, replace=not differ, p=chance)
        return elites[first].genome, elites[second].genome
