"""The whole of an archive in a few queries: every candidate, score and worker, for pictures."""

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.stored_recipe import from_columns
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.outcome import Score

_AT_ONCE = 500  # numbers in one query; SQLite takes some thousand


class Row(NamedTuple):
    """One candidate and what became of it on the search items.

    Attributes:
        id, recipe_id, origin, label, stage, part, parents, genome: see `Candidate`.
        status: ok, stopped or failed; "" where there is no outcome yet.
        reason: of a failure.
        value: of a candidate that was scored in full; None otherwise.
        estimate: of the value, where a part of the items was scored; else None.
        violation: of the constraints.
        items: that were scored; 0 of a copy.
        copy_of: the number of the candidate whose outcome it has; else None.
        told: its place in the ledger's order of outcomes; None without one.

    >>> Row(1, "5f0c", "baseline", "ja", 0, None, (), None, "ok", "", 0.5, None, 0, 4, None, 2).best
    0.5
    """

    id: int
    recipe_id: str
    origin: str
    label: str | None
    stage: int
    part: int | None
    parents: tuple[int, ...]
    genome: np.ndarray | None
    status: str
    reason: str
    value: float | None
    estimate: float | None
    violation: float
    items: int
    copy_of: int | None
    told: int | None

    @property
    def best(self) -> float | None:
        """The value where all items were scored, else its estimate, else None."""
        return self.value if self.value is not None else self.estimate


class Work(NamedTuple):
    """What one worker did.

    Attributes:
        worker: HOST/PID/DEVICE.
        candidates: whose search items it scored; copies are nobody's work.
        merge, score: seconds for those.
        heldout: seconds for scoring held-out items.

    >>> Work("node/7/cpu", 4, 0.1, 8.0, 2.0).seconds
    10.1
    """

    worker: str
    candidates: int
    merge: float
    score: float
    heldout: float

    @property
    def seconds(self) -> float:
        """All of them together."""
        return self.merge + self.score + self.heldout


class History:
    """What is asked of an archive as a whole.

    >>> from evomerge.testing.archives import example_archive
    >>> history = History(example_archive())
    >>> [(row.id, row.status) for row in history.rows()][-2:]
    [(4, 'ok'), (5, 'failed')]
    >>> history.work()
    [Work(worker='node/1/cpu', candidates=4, merge=0.4, score=8.0, heldout=2.0)]
    """

    def __init__(self, archive: ArchiveReader):
        """
        Args:
            archive: open; whoever opened it closes it.
        """
        self._db = archive._db

    def one_state(self) -> AbstractContextManager[None]:
        """Let all that is read within be of one moment, whatever the campaign writes meanwhile."""
        return self._db.one_state()

    def rows(self) -> list[Row]:
        """Return every candidate with its outcome, in order of the numbers."""
        sql = (
            "SELECT c.id, c.recipe_id, c.origin, c.label, c.stage, c.part, c.parents, c.genome,"
            " o.status, o.reason, o.value, o.estimate, o.violation, o.items_scored, o.copy_of,"
            " (SELECT MAX(e.seq) FROM events e WHERE e.candidate_id = c.id AND e.kind = 'tell')"
            " AS told FROM candidates c LEFT JOIN outcomes o ON o.candidate_id = c.id"
            " ORDER BY c.id"
        )
        found = []
        for r in self._db.rows(sql):
            parents = tuple(int(parent) for parent in json.loads(r["parents"]))
            genome = None if r["genome"] is None else np.frombuffer(r["genome"], "<f8")
            row = Row(
                id=int(r["id"]),
                recipe_id=str(r["recipe_id"]),
                origin=str(r["origin"]),
                label=None if r["label"] is None else str(r["label"]),
                stage=int(r["stage"]),
                part=_whole(r["part"]),
                parents=parents,
                genome=genome,
                status=str(r["status"] or ""),
                reason=str(r["reason"] or ""),
                value=_number(r["value"]),
                estimate=_number(r["estimate"]),
                violation=float(r["violation"] or 0.0),
                items=int(r["items_scored"] or 0),
                copy_of=_whole(r["copy_of"]),
                told=_whole(r["told"]),
            )
            found.append(row)
        return found

    def scores(self, split: str) -> dict[int, dict[str, Score]]:
        """Return candidate -> objective -> score on one side of the split."""
        sql = "SELECT candidate_id, objective, mean, stderr, items FROM scores WHERE split = ?"
        found: dict[int, dict[str, Score]] = {}
        for r in self._db.rows(sql, (split,)):
            score = Score(float(r["mean"]), float(r["stderr"]), int(r["items"]))
            found.setdefault(int(r["candidate_id"]), {})[str(r["objective"])] = score
        return found

    def recipes(self, candidates: Iterable[int]) -> dict[int, Recipe]:
        """Return the recipes of candidates by their numbers.

        Raises:
            BadInput: one is none of evomerge's.
        """
        numbers, found = sorted(set(candidates)), {}
        for start in range(0, len(numbers), _AT_ONCE):
            chunk = numbers[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(chunk))
            sql = f"SELECT id, recipe, segments FROM candidates WHERE id IN ({marks})"
            for r in self._db.rows(sql, chunk):
                found[int(r["id"])] = from_columns(r["recipe"], r["segments"])
        return found

    def finals(self) -> dict[int, str]:
        """Return candidate -> why it failed on held-out items, "" if it did not."""
        rows = self._db.rows("SELECT candidate_id, status, reason FROM finals")
        return {int(r[0]): "" if r["status"] == "ok" else str(r["reason"]) for r in rows}

    def work(self) -> list[Work]:
        """Return what each worker did, the busiest first."""
        sql = (
            "SELECT worker, SUM(n) AS n, TOTAL(merge) AS merge, TOTAL(score) AS score,"
            " TOTAL(heldout) AS heldout FROM ("
            "SELECT worker, 1 AS n, seconds_merge AS merge, seconds_score AS score, 0.0 AS heldout"
            " FROM outcomes WHERE copy_of IS NULL UNION ALL"
            " SELECT worker, 0, 0.0, 0.0, seconds_score FROM finals)"
            " WHERE worker != '' GROUP BY worker ORDER BY merge + score + heldout DESC, worker"
        )
        return [
            Work(str(r["worker"]), int(r["n"]), *map(float, (r["merge"], r["score"], r["heldout"])))
            for r in self._db.rows(sql)
        ]

    def starts(self) -> list[tuple[float, float]]:
        """Return of each start when it was, in seconds since 1970, and the seconds it took."""
        rows = self._db.rows("SELECT at, seconds FROM starts ORDER BY id")
        return [(float(r["at"]), float(r["seconds"])) for r in rows]


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _whole(value: int | None) -> int | None:
    return None if value is None else int(value)
