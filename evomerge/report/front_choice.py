"""A few candidates of a large front, so that a person can choose."""

from collections.abc import Mapping

import numpy as np

from evomerge.report.run import Run
from evomerge.search.pareto import knee

MOST = 12


def chosen(run: Run) -> dict[int, str]:
    """Return the candidates of the front that are shown, each with why, in the front's order.

    First those that a rule names: the best by value, the best on each objective, the knee. Then,
    one after the other, whichever is farthest from all that were chosen, with each objective
    spread from 0 to 1 over the front.

    >>> from evomerge.testing.reports import example_run
    >>> chosen(example_run())
    {3: 'the best, best accuracy', 4: 'best length'}
    """
    front = [c for c in run.front if c in run.search and run.row(c).violation <= _least(run)]
    if not front:
        return {}
    points = np.array([run.scale.vector(_means(run, c)) for c in front], float)
    reasons: dict[int, list[str]] = {}

    def choose(index: int, why: str) -> None:
        reasons.setdefault(index, []).append(why)

    values = [run.scale.value(_means(run, c)) for c in front]
    choose(front.index(run.best) if run.best in front else int(np.argmax(values)), "the best")
    if points.shape[1] > 1:
        for column, objective in enumerate(run.objectives):
            choose(int(np.argmax(points[:, column])), f"best {objective.name}")
        if len(front) > 2:
            choose(knee(points), "knee")
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    spread = (points - low) / np.where(span > 0, span, 1.0)
    while len(reasons) < min(MOST, len(front)):
        apart = spread[:, None, :] - spread[None, list(reasons), :]
        nearest = np.sqrt((apart**2).sum(axis=2)).min(axis=1)
        nearest[list(reasons)] = -1.0
        choose(int(np.argmax(nearest)), "far from the others" if len(front) > MOST else "")
    return {front[i]: ", ".join(filter(None, reasons[i])) for i in sorted(reasons)}


def _least(run: Run) -> float:
    return min((run.row(c).violation for c in run.front if c in run.search), default=0.0)


def _means(run: Run, candidate: int) -> Mapping[str, float]:
    return {name: score.mean for name, score in run.search[candidate].items()}
