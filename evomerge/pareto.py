"""Several objectives: direction and scale, dominance, hypervolume. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Objective:
    """One mean that the search improves. `weight` counts in the weighted mean."""

    name: str
    direction: str = "maximize"  # or "minimize"
    weight: float = 1.0

    @property
    def sign(self) -> float:
        return 1.0 if self.direction == "maximize" else -1.0


class Scale:
    """Objectives made comparable: signed so that more is better, divided by the baselines' range.

    An objective on which the baselines do not differ keeps its own unit.
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
            self.range.append(high - low if high - low > 1e-9 else 1.0)

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


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Tell whether `a` is nowhere worse than `b` and somewhere better (more is better)."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(
        x > y for x, y in zip(a, b, strict=True)
    )


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
