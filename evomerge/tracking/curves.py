"""What trackers show of a search: one point an outcome, and what it came to."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from evomerge.archive import summary
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Told
from evomerge.archive.shapes import ScoreShape
from evomerge.tracking import Ending, Point

_RECENT = 16  # proposals in the mean, where the controller has no population


class Curves:
    """Makes points of outcomes, in their order from the first one on.

    Names: `candidate/OBJECTIVE` and `candidate/value` are of this candidate, estimates where a part
    of the items was scored; `best/...` of the best so far, of those that were scored on all items;
    `mean/...` over the latest proposals, as many as the controller has in a generation;
    `count/...` and `seconds/...` as they say. A failure has no scores.

    >>> from evomerge.testing.archives import example_archive
    >>> curves = Curves()
    >>> points = [curves.point(told) for told in example_archive().told()]
    >>> [(p.items, p.values["best/accuracy"], p.values["count/failed"]) for p in points]
    [(8, 0.25, 0), (16, 0.25, 0), (24, 0.75, 0), (32, 0.75, 0), (32, 0.75, 1)]
    """

    def __init__(self, plan: Mapping[str, Any] | None = None):
        """
        Args:
            plan: of the campaign, as the archive has it.
        """
        searches = (plan or {}).get("stages") or [plan or {}]
        self._populations = [
            (search.get("controller") or {}).get("population") or _RECENT for search in searches
        ]
        self._stage, self._items = 0, 0
        self._counts = {"count/candidates": 0, "count/failed": 0, "count/stopped": 0}
        self._recent: deque[Told] = deque(maxlen=self._populations[0])
        self._best: tuple[tuple[float, float], Told] | None = None  # what is least, and whose

    def point(self, told: Told) -> Point:
        """Return the point of the next outcome."""
        self._items += told.items
        self._count(told)
        values: dict[str, float] = dict(self._counts)
        if told.status == "ok" and told.value is not None:
            values |= _scores("candidate", told)
            self._take(told)
        if self._best is not None:
            values |= _scores("best", self._best[1])
        values |= self._means()
        if not told.is_copy:
            values |= {"seconds/merge": told.seconds_merge, "seconds/score": told.seconds_score}
        return Point(told.seq, told.at, self._items, values)

    def _count(self, told: Told) -> None:
        self._counts["count/candidates"] += 1
        for status in ("failed", "stopped"):
            self._counts[f"count/{status}"] += told.status == status

    def _take(self, told: Told) -> None:
        """Take an outcome among the best and the latest."""
        assert told.value is not None
        if not told.is_part:
            rank = (told.violation, -told.value)
            if self._best is None or rank < self._best[0]:
                self._best = (rank, told)
        if told.origin == "search":
            if told.stage != self._stage:
                self._stage = told.stage
                self._recent = deque(maxlen=self._populations[told.stage])
            self._recent.append(told)

    def _means(self) -> dict[str, float]:
        """Return the means over the latest proposals."""
        if not self._recent:
            return {}
        found = {"mean/value": fmean(t.value for t in self._recent if t.value is not None)}
        for objective in self._recent[-1].means:
            found[f"mean/{objective}"] = fmean(t.means[objective] for t in self._recent)
        return found


def _scores(of: str, told: Told) -> dict[str, float]:
    value = {} if told.value is None else {f"{of}/value": told.value}
    return {**value, **{f"{of}/{name}": mean for name, mean in told.means.items()}}


def ending(archive: ArchiveReader, directory: Path) -> Ending:
    """Return what the search in a run's directory came to.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     archive = example_archive(f"{run}/archive.db")
    ...     found = ending(archive, Path(run))
    >>> found.summary["end/heldout/accuracy"], found.columns[:4]
    (0.625, ['id', 'who', 'front', 'value'])
    """
    status, standing = summary.status(directory), summary.standing(directory)
    rows: list[list[float | str | None]] = []
    columns = ["id", "who", "front", "value"]
    sides = ("search", "heldout")
    for objective in archive.objectives:
        for side in sides:
            columns += [f"{objective.name} {side}", f"{objective.name} {side} stderr"]
    for row in summary.front(directory):
        is_on_front, value = standing[row["id"]]
        cells: list[float | str | None] = [row["id"], row["label"] or row["origin"]]
        cells += ["*" if is_on_front else "", value]
        for scores in row["scores"].values():
            cells += [*_cells(scores["search"]), *_cells(scores["heldout"])]
        rows.append(cells)
    found: dict[str, float | str] = {"end/state": status["state"]}
    best = status["best"]
    if best is not None:
        found |= {"end/candidate": best["id"], "end/recipe": best["recipe_id"]}
        if best["value"] is not None:
            found["end/value"] = best["value"]
        for name, scores in best["scores"].items():
            for side, score in (("search", scores["search"]), ("heldout", scores["heldout"])):
                if score is not None:
                    found[f"end/{side}/{name}"] = score["mean"]
                    found[f"end/{side}/{name} stderr"] = score["stderr"]
    if status["hypervolume"] is not None:
        found["end/hypervolume"] = status["hypervolume"]
    return Ending(status["state"] == "finished", found, columns, rows)


def _cells(score: ScoreShape | None) -> list[float | str | None]:
    return [None, None] if score is None else [score["mean"], score["stderr"]]
