"""The candidates and the events of an archive: what a resume replays."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evomerge.archive.database import Database, Row, Value
from evomerge.archive.records import Candidate, Event
from evomerge.archive.stored_recipe import from_columns
from evomerge.errors import EvomergeError, one_line
from evomerge.recipes.recipe import Recipe
from evomerge.search.controllers import Proposal

_CANDIDATE = "c.id, c.recipe_id, c.origin, c.label, c.ordinal, c.stage, c.parents, c.genome"


class Ledger:
    """An archive's file, opened; `ArchiveReader` adds the campaign and the outcomes.

    Attributes:
        path: of the file.
        stage: of the campaign, whose events are read, and to which what is added belongs.

    >>> ledger = Ledger(":memory:", write=True)
    >>> ledger.candidates(), list(ledger.events()), ledger.proposed()
    ([], [], 0)
    """

    def __init__(self, path: Path | str, *, write: bool = False):
        """Open an archive; with `write`, create it if need be and bring its schema up to date.

        Raises:
            EvomergeError: there is no archive there, it cannot be read, or a later version
                of evomerge wrote it.
        """
        self.path = Path(path)
        self.stage = 0
        if not write and not self.path.exists():
            raise EvomergeError(f"{path}: there is no archive; is this a run's directory?")
        self._db = Database(path, write=write)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- candidates --------------------------------------------------------------------

    def find_candidate(self, candidate: int) -> Candidate | None:
        """Return a candidate by its number, or None if there is none."""
        return self._first_candidate("c.id = :id", id=candidate)

    def candidate(self, candidate: int) -> Candidate:
        """Return a candidate by its number.

        Raises:
            EvomergeError: there is none.
        """
        found = self.find_candidate(candidate)
        if found is None:
            raise EvomergeError(f"{self.path}: there is no candidate {candidate}")
        return found

    def candidates(self, origin: str | None = None, stage: int | None = None) -> list[Candidate]:
        """Return candidates in order of their numbers.

        Args:
            origin: those that are "search", "baseline" or "warm_start".
            stage: those of one stage.
        """
        conditions = ["1"]  # only what is asked for, so that its index is used
        if origin is not None:
            conditions.append("c.origin = :origin")
        if stage is not None:
            conditions.append("c.stage = :stage")
        return self._candidates(" AND ".join(conditions), origin=origin, stage=stage)

    def baselines(self, stage: int | None = None) -> list[Candidate]:
        """Return the baselines, of one stage or of all; those of stage 0 fix the scale."""
        return self.candidates("baseline", stage)

    def warm_starts(self) -> list[Candidate]:
        """Return the candidates of other runs with which the campaign began."""
        return self.candidates("warm_start")

    def unfinished(self, stage: int | None = None) -> list[Candidate]:
        """Return the candidates without an outcome: asked before a kill, or in flight."""
        sql = (
            "c.id NOT IN (SELECT candidate_id FROM outcomes)"
            " AND (:stage IS NULL OR c.stage = :stage)"
        )
        return self._candidates(sql, stage=stage)

    def last_candidate(self) -> Candidate | None:
        """Return the candidate of the highest number, or None if there is none yet."""
        return self._first_candidate("c.id = (SELECT MAX(id) FROM candidates)")

    def stage_has_begun(self, stage: int) -> bool:
        """Tell whether a stage, or one after it, has a candidate."""
        return bool(self._db.first("SELECT 1 FROM candidates WHERE stage >= ? LIMIT 1", (stage,)))

    def scored_before(self, recipe_id: str) -> int | None:
        """Return the first candidate of a recipe that has an outcome of its own, or None."""
        sql = (
            "SELECT c.id FROM candidates c JOIN outcomes o ON o.candidate_id = c.id"
            " WHERE c.recipe_id = ? AND o.copy_of IS NULL ORDER BY c.id LIMIT 1"
        )
        row = self._db.first(sql, (recipe_id,))
        return row["id"] if row else None

    def recipe(self, recipe_id: str) -> Recipe:
        """Return an archived recipe by its id.

        Raises:
            EvomergeError: no candidate has it.
        """
        found = self._first_candidate("c.recipe_id = :recipe_id", recipe_id=recipe_id)
        if found is None:
            raise EvomergeError(f"{self.path}: there is no recipe {recipe_id}")
        return found.recipe

    def _candidates(self, condition: str, **values: Value) -> list[Candidate]:
        sql = f"SELECT {_CANDIDATE} FROM candidates c WHERE {condition} ORDER BY c.id"
        return [self._candidate(row) for row in self._db.rows(sql, values)]

    def _first_candidate(self, condition: str, **values: Value) -> Candidate | None:
        found = self._candidates(condition, **values)
        return found[0] if found else None

    def _candidate(self, row: Row) -> Candidate:
        def read_recipe() -> Recipe:
            sql = "SELECT recipe, segments FROM candidates WHERE id = ?"
            (found,) = self._db.rows(sql, (row["id"],))
            return from_columns(found["recipe"], found["segments"])

        plain = {name: row[name] for name in ("id", "recipe_id", "origin", "label", "ordinal")}
        try:
            parents = tuple(json.loads(row["parents"]))
            genome = None if row["genome"] is None else np.frombuffer(row["genome"], "<f8")
        except (RecursionError, TypeError, ValueError) as error:
            wrong = f"candidate {row['id']} has no parents and genome ({one_line(error)})"
            raise EvomergeError(f"{self.path}: {wrong}") from error
        return Candidate(
            **plain, stage=row["stage"], parents=parents, genome=genome, read_recipe=read_recipe
        )

    # --- the ledger --------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Yield the stage's asks, tells and rebuilds in order, each ask with all its genomes.

        Outcomes of baselines of earlier stages are among its tells.
        """
        means: dict[int, dict[str, float]] = {}
        for row in self._db.rows("SELECT * FROM scores WHERE split = 'search'"):
            means.setdefault(row["candidate_id"], {})[row["objective"]] = row["mean"]
        sql = (
            f"SELECT e.seq, e.kind, e.batch, e.asked, e.proposed, {_CANDIDATE}"
            " FROM events e LEFT JOIN candidates c ON c.id = e.candidate_id"
            " WHERE (e.kind IN ('ask', 'rebuild') AND e.stage = :stage) OR (e.kind = 'tell'"
            " AND (c.stage = :stage OR (c.origin = 'baseline' AND c.stage < :stage)))"
            " ORDER BY e.seq"
        )
        ask: list[Row] = []  # the candidates of one ask, which follow one another
        for row in self._db.rows(sql, {"stage": self.stage}):
            if ask and (row["kind"] != "ask" or row["batch"] != ask[0]["batch"]):
                yield _ask_event(ask)
                ask = []
            if row["kind"] == "ask":
                ask.append(row)
            elif row["kind"] == "rebuild":
                yield Event(row["seq"], "rebuild", proposed=row["proposed"])
            else:
                candidate = self._candidate(row)
                found = means.get(candidate.id)
                yield Event(row["seq"], "tell", candidate=candidate, means=found)
        if ask:
            yield _ask_event(ask)

    def proposed(self) -> int:
        """Return how many candidates controllers have proposed, in all stages."""
        stages = self._db.rows("SELECT DISTINCT stage FROM candidates")
        return sum(self.proposed_in(row["stage"]) for row in stages)

    def proposed_in(self, stage: int) -> int:
        """Return how many candidates a stage's controller has proposed."""
        sql = "SELECT MAX(ordinal) FROM candidates WHERE stage = ?"
        last = self._db.rows(sql, (stage,))[0][0]
        return 0 if last is None else int(last) + 1


def _ask_event(rows: list[Row]) -> Event:
    """Return the rows of one ask as an event."""
    proposals = tuple(
        Proposal(np.frombuffer(row["genome"], "<f8"), tuple(json.loads(row["parents"])))
        for row in rows
    )
    return Event(rows[0]["seq"], "ask", asked=rows[0]["asked"], proposals=proposals)
