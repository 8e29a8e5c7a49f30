"""The Pareto front, kept up in the archive as outcomes come: `candidates.dominated_by`."""

from collections.abc import Callable, Mapping

from evomerge.archive.database import Database
from evomerge.search.objectives import Objective
from evomerge.search.pareto import beats

Ranked = tuple[float, tuple[float, ...]]  # violation; objectives, signed so that more is better


class FrontKeeper:
    """Notes which candidate dominates which, within the transactions of `Archive`.

    The front is then a query, quick at any number of candidates: a newcomer meets the present
    front, and only that, as whatever dominates it is dominated by none or by one of the front.

    >>> keeper = FrontKeeper(Database(":memory:", write=True), lambda: ())
    >>> keeper.find()  # of no candidates
    """

    def __init__(self, db: Database, objectives: Callable[[], tuple[Objective, ...]]):
        """
        Args:
            db: open for writing.
            objectives: returns the campaign's, once it has begun.
        """
        self._db, self._objectives = db, objectives
        self._front: dict[int, Ranked] | None = None  # None: to be read before the next outcome

    def place(
        self, candidate: int, scored: tuple[float, Mapping[str, float]] | None = None
    ) -> None:
        """Compare a candidate, whose outcome was just written, with the front.

        Args:
            candidate: its number.
            scored: its violation and its means by objective; read if they are not given.
        """
        front, self._front = self._front, None  # it is read again if this fails half-way
        if front is None:
            front = self._ranked("c.dominated_by IS NULL AND c.part IS NULL")
            front.pop(candidate, None)
        newcomer = self._read(candidate) if scored is None else self._compared(*scored)
        self._front = self._placed(candidate, newcomer, front)

    def find(self) -> None:
        """Find the front anew, one outcome after the other."""
        scored = "SELECT candidate_id FROM outcomes WHERE status = 'ok' AND copy_of IS NULL"
        self._db.execute(f"UPDATE candidates SET dominated_by = NULL WHERE id IN ({scored})")
        self._front = None
        front: dict[int, Ranked] = {}
        for (candidate,) in self._db.rows(f"{scored} ORDER BY candidate_id"):
            front = self._placed(candidate, self._read(candidate), front)
        self._front = front

    def set_dominated(self, candidate: int, *, by: int) -> None:
        """Note that one candidate is dominated by another."""
        self._db.execute("UPDATE candidates SET dominated_by = ? WHERE id = ?", (by, candidate))

    def _placed(
        self, candidate: int, newcomer: Ranked, front: dict[int, Ranked]
    ) -> dict[int, Ranked]:
        """Return the front after a newcomer."""
        for other, ranked in front.items():
            if beats(ranked, newcomer):
                self.set_dominated(candidate, by=other)
                return front
        for other in [o for o, ranked in front.items() if beats(newcomer, ranked)]:
            del front[other]
            self.set_dominated(other, by=candidate)
        return front | {candidate: newcomer}

    def _read(self, candidate: int) -> Ranked:
        """Return what a candidate is compared by, as it was written."""
        return self._ranked("c.id = :id", id=candidate)[candidate]

    def _compared(self, violation: float, means: Mapping[str, float]) -> Ranked:
        """Return what is compared, with objectives in the plan's order."""
        return violation, tuple(o.sign * means[o.name] for o in self._objectives())

    def _ranked(self, condition: str, **values: int) -> dict[int, Ranked]:
        """Return what candidates are compared by, as it was written."""
        sql = (
            "SELECT c.id, s.objective, s.mean, o.violation FROM candidates c"
            " JOIN outcomes o ON o.candidate_id = c.id AND o.status = 'ok'"
            f" JOIN scores s ON s.candidate_id = c.id AND s.split = 'search' WHERE {condition}"
        )
        means: dict[int, dict[str, float]] = {}
        violations: dict[int, float] = {}
        for row in self._db.rows(sql, values):
            means.setdefault(row["id"], {})[row["objective"]] = row["mean"]
            violations[row["id"]] = row["violation"]
        return {number: self._compared(violations[number], of) for number, of in means.items()}
