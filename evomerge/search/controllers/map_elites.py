"""MAP-Elites (Mouret & Clune 2015, arXiv:1504.04909) over a grid of the objectives; and CycleQD.

Children vary by iso+line (Vassiliades & Mouret 2018, arXiv:1804.03906). CycleQD (Kuroki et al.
2024, arXiv:2410.14735) keeps one archive per objective, and looks at them in turn; its crossing
and mutating of weights is not here, where children are genomes.
"""

from typing import NamedTuple

import numpy as np

from evomerge.search.controllers import Proposal, Told, controller


class Elite(NamedTuple):
    """The best that was told of a cell: less violation first, then more quality."""

    violation: float
    quality: float
    genome: np.ndarray
    objectives: tuple[float, ...]

    def beats(self, other: "Elite | None") -> bool:
        if other is None:
            return True
        return (-self.violation, self.quality) > (-other.violation, other.quality)


@controller("map_elites")
class MapElites:
    """MAP-Elites on [0, 1]^d, told in any order, with any number in flight.

    There is one archive, whose cells are bins of every objective and whose quality is their
    weighted mean. If `cyclic`, there is one per objective, whose quality it is and whose cells
    are bins of the others; every outcome is offered to all of them, and parents are drawn from
    the next one at each ask.

    Attributes:
        archives: of each, the elite of every cell that has one, by its bins.
    """

    def __init__(
        self,
        *,
        dimension: int,
        seed: int,
        start: np.ndarray,
        objectives: int = 1,
        initial: int = 20,
        bins: int = 10,
        low: float = 0.0,
        high: float = 1.25,
        sigma_iso: float = 0.01,
        sigma_line: float = 0.2,
        cyclic: bool = False,
    ):
        """
        Args:
            dimension: genes.
            seed: of everything drawn here.
            start: (dimension,) the first genome.
            objectives: how many there are.
            initial: genomes before the first child, at least 1; all but the first uniform.
            bins: per objective, at least 2.
            low: where the first bin begins, in the objectives' scale: 0 is the worst baseline
                and 1 the best. What is below counts in it.
            high: where the last bin ends; what is above counts in it.
            sigma_iso: standard deviation of every gene's own noise, as a share of the box.
            sigma_line: standard deviation of the step towards another elite, as a share of the
                way there.
            cyclic: whether to cycle through the objectives, of which there must be two or more.

        Raises:
            ValueError: an option is out of range.
        """
        if initial < 1:
            raise ValueError(f"initial: {initial} is below 1; write e.g. 20")
        if bins < 2:
            raise ValueError(f"bins: {bins} is below 2; write e.g. 10")
        if not low < high:
            raise ValueError(f"high: {high} is not above low, {low}; write e.g. 1.25")
        if sigma_iso <= 0.0:
            raise ValueError(f"sigma_iso: {sigma_iso} is not above 0; write e.g. 0.01")
        if sigma_line < 0.0:
            raise ValueError(f"sigma_line: {sigma_line} is negative; write e.g. 0.2")
        if cyclic and objectives < 2:
            raise ValueError("cyclic: there is one objective only; write false")
        self._rng = np.random.default_rng(seed)
        self._dimension, self._start, self._initial = dimension, np.array(start, float), initial
        self._bins, self._low, self._high = bins, low, high
        self._sigma_iso, self._sigma_line, self._cyclic = sigma_iso, sigma_line, cyclic
        self._asked = 0
        self.archives: list[dict[tuple[int, ...], Elite]] = [
            {} for _ in range(objectives if cyclic else 1)
        ]

    def ask(self, n: int) -> list[Proposal]:
        return [Proposal(self._propose()) for _ in range(n)]

    def tell(self, told: Told) -> None:
        if told.genome is None or told.objectives is None:
            return
        bins = self._bins_of(told.objectives)
        for focus, archive in enumerate(self.archives):
            cell, quality = bins, told.value
            if self._cyclic:
                cell, quality = bins[:focus] + bins[focus + 1 :], told.objectives[focus]
            elite = Elite(told.violation, quality, told.genome, told.objectives)
            if elite.beats(archive.get(cell)):
                archive[cell] = elite

    def _bins_of(self, objectives: tuple[float, ...]) -> tuple[int, ...]:
        share = (np.array(objectives) - self._low) / (self._high - self._low)
        bins = (np.clip(share, 0.0, 1.0) * self._bins).astype(int)
        return tuple(np.minimum(bins, self._bins - 1).tolist())

    def _propose(self) -> np.ndarray:
        number = self._asked
        self._asked += 1
        if number == 0:
            return np.clip(self._start, 0.0, 1.0)
        elites = list(self.archives[number % len(self.archives)].values())
        if number < self._initial or not elites:
            return self._rng.random(self._dimension)
        first, second = self._parents(elites)
        # x1 + sigma_iso N(0, I) + sigma_line (x2 - x1) N(0, 1)
        own = self._sigma_iso * self._rng.standard_normal(self._dimension)
        along = self._sigma_line * self._rng.standard_normal()
        return np.clip(first + own + along * (second - first), 0.0, 1.0)

    def _parents(self, elites: list[Elite]) -> tuple[np.ndarray, np.ndarray]:
        """Draw two: evenly, or if cyclic two that differ, better in everything more often."""
        chance = None
        if self._cyclic:
            scores = np.array([elite.objectives for elite in elites])
            spread = np.ptp(scores, axis=0)
            share = (scores - scores.min(axis=0)) / np.where(spread > 0.0, spread, 1.0)
            chance = (0.5 + 0.8 * share).prod(axis=1)
            chance /= chance.sum()
        differ = self._cyclic and len(elites) > 1
        first, second = self._rng.choice(len(elites), 2, replace=not differ, p=chance)
        return elites[first].genome, elites[second].genome
