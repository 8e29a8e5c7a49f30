"""The candidates and the events of an archive: what a resume replays."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.archive.database import Database, Row, Value
from evomerge.archive.records import Candidate, Event
from evomerge.archive.stored_recipe import from_columns
from evomerge.errors import EvomergeError, one_line
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.outcome import Score
from evomerge.search.controllers import Proposal

_CANDIDATE = (
    "c.id, c.recipe_id, c.origin, c.label, c.ordinal, c.stage, c.parents, c.genome, c.part, c.again"
)


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
            origin: those that are "search", "baseline", "seed", "warm_start" or "recommended".
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

    def scored_before(self, recipe_id: str, part: int | None = None) -> int | None:
        """Return the first candidate of a recipe that has an outcome of its own, or None.

        Args:
            recipe_id: of the recipe.
            part: of the stage's items, on which it was scored; None: on all of them.
        """
        sql = (
            "SELECT c.id FROM candidates c JOIN outcomes o ON o.candidate_id = c.id"
            " WHERE c.recipe_id = :recipe AND o.copy_of IS NULL AND c.part IS :part"
            " AND (:part IS NULL OR c.stage = :stage) ORDER BY c.id LIMIT 1"
        )
        row = self._db.first(sql, {"recipe": recipe_id, "part": part, "stage": self.stage})
        return row["id"] if row else None

    def in_full(self, recipe_id: str) -> int | None:
        """Return the first candidate of a recipe that was scored on all search items, or None."""
        sql = (
            "SELECT c.id FROM candidates c JOIN outcomes o ON o.candidate_id = c.id"
            " WHERE c.recipe_id = ? AND o.status = 'ok' AND c.part IS NULL ORDER BY c.id LIMIT 1"
        )
        row = self._db.first(sql, (recipe_id,))
        return row["id"] if row else None

    @property
    def machines(self) -> list[dict[str, Any]]:
        """What the campaign was started on, of each start: versions, host, device and others."""
        return [json.loads(r["machine"]) for r in self._db.rows("SELECT machine FROM starts")]

    def scored_in_full_before(self, part: int) -> list[int]:
        """Return who was scored in full when the first candidate of a part was asked for."""
        sql = (
            "SELECT c.id FROM candidates c"
            " CROSS JOIN outcomes o ON o.candidate_id = c.id"
            " CROSS JOIN events e ON e.candidate_id = c.id AND e.kind = 'tell'"
            " WHERE c.origin IN ('baseline', 'warm_start', 'recommended')"
            " AND o.status = 'ok' AND o.copy_of IS NULL"
            " AND e.seq < (SELECT MIN(a.seq) FROM candidates p CROSS JOIN events a"
            " ON a.candidate_id = p.id AND a.kind IN ('ask', 'seed')"
            " WHERE p.stage = ? AND p.part = ?)"
            " ORDER BY e.seq"
        )
        return [row["id"] for row in self._db.rows(sql, (self.stage, part))]

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
            **plain,
            stage=row["stage"],
            parents=parents,
            genome=genome,
            read_recipe=read_recipe,
            part=row["part"],
            again=row["again"],
        )

    # --- the ledger --------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Yield the stage's asks, tells and rebuilds in order, each ask with all its genomes.

        Outcomes of baselines of earlier stages are among its tells.
        """
        scores: dict[int, dict[str, Score]] = {}
        for row in self._db.rows("SELECT * FROM scores WHERE split = 'search'"):
            score = Score(row["mean"], row["stderr"], row["items"])
            scores.setdefault(row["candidate_id"], {})[row["objective"]] = score
        sql = (
            f"SELECT e.seq, e.kind, e.batch, e.asked, e.proposed, {_CANDIDATE}"
            " FROM events e LEFT JOIN candidates c ON c.id = e.candidate_id"
            " WHERE (e.kind IN ('ask', 'rebuild') AND e.stage = :stage) OR (e.kind = 'tell'"
            " AND (c.stage = :stage OR (c.origin = 'baseline' AND c.stage < :stage))"
            " AND c.origin != 'recommended')"  # of whom the controller hears nothing
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
                found = scores.get(candidate.id)
                yield Event(row["seq"], "tell", candidate=candidate, scores=found)
        if ask:
            yield _ask_event(ask)

    def race(self) -> tuple[list[Candidate], int]:
        """Return the candidates of the stage's latest race, and how many may end it; none: 0."""
        sql = (
            "SELECT MAX(batch) AS batch, MAX(asked) AS places FROM events WHERE kind = 'recommend'"
        )
        sql += " AND stage = :stage AND batch = (SELECT MAX(batch) FROM events"
        sql += " WHERE kind = 'recommend' AND stage = :stage)"
        row = self._db.first(sql, {"stage": self.stage})
        if row is None or row["batch"] is None:
            return [], 0
        chosen = "c.id IN (SELECT candidate_id FROM events WHERE batch = :batch)"
        return self._candidates(chosen, batch=row["batch"]), int(row["places"])

    def races(self) -> int:
        """Return how many races the stage has begun."""
        sql = "SELECT COUNT(DISTINCT batch) FROM events WHERE kind = 'recommend' AND stage = ?"
        return int(self._db.rows(sql, (self.stage,))[0][0])

    def proposed_since_best(self) -> int:
        """Return how many candidates the stage's controller proposed since the best was scored."""
        sql = (
            "SELECT COUNT(*) FROM events WHERE kind = 'ask' AND stage = :stage AND seq > COALESCE("
            "(SELECT MAX(seq) FROM events WHERE kind = 'tell' AND candidate_id ="
            " (SELECT o.candidate_id FROM outcomes o INDEXED BY outcomes_best"
            " WHERE o.status = 'ok' AND o.value IS NOT NULL"
            " ORDER BY o.violation, o.value DESC, o.candidate_id LIMIT 1)), 0)"
        )
        return int(self._db.rows(sql, {"stage": self.stage})[0][0])

    def asked_since_last_race(self) -> bool:
        """Tell whether the stage's controller was asked after a race that was to be the last."""
        sql = "SELECT COALESCE(MAX(seq), 0) FROM events WHERE stage = ? AND kind = "
        ask = self._db.rows(sql + "'ask'", (self.stage,))[0][0]
        race = self._db.rows(sql + "'recommend' AND note = 'last'", (self.stage,))[0][0]
        return bool(ask > race)

    def confirmed(self) -> list[int]:
        """Return who was scored in full because it was promising, or begun with."""
        sql = (
            "SELECT c.id FROM candidates c CROSS JOIN outcomes o ON o.candidate_id = c.id"
            " WHERE c.origin IN ('warm_start', 'recommended') AND o.status = 'ok' ORDER BY c.id"
        )
        return [row["id"] for row in self._db.rows(sql)]

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
        Proposal(
            np.frombuffer(row["genome"], "<f8"),
            tuple(json.loads(row["parents"])),
            row["part"] or 0,
            row["again"],
        )
        for row in rows
    )
    return Event(rows[0]["seq"], "ask", asked=rows[0]["asked"], proposals=proposals)
