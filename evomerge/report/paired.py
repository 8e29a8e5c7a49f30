"""Two candidates compared item by item, on items that the search has not seen."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from evomerge.report.run import Run
from evomerge.text import Z95


class Difference(NamedTuple):
    """By how much one candidate scores higher than another, on average over items.

    Attributes:
        mean: of the differences, signed so that more is better for the first.
        half: the half-width of its 95 % interval (normal, n - 1 in the variance).
        items: pairs of scores.
        differing: pairs in which the two differ.

    >>> Difference(0.1, 0.02, 400, 60).verdict
    'more'
    """

    mean: float
    half: float
    items: int
    differing: int

    @property
    def verdict(self) -> str:
        """Whether the interval says more or less, or does not tell: more, less, even."""
        if self.mean - self.half > 0:
            return "more"
        return "less" if self.mean + self.half < 0 else "even"


class Pairing:
    """Compares candidates of a run, or of another run on the same items.

    The mean over objectives has their weights. Where all items are scored from 0 to 1, it is in
    these points; otherwise each objective is in units of the baselines' range, as the search has
    it. Objectives of the very same items are added up item by item before a variance is taken;
    others count as independent.

    >>> from evomerge.testing.reports import example_run
    >>> pairing = Pairing(example_run())
    >>> pairing.unit, pairing.of(3, 3)
    ('in units of the baselines’ range', Difference(mean=0.0, half=0.0, items=8, differing=0))
    """

    def __init__(self, run: Run):
        self._run = run
        self._objectives = run.heldout_objectives
        every = [scores for by_name in run.items.values() for scores in by_name.values()]
        self.in_points = all(((s >= 0) & (s <= 1)).all() for s in every)
        self.unit = (
            "in points of the score" if self.in_points else ("in units of the baselines’ range")
        )
        spans = dict(zip((o.name for o in run.objectives), run.scale.range, strict=True))
        total = sum(o.weight for o in self._objectives) or 1.0
        self._weights = {
            o.name: o.sign * o.weight / total / (1.0 if self.in_points else spans[o.name])
            for o in self._objectives
        }

    def comparable(self, candidate: int, run: Run | None = None) -> bool:
        """Tell whether a candidate was scored on all held-out items."""
        items = (run or self._run).items.get(candidate, {})
        return bool(self._objectives) and all(o.name in items for o in self._objectives)

    def mean(self, candidate: int, run: Run | None = None) -> tuple[float, float]:
        """Return a candidate's held-out mean over objectives, and half of its 95 % interval.

        It is unsigned where all items are scored from 0 to 1 and more is better.
        """
        items = (run or self._run).items[candidate]
        weighted = {name: weight * items[name] for name, weight in self._weights.items()}
        found = self._summary(weighted, run or self._run)
        return found.mean, found.half

    def of(self, one: int, other: int, other_run: Run | None = None) -> Difference:
        """Return by how much `one` scores higher than `other`, over all objectives.

        Args:
            one: a candidate of this run.
            other: a candidate, of `other_run` if that is given.
            other_run: a run on the same items.
        """
        theirs = (other_run or self._run).items[other]
        ours = self._run.items[one]
        weighted = {
            name: weight * (ours[name].astype(float) - theirs[name])
            for name, weight in self._weights.items()
        }
        return self._summary(weighted, self._run)

    def by_objective(
        self, one: int, other: int, other_run: Run | None = None
    ) -> dict[str, Difference]:
        """Return the same for each objective, in its own unit."""
        theirs, found = (other_run or self._run).items[other], {}
        for objective in self._objectives:
            ours = self._run.items[one][objective.name].astype(float)
            difference = objective.sign * (ours - theirs[objective.name])
            found[objective.name] = _difference(difference)
        return found

    def _summary(self, weighted: Mapping[str, np.ndarray], run: Run) -> Difference:
        mean = variance = 0.0
        items = differing = 0
        for names in self._of_same_items(run):
            together = np.sum([weighted[name] for name in names], axis=0, dtype=float)
            one = _difference(together)
            mean += one.mean
            variance += (one.half / Z95) ** 2
            items += sum(len(weighted[name]) for name in names)
            differing += sum(int(np.count_nonzero(weighted[name])) for name in names)
        return Difference(mean, Z95 * math.sqrt(variance), items, differing)

    def _of_same_items(self, run: Run) -> list[list[str]]:
        """Return the objectives, those of the very same items together."""
        groups: dict[tuple, list[str]] = {}
        for objective in self._objectives:
            held = run.hashes[objective.name]["heldout"]
            key = tuple(sorted(held.items())) if any(held.values()) else (objective.name,)
            groups.setdefault(key, []).append(objective.name)
        return list(groups.values())


def same_items(run: Run, other: Run) -> bool:
    """Tell whether two runs have the same objectives on the same held-out items.

    >>> from evomerge.testing.reports import example_run
    >>> same_items(example_run(), example_run())
    True
    """
    return run.objectives == other.objectives and all(
        run.hashes[name]["heldout"] == other.hashes[name]["heldout"] for name in run.hashes
    )


def _difference(differences: np.ndarray) -> Difference:
    count, differing = len(differences), np.count_nonzero(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Difference(float(differences.mean()), Z95 * error, count, int(differing))
