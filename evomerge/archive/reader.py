"""The archive, read: what a resume, the commands and other processes ask of it.

Any number of processes may read while the campaign writes.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evomerge.archive.schema import MIGRATIONS
from evomerge.errors import EvomergeError
from evomerge.recipes.parse import from_json
from evomerge.scoring.outcome import Score, decode_scores
from evomerge.search.controllers import Proposal
from evomerge.search.objectives import Objective

Ranked = tuple[float, tuple[float, ...]]  # violation, objectives

DatabaseError = sqlite3.Error  # what a full or failing disk raises


class Candidate(NamedTuple):
    """One row of `candidates`."""

    id: int
    recipe_id: str
    recipe: dict
    genome: np.ndarray | None
    origin: str
    label: str | None
    ordinal: int | None


class Event(NamedTuple):
    """What a controller heard or was asked.

    `n` is how many were asked for, or how many were proposed before an adopt; `proposals`
    belong to an ask, `candidate` and `means` (None: a failure) to a tell.
    """

    seq: int
    kind: str
    n: int
    proposals: tuple[Proposal, ...]
    candidate: Candidate | None
    means: dict[str, float] | None


class Reading:
    """The archive file of one campaign, opened; `Archive` writes to it."""

    def __init__(self, path: Path | str, *, write: bool = False):
        """Open an archive; with `write`, create it if need be and bring its schema up to date.

        Raises:
            EvomergeError: there is no archive there, it cannot be read, or a later version
                of evomerge wrote it.
        """
        from sqlite_utils import Database

        self.path = Path(path)
        if not write and not self.path.exists():
            raise EvomergeError(f"{path}: there is no archive; is this a run's directory?")
        try:
            self.db = Database(self._connect(write))
            version = self._query("PRAGMA user_version")[0]["user_version"]
            if version > len(MIGRATIONS):
                raise EvomergeError(f"{path}: written by a later version of evomerge; update it")
            if write:
                self._execute("PRAGMA journal_mode = WAL")
                self._execute("PRAGMA synchronous = NORMAL")
                for index in range(version, len(MIGRATIONS)):
                    script = f"{MIGRATIONS[index]}; PRAGMA user_version = {index + 1}"
                    self.db.conn.executescript(f"BEGIN; {script}; COMMIT")
        except sqlite3.DatabaseError as error:
            raise EvomergeError(f"{path}: {error}; is it an archive of evomerge?") from error
        # An earlier version's archive that is only read knows no constraints.
        self._violation = "violation," if write or version > 2 else ""
        self._staged = write or version > 3
        self.stage = 0
        self._front: dict[int, Ranked] | None = None

    def _connect(self, write: bool) -> sqlite3.Connection:
        """Connect; in a folder that cannot be written, to a file that nobody writes."""
        options: dict[str, Any] = {"timeout": 30.0, "isolation_level": None}
        alone = not write and not os.access(self.path.parent, os.W_OK)
        if alone and not Path(f"{self.path}-wal").exists():
            address = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
            return sqlite3.connect(address, uri=True, **options)
        return sqlite3.connect(self.path, **options)

    def close(self) -> None:
        self.db.close()

    def _execute(self, sql: str, parameters: Sequence | Mapping = ()) -> sqlite3.Cursor:
        return self.db.conn.execute(sql, parameters)

    def _query(self, sql: str, parameters: Sequence | Mapping = ()) -> list[dict]:
        # not sqlite_utils' query(), which opens and ends a savepoint around each
        cursor = self._execute(sql, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    @property
    def campaign(self) -> dict | None:
        """The row of `campaign` with plan and provenance decoded; None before `begin`."""
        if not self._query("SELECT 1 FROM sqlite_master WHERE name = 'campaign'"):
            return None  # killed before its first table was there
        rows = self._query("SELECT * FROM campaign")
        if not rows:
            return None
        decoded = {k: json.loads(rows[0][k]) for k in ("plan", "provenance")}
        return rows[0] | decoded

    def item_hashes(self, objective: str, split: str) -> dict[int, str]:
        sql = "SELECT ordinal, doc_hash FROM items WHERE objective = ? AND split = ?"
        return {r["ordinal"]: r["doc_hash"] for r in self._query(sql, (objective, split))}

    @property
    def seconds(self) -> float:
        """The seconds of all starts together."""
        return self._query("SELECT TOTAL(seconds) AS s FROM starts")[0]["s"]

    # --- what a resume reads -----------------------------------------------------------

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives as the provenance has them, with their directions resolved."""
        if not hasattr(self, "_objectives"):
            rows = self.campaign["provenance"]["objectives"]
            self._objectives = tuple(Objective(**row) for row in rows)
        return self._objectives

    def candidates(self, where: str = "1", parameters: Sequence = ()) -> list[Candidate]:
        """Return candidates by a condition on the table `candidates`, in order of id."""
        columns = "id, recipe_id, recipe, genome, origin, label, ordinal"
        sql = f"SELECT {columns} FROM candidates WHERE {where} ORDER BY id"
        return [_candidate(r) for r in self._query(sql, parameters)]

    def recipe(self, recipe_id: str) -> Any:
        """Return an archived recipe by its id."""
        found = self.candidates("recipe_id = ?", (recipe_id,))[0]
        return from_json(found.recipe, f"candidate {found.id}")

    def baselines(self, first: bool = False) -> list[Candidate]:
        """Return the baselines, of the first stage only if so, which fix the objectives' scale."""
        of = " AND stage = 0" if first and self._staged else ""
        return self.candidates(f"origin = 'baseline'{of}")

    def unfinished(self, stage: int | None = None) -> list[Candidate]:
        """Return the candidates without an outcome: asked before a kill, or in flight.

        Args:
            stage: those of this one only.
        """
        of = f" AND stage = {stage:d}" if stage is not None else ""
        return self.candidates(f"id NOT IN (SELECT candidate_id FROM outcomes){of}")

    def earlier(self, recipe_id: str) -> int | None:
        """Return the first candidate of this recipe that has an outcome, if there is one."""
        sql = (
            "SELECT c.id FROM candidates c JOIN outcomes o ON o.candidate_id = c.id"
            " WHERE c.recipe_id = ? AND o.copy_of IS NULL ORDER BY c.id LIMIT 1"
        )
        rows = self._query(sql, (recipe_id,))
        return rows[0]["id"] if rows else None

    def events(self) -> Iterator[Event]:
        """Yield the stage's asks, tells and adoptions in order, each ask with all its genomes.

        Baselines of stages before are told to it too.
        """
        means: dict[int, dict[str, float]] = {}
        sql = "SELECT candidate_id, objective, mean FROM scores WHERE split = 'search'"
        for row in self._query(sql):
            means.setdefault(row["candidate_id"], {})[row["objective"]] = row["mean"]
        sql = (
            "SELECT e.seq, e.kind, e.batch, e.n, c.id, c.genome, c.origin, c.label, c.ordinal,"
            " c.parents, c.recipe_id FROM events e LEFT JOIN candidates c ON c.id = e.candidate_id"
            " WHERE (e.kind IN ('ask', 'tell')"
            " AND (c.stage = :stage OR (c.origin = 'baseline' AND c.stage < :stage)))"
            " OR (e.kind = 'adopt' AND e.candidate_id IS NULL AND COALESCE(e.batch, 0) = :stage)"
            " ORDER BY e.seq"
        )
        ask: list[dict] = []
        for row in self._query(sql, {"stage": self.stage}):
            if ask and (row["kind"] != "ask" or row["batch"] != ask[0]["batch"]):
                yield _ask_event(ask)
                ask = []
            if row["kind"] == "ask":
                ask.append(row)
            elif row["kind"] == "adopt":
                yield Event(row["seq"], "adopt", row["n"], (), None, None)
            else:
                candidate = _candidate(row | {"recipe": "{}"})
                found = means.get(row["id"])
                yield Event(row["seq"], "tell", 0, (), candidate, found)
        if ask:
            yield _ask_event(ask)

    # --- what people look at -----------------------------------------------------------

    def means(self, candidate: int, split: str = "search") -> dict[str, float]:
        return {o: s.mean for o, s in self.scores(candidate, split).items()}

    def scores(self, candidate: int, split: str) -> dict[str, Score]:
        """Return objective -> score of a candidate on a split; empty if not scored there."""
        sql = "SELECT * FROM scores WHERE candidate_id = ? AND split = ?"
        rows = self._query(sql, (candidate, split))
        return {r["objective"]: Score(r["mean"], r["stderr"], r["items"]) for r in rows}

    def item_scores(self, candidate: int, objective: str, split: str) -> np.ndarray | None:
        """Return a candidate's (items,) float32 scores, or None if it has none there."""
        sql = (
            "SELECT i.encoding, i.scores, s.items FROM item_scores i JOIN scores s USING"
            " (candidate_id, objective, split) WHERE candidate_id = COALESCE((SELECT copy_of"
            " FROM outcomes WHERE candidate_id = ? AND ? = 'search'), ?)"
            " AND objective = ? AND split = ?"
        )
        rows = self._query(sql, (candidate, split, candidate, objective, split))
        if not rows:
            return None
        return decode_scores(rows[0]["encoding"], rows[0]["scores"], rows[0]["items"])

    def answers(self, candidate: int, limit: int = -1) -> dict[str, list[dict]]:
        """Return objective -> ordinal and answer of held-out items, the first `limit` of each."""
        found = {}
        if not self._query("SELECT 1 FROM sqlite_master WHERE name = 'answers'"):
            return found  # an earlier version's archive
        for o in self.objectives:
            sql = (
                "SELECT ordinal, answer FROM answers WHERE candidate_id = ? AND objective = ?"
                " ORDER BY ordinal LIMIT ?"
            )
            if rows := self._query(sql, (candidate, o.name, limit)):
                found[o.name] = rows
        return found

    def outcome(self, candidate: int) -> dict | None:
        rows = self._query("SELECT * FROM outcomes WHERE candidate_id = ?", (candidate,))
        return rows[0] if rows else None

    def parents(self, candidate: int) -> list[int]:
        sql = "SELECT parents FROM candidates WHERE id = ?"
        return json.loads(self._query(sql, (candidate,))[0]["parents"] or "[]")

    def front(self) -> list[int]:
        """Return the ids of the candidates that no other dominates on search scores."""
        sql = "SELECT DISTINCT id FROM pareto_front ORDER BY id"
        return [r["id"] for r in self._query(sql)]

    def front_means(self) -> dict[int, tuple[float, dict[str, float]]]:
        """Return the violation and the search means of each candidate on the front."""
        violation = "o.violation" if self._violation else "0.0"
        sql = (
            f"SELECT f.id, f.objective, f.mean, {violation} AS violation FROM pareto_front f"
            " CROSS JOIN outcomes o ON o.candidate_id = f.id ORDER BY f.id"
        )
        found: dict[int, tuple[float, dict[str, float]]] = {}
        for row in self._query(sql):
            found.setdefault(row["id"], (row["violation"], {}))[1][row["objective"]] = row["mean"]
        return found

    def violation(self, candidate: int) -> float:
        """Return by how much a candidate misses the constraints, see `Constraints`."""
        outcome = self.outcome(candidate)
        return 0.0 if outcome is None else outcome.get("violation", 0.0)

    def best(self) -> int | None:
        """Return the candidate of least violation and highest value, the earliest of equals."""
        sql = (
            "SELECT candidate_id FROM outcomes WHERE status = 'ok' AND value IS NOT NULL"
            f" ORDER BY {self._violation} value DESC, candidate_id LIMIT 1"
        )
        rows = self._query(sql)
        return rows[0]["candidate_id"] if rows else None

    def counts(self) -> dict[str, int]:
        """Return how many candidates are ok, stopped, failed, and still without an outcome."""
        rows = self._query("SELECT status, COUNT(*) AS n FROM outcomes GROUP BY status")
        found = {"ok": 0, "stopped": 0, "failed": 0} | {r["status"]: r["n"] for r in rows}
        total = self._query("SELECT COUNT(*) AS n FROM candidates")[0]["n"]
        return found | {"running": total - sum(found.values())}

    def proposed(self) -> int:
        """Return how many candidates controllers have proposed, in all stages."""
        sql = "SELECT MAX(stage) AS s FROM candidates"
        last = (self._query(sql)[0]["s"] or 0) if self._staged else 0
        return sum(map(self.proposed_in, range(last + 1)))

    def proposed_in(self, stage: int) -> int:
        """Return how many candidates a stage's controller has proposed."""
        of = " WHERE stage = ?" if self._staged else ""
        sql = f"SELECT MAX(ordinal) AS o FROM candidates{of}"
        last = self._query(sql, (stage,) if of else ())[0]["o"]
        return 0 if last is None else last + 1

    def best_found(self, stage: int | None = None) -> int | None:
        """Return the best candidate that is no baseline, of a stage or of all, as `best` has it."""
        sql = (
            "SELECT o.candidate_id AS c FROM outcomes o JOIN candidates c ON c.id = o.candidate_id"
            " WHERE o.status = 'ok' AND o.value IS NOT NULL AND c.origin != 'baseline'"
            f"{'' if stage is None else ' AND c.stage = ?'}"
            f" ORDER BY {self._violation} value DESC, candidate_id LIMIT 1"
        )
        rows = self._query(sql, () if stage is None else (stage,))
        return rows[0]["c"] if rows else None

    def finals_done(self) -> set[int]:
        sql = "SELECT candidate_id AS c FROM events WHERE kind = 'final'"
        return {r["c"] for r in self._query(sql)}

    def work_seconds(self) -> dict[str, float]:
        """Return the seconds that workers spent merging and scoring, summed over candidates."""
        sql = "SELECT TOTAL(seconds_merge) AS merge, TOTAL(seconds_score) AS score FROM outcomes"
        return self._query(sql)[0]

    def _vectors(self, where: str, parameters: Sequence = ()) -> dict[int, Ranked]:
        """Return candidate -> violation, and signed search means in the plan's order."""
        signs = {o.name: o.sign for o in self.objectives}
        sql = (
            "SELECT c.id, s.objective, s.mean, o.violation FROM candidates c JOIN outcomes o ON"
            " o.candidate_id = c.id AND o.status = 'ok' JOIN scores s ON s.candidate_id = c.id"
            f" AND s.split = 'search' WHERE {where}"
        )
        found: dict[int, dict[str, float]] = {}
        violations: dict[int, float] = {}
        for row in self._query(sql, parameters):
            signed = signs[row["objective"]] * row["mean"]
            found.setdefault(row["id"], {})[row["objective"]] = signed
            violations[row["id"]] = row["violation"]
        return {
            c: (violations[c], tuple(means[name] for name in signs)) for c, means in found.items()
        }


def _candidate(row: Mapping[str, Any]) -> Candidate:
    genome = None if row["genome"] is None else np.frombuffer(row["genome"], "<f8")
    return Candidate(
        row["id"],
        row["recipe_id"],
        json.loads(row["recipe"]),
        genome,
        row["origin"],
        row["label"],
        row["ordinal"],
    )


def _ask_event(rows: list[dict]) -> Event:
    proposals = tuple(
        Proposal(np.frombuffer(r["genome"], "<f8"), tuple(json.loads(r["parents"] or "[]")))
        for r in rows
    )
    return Event(rows[0]["seq"], "ask", rows[0]["n"], proposals, None, None)
