"""Several objectives: direction and scale, dominance, hypervolume. No torch."""

from collections.abc import Sequence

import numpy as np


def beats(a: tuple[float, Sequence[float]], b: tuple[float, Sequence[float]]) -> bool:
    """Tell whether `a` constraint-dominates `b` (Deb et al. 2002, NSGA-II, section VI).

    Each is (violation, objectives): less violation wins, equals are compared by dominance.

    >>> beats((0.0, (0.1, 0.1)), (0.2, (0.9, 0.9))), beats((0.0, (1.0, 0.0)), (0.0, (0.0, 1.0)))
    (True, False)
    """
    return a[0] < b[0] if a[0] != b[0] else dominates(a[1], b[1])


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Tell whether `a` is nowhere worse than `b` and somewhere better (more is better).

    >>> dominates((0.5, 0.5), (0.5, 0.25)), dominates((0.5, 0.5), (0.5, 0.5))
    (True, False)
    """
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(
        x > y for x, y in zip(a, b, strict=True)
    )


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the hypervolume that points dominate, by moocore.

    Args:
        points: (n, objectives) float64, more is better.
        reference: (objectives,) float64; points that do not exceed it add nothing.

    >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), np.zeros(2))
    3.0
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

    >>> knee(np.array([[0.0, 1.0], [0.75, 0.75], [1.0, 0.0]]))
    1
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

    >>> hypervolume_contributions(np.array([[1.0, 2.0], [2.0, 1.0]]), np.zeros(2)).tolist()
    [1.0, 1.0]
    """
    import moocore

    if not len(points):
        return np.zeros(0)
    if points.shape[1] == 1:  # a line, which moocore does not take: the best down to the next
        line = points[:, 0]
        below = [max([reference[0], *np.delete(line, i)]) for i in range(len(line))]
        return np.maximum(0.0, line - np.array(below))
    return np.asarray(moocore.hv_contributions(points, ref=reference, maximise=True), float)
