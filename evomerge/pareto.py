"""Several objectives: direction and scale, dominance, hypervolume. No torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Objective:
    """One mean that the search improves. `weight` counts in the weighted mean.

    `constraint` is what a mean has to keep, see `Constraints`; empty for none. A `cost` is no
    score of items.
    """

    name: str
    direction: str = "maximize"  # or "minimize"
    weight: float = 1.0
    constraint: str = ""
    cost: bool = False

    @property
    def sign(self) -> float:
        return 1.0 if self.direction == "maximize" else -1.0


class Scale:
    """Objectives made comparable: signed so that more is better, divided by the baselines' range.

    An objective on which the baselines do not differ keeps its own unit. A cost is in units of the
    dearest baseline's: sources of one architecture cost the same but for noise.
    """

    def __init__(self, objectives: Sequence[Objective], baselines: Sequence[Mapping[str, float]]):
        """
        Args:
            objectives: in the campaign's order.
            baselines: the mean scores of each baseline that was scored, by objective name.
        """
        self.objectives = tuple(objectives)
        self.low, self.range = [], []
        for objective in self.objectives:
            values = [objective.sign * b[objective.name] for b in baselines]
            low, high = (min(values), max(values)) if values else (0.0, 1.0)
            self.low.append(low)
            span = max(map(abs, values), default=1.0) if objective.cost else high - low
            self.range.append(span if span > 1e-9 else 1.0)

    def vector(self, means: Mapping[str, float]) -> tuple[float, ...]:
        """Return the signed and scaled objectives, one float each: 0 is the worst baseline."""
        return tuple(
            (o.sign * means[o.name] - low) / span
            for o, low, span in zip(self.objectives, self.low, self.range, strict=True)
        )

    def value(self, means: Mapping[str, float]) -> float:
        """Return the weighted mean of `vector`: what a controller of one objective gets."""
        weights = np.array([o.weight for o in self.objectives])
        return float(np.dot(weights, self.vector(means)) / weights.sum())


class Bound(NamedTuple):
    """A constraint's parts: at least or at most a baseline's mean (none: 0) plus an offset."""

    sign: float  # 1: at least, -1: at most
    baseline: str | None
    offset: float


_BOUND = re.compile(
    r"(?P<sign>>=|<=)\s*(?:(?P<alone>[-+]?[\d.]+(?:e[-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_][\w.-]*)(?:\s*(?P<way>[-+])\s*(?P<offset>[\d.]+(?:e[-+]?\d+)?))?)"
)


def parse_bound(text: str) -> Bound:
    """Read a constraint: `>= 0.4`, `<= 12`, `>= base - 0.01`.

    Raises:
        ValueError: it is none.
    """
    found = _BOUND.fullmatch(text.strip())
    if not found:
        raise ValueError(f"'{text}' is no constraint")
    if not np.isfinite([float(found[k] or 0.0) for k in ("alone", "offset")]).all():
        raise ValueError(f"'{text}' has a number that is not finite")
    sign = 1.0 if found["sign"] == ">=" else -1.0
    if found["alone"]:
        return Bound(sign, None, float(found["alone"]))
    offset = float(found["offset"] or 0.0)
    return Bound(sign, found["name"], -offset if found["way"] == "-" else offset)


class Constraints:
    """What candidates have to keep, and by how much they miss it.

    `baseline` in a constraint is the best source's mean; a label is that baseline's.
    """

    def __init__(
        self, scale: "Scale", baselines: Mapping[str, Mapping[str, float]], sources: Sequence[str]
    ):
        """
        Args:
            scale: of the objectives.
            baselines: the mean scores of each baseline that was scored, by label.
            sources: the labels of those that are sources.

        Raises:
            ValueError: a constraint names a baseline that could not be scored.
        """
        self._bounds: list[tuple[str, float, float, float]] = []
        for objective, span in zip(scale.objectives, scale.range, strict=True):
            if not objective.constraint:
                continue
            sign, name, offset = parse_bound(objective.constraint)
            means = {label: m[objective.name] for label, m in baselines.items()}
            if name == "baseline":
                means[name] = objective.sign * max(
                    (objective.sign * means[label] for label in sources if label in means),
                    default=-np.inf,
                )
            if name is not None and name not in means:
                raise ValueError(
                    f"{objective.name} has to be {objective.constraint}, and baseline '{name}'"
                    " could not be scored"
                )
            least = offset + (means[name] if name is not None else 0.0)
            self._bounds.append((objective.name, sign, least, span))

    def violation(self, means: Mapping[str, float]) -> float:
        """Return the sum of what is missed, each in units of its objective's scale."""
        return sum(
            max(0.0, sign * (least - means[name])) / span
            for name, sign, least, span in self._bounds
        )


class ItemScale:
    """Item scores made comparable: in [0, 1], more is better.

    Scores that are within [0, 1] stay (or are one minus themselves, where less is better); those
    of other objectives are spread between the baselines' least and largest, and clipped.
    """

    def __init__(
        self, objectives: Sequence[Objective], baselines: Sequence[Mapping[str, np.ndarray]]
    ):
        """
        Args:
            objectives: in the campaign's order.
            baselines: the item scores of each baseline that was scored, by objective name.
        """
        self._spans: list[tuple[str, float, float, float]] = []
        for objective in objectives:
            every = np.concatenate([b[objective.name] for b in baselines])
            low, high = float(every.min()), float(every.max())
            if low >= 0.0 and high <= 1.0:
                low, high = 0.0, 1.0
            self._spans.append((objective.name, objective.sign, low, (high - low) or 1.0))

    def vector(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return (items,) float32 of all objectives, one after the other."""
        parts = []
        for name, sign, low, span in self._spans:
            part = (scores[name] - low) / span
            parts.append(np.clip(part if sign > 0 else 1.0 - part, 0.0, 1.0))
        return np.concatenate(parts).astype(np.float32)


def beats(a: tuple[float, Sequence[float]], b: tuple[float, Sequence[float]]) -> bool:
    """Tell whether `a` constraint-dominates `b` (Deb et al. 2002, NSGA-II, section VI).

    Each is (violation, objectives): less violation wins, equals are compared by dominance.
    """
    return a[0] < b[0] if a[0] != b[0] else dominates(a[1], b[1])


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Tell whether `a` is nowhere worse than `b` and somewhere better (more is better)."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(
        x > y for x, y in zip(a, b, strict=True)
    )


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the hypervolume that points dominate, by moocore.

    Args:
        points: (n, objectives) float64, more is better.
        reference: (objectives,) float64; points that do not exceed it add nothing.
    """
    import moocore

    if not len(points):
        return 0.0
    if points.shape[1] == 1:  # a line, which moocore does not take
        return max(0.0, float(points.max() - reference[0]))
    return float(moocore.hypervolume(points, ref=reference, maximise=True))


def knee(points: np.ndarray) -> int:
    """Return the index of the knee of a front: where the trade-off turns.

    With each objective spread from 0, its worst on the front, to 1, its best, the point farthest
    beyond the hyperplane through the ends, sum = 1 (Das 1999, "On characterizing the knee of the
    Pareto curve based on normal-boundary intersection"). Equals: the first.

    Args:
        points: (n, objectives) float64, more is better.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    return int(np.argmax(((points - low) / np.where(high > low, high - low, 1.0)).sum(axis=1)))


def hypervolume_contributions(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return how much hypervolume is lost when each point is left out, by moocore.

    Args:
        points: (n, objectives) float64, more is better.
        reference: (objectives,) float64; points that do not exceed it contribute 0.

    Returns:
        (n,) float64.
    """
    import moocore

    if not len(points):
        return np.zeros(0)
    if points.shape[1] == 1:  # a line, which moocore does not take: the best down to the next
        line = points[:, 0]
        below = [max([reference[0], *np.delete(line, i)]) for i in range(len(line))]
        return np.maximum(0.0, line - np.array(below))
    return np.asarray(moocore.hv_contributions(points, ref=reference, maximise=True), float)
