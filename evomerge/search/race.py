"""A race: candidates scored on more and more of the items, and fewer and fewer of them.

Sequential halving (Karnin et al. 2013) with a paired test beside it: after each round whoever is
shown to be worse is out, and so is whoever is not among the most promising that the budget lets go
on. Those that are left at the end have been scored in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.search.objectives import Objective
from evomerge.search.paired_test import evidence_below
from evomerge.search.pareto import dominates, hypervolume_contributions

ALPHA = 0.05  # chance that the test stops one that is not worse
_ROUNDS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # shares of the items that are scored by then

Scores = Mapping[str, np.ndarray]  # objective -> (items,) float32, NaN where not scored yet


@dataclass(frozen=True)
class Standing:
    """How one candidate of a race is doing.

    Attributes:
        violation: of the constraints, by its means so far.
        value: the weighted mean of its objectives so far.
        vector: its objectives so far, more is better.
        scores: of its items.

    >>> Standing(0.0, 0.5, (0.5,), {}).value
    0.5
    """

    violation: float
    value: float
    vector: tuple[float, ...]
    scores: Scores


@dataclass(frozen=True)
class Out:
    """Why a candidate leaves a race.

    >>> Out(7, "worse than 3").candidate
    7
    """

    candidate: int
    reason: str


class Course:
    """The items of races in one random order, and what a difference on each of them counts.

    >>> course = Course([Objective("acc")], {"acc": 32}, {"acc": 1.0}, {"acc": 1.0}, seed=[1])
    >>> [sum(len(p) for p in course.until(n).values()) for n in range(course.rounds)]
    [2, 4, 8, 16, 32]
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        items: Mapping[str, int],
        spans: Mapping[str, float],
        ranges: Mapping[str, float],
        seed: Sequence[int],
        followed: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ):
        """
        Args:
            objectives: in the campaign's order.
            items: objective -> how many search items there are.
            spans: objective -> the largest difference of two scores of an item; larger ones count
                as this.
            ranges: objective -> what a mean is divided by, see `Scale`.
            seed: of the order.
            followed: of objectives that measure the answers to others, see `followed_positions`.
        """
        self.objectives, self.items, self._spans = tuple(objectives), dict(items), dict(spans)
        self._followed = followed or {}
        self._costs = [o.name for o in objectives if o.cost]
        self._names = [n for n in items if n not in self._costs and n not in self._followed]
        pool = [(index, n) for index, name in enumerate(self._names) for n in range(items[name])]
        order = np.random.default_rng(seed).permutation(len(pool))
        self._which = np.array([pool[i][0] for i in order], int)
        self._positions = np.array([pool[i][1] for i in order], int)
        # the value is the weighted mean of means: of a mean, this for each of its items
        weights = sum(o.weight for o in objectives)
        self._rates = dict.fromkeys(items, 0.0)  # of what is guarded alone
        for objective in objectives:
            share = objective.sign * objective.weight / weights / ranges[objective.name]
            self._rates[objective.name] = share / items[objective.name]
        # the most that one item of the pool can change the value by, with what follows it
        bounds = []
        for name in self._names:
            followers = [f for f, others in self._followed.items() if name in others]
            bounds.append(sum(abs(self._rates[n]) * spans[n] for n in (name, *followers)))
        self._unit = max(bounds, default=1.0) or 1.0
        firsts = [int(np.flatnonzero(self._which == n)[0]) for n in range(len(self._names))]
        least = max(firsts, default=-1) + 2  # with an item of each objective: each has a mean
        self._ends = [min(len(pool), max(least, round(share * len(pool)))) for share in _ROUNDS]

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        return len(self._ends)

    @property
    def total(self) -> int:
        """How many items there are, without costs and what is measured of answers to others."""
        return len(self._which)

    def end(self, round_: int) -> int:
        """Return how many items are scored by the end of a round."""
        return self._ends[round_]

    def until(self, round_: int) -> dict[str, np.ndarray]:
        """Return objective -> the sorted positions that are scored by the end of a round.

        Without those of objectives that follow others.
        """
        which, positions = self._which[: self._ends[round_]], self._positions[: self._ends[round_]]
        found = {name: np.sort(positions[which == n]) for n, name in enumerate(self._names)}
        return found | {name: np.arange(self.items[name]) for name in self._costs}

    def _difference(self, name: str, a: Scores, b: Scores, at: np.ndarray) -> np.ndarray:
        span = self._spans[name]
        return np.clip(a[name][at].astype(float) - b[name][at], -span, span)

    def is_worse(self, a: Scores, b: Scores, round_: int, chances: float) -> bool:
        """Tell whether the value of `a` is shown to be below that of `b`.

        Args:
            a, b: scores of at least the items of the round.
            round_: the last one that is over.
            chances: among how many the error rate `ALPHA` is shared out.
        """
        end = self._ends[round_]
        differences = np.zeros(end)
        for index, name in enumerate(self._names):
            mine = self._which[:end] == index
            at = self._positions[:end][mine]
            found = self._difference(name, a, b, at) * self._rates[name]
            for follower, others in self._followed.items():
                if name in others:
                    there = others[name][at]
                    more = self._difference(follower, a, b, there) * self._rates[follower]
                    found += np.where(there >= 0, more, 0.0)
            differences[mine] = found / self._unit
        costs = sum(self._rates[n] * float(a[n][0] - b[n][0]) for n in self._costs)
        mean = float(np.clip(-costs / self._unit / self.total, -1.0, 1.0))
        return evidence_below(differences, self.total, mean) >= chances / ALPHA

    def is_dominated(self, a: Scores, b: Scores, round_: int, chances: float) -> bool:
        """Tell whether `a` is shown to be below `b` in every objective."""
        for objective in self.objectives:
            name = objective.name
            if objective.cost:
                if objective.sign * float(a[name][0] - b[name][0]) >= 0.0:
                    return False
                continue
            at = self._order_of(name, self._ends[round_])
            found = objective.sign * self._difference(name, a, b, at) / self._spans[name]
            if evidence_below(found, self.items[name]) < chances / ALPHA:
                return False
        return True

    def _order_of(self, name: str, end: int) -> np.ndarray:
        """Return the positions of an objective's items, in the order in which they are scored."""
        if name not in self._followed:
            return self._positions[:end][self._which[:end] == self._names.index(name)]
        others = self._followed[name]
        found = []
        for which, position in zip(self._which[:end], self._positions[:end], strict=True):
            other = self._names[which]
            if other in others and others[other][position] >= 0:
                found.append(others[other][position])
        return np.array(found, int)


def most_promising(standings: Mapping[int, Standing], count: int, on_front: bool) -> list[int]:
    """Return the candidates that go on, the best first.

    Args:
        standings: of all candidates.
        count: at most so many.
        on_front: by rank of dominance, then by hypervolume contribution, instead of by value.

    >>> two = {1: Standing(0.0, 0.2, (0.4, 0.0), {}), 2: Standing(0.0, 0.3, (0.3, 0.3), {})}
    >>> most_promising(two, 1, on_front=False)
    [2]
    """
    left = sorted(standings, key=lambda c: (standings[c].violation, -standings[c].value, c))
    if not on_front or not left:
        return left[:count]
    vectors = np.array([standings[c].vector for c in left], float)
    violations = np.array([standings[c].violation for c in left])
    reference = vectors.min(axis=0) - 0.1
    chosen: list[int] = []
    while left and len(chosen) < count:
        is_free = np.array([not _beaten(n, vectors, violations) for n in range(len(left))])
        gains = hypervolume_contributions(vectors[is_free], reference)
        front = [c for c, free in zip(left, is_free, strict=True) if free]
        chosen += [front[n] for n in np.argsort(-gains, kind="stable")]
        left = [c for c, free in zip(left, is_free, strict=True) if not free]
        vectors, violations = vectors[~is_free], violations[~is_free]
    return chosen[:count]


def _beaten(n: int, vectors: np.ndarray, violations: np.ndarray) -> bool:
    """Tell whether any of (all, objectives) vectors beats the n-th, constraints first."""
    above = (vectors >= vectors[n]).all(axis=1) & (vectors > vectors[n]).any(axis=1)
    less, equal = violations < violations[n], violations == violations[n]
    return bool((less | (equal & above)).any())


def schedule(racers: int, ends: Sequence[int], allowance: float) -> tuple[int, int]:
    """Return how many of so many can start, and how many can go to the end, for so many items.

    Args:
        racers: that could start.
        ends: items that are scored by the end of each round.
        allowance: items that may be scored in all.

    Returns:
        Starters and finishers, at least one of each, whatever it costs.

    >>> schedule(8, [50, 100, 200, 400, 800], 4000)
    (8, 4)
    """
    for starters in range(racers, 0, -1):
        finishers = [n for n in range(1, starters + 1) if cost(starters, n, ends) <= allowance]
        if finishers:
            return starters, finishers[-1]
    return 1, 1


def cost(starters: int, finishers: int, ends: Sequence[int]) -> int:
    """Return how many items a race scores if the test stops nobody.

    >>> cost(2, 1, [50, 100])
    150
    """
    spent, before = 0, 0
    for number, end in enumerate(ends):
        spent += places(starters, finishers, number) * (end - before)
        before = end
    return spent


def places(starters: int, finishers: int, round_: int) -> int:
    """Return how many may run a round: half of those of the round before.

    >>> [places(8, 1, n) for n in range(5)]
    [8, 4, 2, 1, 1]
    """
    return max(finishers, -(-starters // 2**round_))


def judged(
    course: Course,
    standings: Mapping[int, Standing],
    rivals: Mapping[int, Standing],
    round_: int,
    places_next: int,
    chances: int,
    on_front: bool,
) -> list[Out]:
    """Return who leaves a race after a round that all who are left have run.

    Args:
        course: of the race.
        standings: of those who are left.
        rivals: scored in full before: whom they have to beat.
        round_: that is over.
        places_next: how many may run the next one.
        chances: among how many comparisons the error rate is shared out; the same in all rounds.
        on_front: whether a front is sought, or the highest value.

    >>> course = Course([Objective("acc")], {"acc": 64}, {"acc": 1.0}, {"acc": 1.0}, seed=[1])
    >>> good, bad = ({"acc": np.full(64, score, np.float32)} for score in (1.0, 0.0))
    >>> standings = {1: Standing(0, 1.0, (1.0,), good), 2: Standing(0, 0.0, (0.0,), bad)}
    >>> [out.candidate for out in judged(course, standings, {}, 3, 2, 1, on_front=False)]
    [2]
    """
    every = {**rivals, **standings}
    outs: dict[int, Out] = {}
    leader = most_promising(every, 1, on_front=False)[0]
    items = course.end(round_)
    for candidate, standing in standings.items():
        others = [c for c in every if c != candidate] if on_front else [leader]
        for other in others:
            if other == candidate or every[other].violation > standing.violation:
                continue
            shown = course.is_dominated if on_front else course.is_worse
            if on_front and not dominates(every[other].vector, standing.vector):
                continue
            if shown(standing.scores, every[other].scores, round_, chances):
                reason = f"worse than {other} on the same {items} items, shown at {ALPHA}"
                outs[candidate] = Out(candidate, reason)
                break
    left = {c: s for c, s in standings.items() if c not in outs}
    going = most_promising(left, places_next, on_front)
    for candidate in left:
        if candidate not in going:
            reason = f"not among the best {places_next} on the same {items} items"
            outs[candidate] = Out(candidate, reason)
    return [outs[c] for c in standings if c in outs]
