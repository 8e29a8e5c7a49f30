"""How many candidates there are by an archive, and how long they take: of workers, of the clock."""

from typing import NamedTuple

from evomerge.archive.ledger import Ledger
from evomerge.archive.shapes import PartsShape

_LATEST = 1000  # candidates and events by which the pace is told


class Cost(NamedTuple):
    """What outcomes of one kind have taken together.

    Attributes:
        outcomes: how many, those that were copied among them.
        items: that were scored.
        seconds: of workers, for merging and scoring.

    >>> Cost(4, 200, 10.0) + Cost(1, 800, 30.0)
    Cost(outcomes=5, items=1000, seconds=40.0)
    """

    outcomes: int
    items: int
    seconds: float

    def __add__(self, other: object) -> "Cost":
        if not isinstance(other, Cost):
            return NotImplemented
        pairs = zip(self, other, strict=True)
        outcomes, items, seconds = (one + another for one, another in pairs)
        return Cost(int(outcomes), int(items), seconds)


class WorkReader(Ledger):
    """The part of an archive's reader that counts candidates and time.

    >>> reader = WorkReader(":memory:", write=True)
    >>> reader.work_seconds(), reader.costs(), reader.utilization(), reader.final_cost()
    ({'merge': 0.0, 'score': 0.0}, {}, None, Cost(outcomes=0, items=0, seconds=0.0))
    """

    @property
    def seconds(self) -> float:
        """The seconds of all starts together."""
        return float(self._db.rows("SELECT TOTAL(seconds) FROM starts")[0][0])

    def work_seconds(self) -> dict[str, float]:
        """Return the seconds that workers spent merging and scoring, summed over candidates."""
        sql = "SELECT TOTAL(seconds_merge) AS merge, TOTAL(seconds_score) AS score FROM outcomes"
        return dict(self._db.rows(sql)[0])

    def costs(self) -> dict[tuple[int, str], Cost]:
        """Return (stage, origin) -> what outcomes on search items have taken.

        Of proposals the latest alone: those show the pace, and it may be asked for every second.
        """
        sql = (
            "SELECT c.stage, c.origin, COUNT(*) AS count, TOTAL(o.items_scored) AS items,"
            " TOTAL(o.seconds_merge) + TOTAL(o.seconds_score) AS seconds FROM candidates c"
            " CROSS JOIN outcomes o ON o.candidate_id = c.id"
            " WHERE {} GROUP BY c.stage, c.origin"
        )
        others = "c.origin IN ('baseline', 'seed', 'warm_start', 'recommended')"
        latest = "c.origin = 'search' AND c.id > (SELECT MAX(id) FROM candidates) - :latest"
        found = {}
        for condition in (others, latest):
            for row in self._db.rows(sql.format(condition), {"latest": _LATEST}):
                cost = Cost(row["count"], int(row["items"]), row["seconds"])
                found[row["stage"], row["origin"]] = cost
        return found

    def final_cost(self) -> Cost:
        """Return what the outcomes on held-out items have taken."""
        sql = (
            "SELECT COUNT(*) AS count, TOTAL(f.seconds_score) AS seconds, (SELECT TOTAL(s.items)"
            " FROM finals g CROSS JOIN scores s ON s.candidate_id = g.candidate_id"
            " AND s.split = 'heldout') AS items FROM finals f"
        )
        (row,) = self._db.rows(sql)
        return Cost(row["count"], int(row["items"]), row["seconds"])

    def utilization(self) -> tuple[float, int] | None:
        """Return seconds of workers for each second of the clock, and how many outcomes tell it.

        Of the latest outcomes since the latest start; None before its first outcome.
        """
        start = self._db.first("SELECT at, seconds FROM starts ORDER BY id DESC LIMIT 1")
        if start is None:
            return None
        sql = (
            "SELECT COUNT(*) AS count, TOTAL(seconds) AS seconds, MIN(at - seconds) AS began FROM ("
            "SELECT e.at, CASE e.kind WHEN 'final' THEN f.seconds_score"
            " ELSE o.seconds_merge + o.seconds_score END AS seconds FROM events e"
            " CROSS JOIN outcomes o ON o.candidate_id = e.candidate_id"
            " LEFT JOIN finals f ON f.candidate_id = e.candidate_id"
            " WHERE e.kind IN ('tell', 'final') AND e.at >= :start"
            " AND e.seq > (SELECT MAX(seq) FROM events) - :latest)"
        )
        row = self._db.first(sql, {"start": start["at"], "latest": _LATEST})
        if row is None or not row["count"]:
            return None
        clock = start["seconds"] - max(0.0, row["began"] - start["at"])
        return (row["seconds"] / clock, row["count"]) if clock > 0 else None

    def items_of(self, split: str) -> dict[str, int]:
        """Return objective -> how many items one side of the split has."""
        sql = "SELECT objective, COUNT(*) AS items FROM items WHERE split = ? GROUP BY objective"
        return {row["objective"]: row["items"] for row in self._db.rows(sql, (split,))}

    def waiting(self, stage: int, origin: str) -> int:
        """Return how many candidates of a stage and an origin have no outcome yet."""
        sql = (
            "SELECT COUNT(*) FROM candidates WHERE stage = ? AND origin = ?"
            " AND id NOT IN (SELECT candidate_id FROM outcomes)"
        )
        return int(self._db.rows(sql, (stage, origin))[0][0])

    def counts(self) -> dict[str, int]:
        """Return how many candidates are ok, stopped, failed, and still without an outcome."""
        counts = {"ok": 0, "stopped": 0, "failed": 0}
        for row in self._db.rows("SELECT status, COUNT(*) AS n FROM outcomes GROUP BY status"):
            counts[row["status"]] = row["n"]
        total = self._db.rows("SELECT COUNT(*) FROM candidates")[0][0]
        return counts | {"running": total - sum(counts.values())}

    def counts_in_parts(self) -> PartsShape:
        """Return how many candidates that are ok were scored on parts, and how many in full."""
        sql = (
            "SELECT COUNT(c.part) AS parts, COUNT(*) - COUNT(c.part) AS whole FROM outcomes o"
            " CROSS JOIN candidates c ON c.id = o.candidate_id WHERE o.status = 'ok'"
        )
        (row,) = self._db.rows(sql)
        return {"parts": row["parts"], "full": row["whole"]}
