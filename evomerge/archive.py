"""The archive: one SQLite file that holds every ask and every tell, in order, with every
candidate, outcome and item score. It is all that a resume needs.

One process writes (the campaign); any number may read meanwhile. Each method that writes is
one transaction, so a process killed at any line leaves whole facts or none.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evomerge.controllers import Proposal
from evomerge.errors import EvomergeError
from evomerge.pareto import Objective, beats
from evomerge.recipe import Outcome
from evomerge.schema import MIGRATIONS
from evomerge.scores import Score, decode_scores, encode_scores, summary

_Ranked = tuple[float, tuple[float, ...]]  # violation, objectives
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


class Archive:
    """The archive file of one campaign; see the module's docstring for who may write."""

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
        self._front: dict[int, _Ranked] | None = None

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
        return list(self.db.query(sql, parameters))

    # --- the campaign ------------------------------------------------------------------

    def begin(self, name: str, plan: Mapping, provenance: Mapping, items: Iterable[tuple]) -> None:
        """Write down the frozen plan, where everything comes from, and the items.

        Args:
            name, plan, provenance: of the campaign, JSON-able.
            items: (objective, split, ordinal, doc_hash).
        """
        with self.db.atomic():
            row = (name, json.dumps(plan), json.dumps(provenance))
            self._execute("INSERT INTO campaign VALUES (1, ?, ?, ?, 'running', '')", row)
            self.db.conn.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", items)

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

    def set_plan(self, plan: Mapping) -> None:
        self._execute("UPDATE campaign SET plan = ?", (json.dumps(plan),))

    def set_state(self, state: str, reason: str = "") -> None:
        self._execute("UPDATE campaign SET state = ?, reason = ?", (state, reason))

    def item_hashes(self, objective: str, split: str) -> dict[int, str]:
        sql = "SELECT ordinal, doc_hash FROM items WHERE objective = ? AND split = ?"
        return {r["ordinal"]: r["doc_hash"] for r in self._query(sql, (objective, split))}

    def start(self, machine: Mapping) -> int:
        """Note that the campaign was started on `machine`; return the start's id."""
        row = (time.time(), json.dumps(machine))
        sql = "INSERT INTO starts (at, seconds, machine) VALUES (?, 0, ?)"
        return self._execute(sql, row).lastrowid

    def set_seconds(self, start: int, seconds: float) -> None:
        """Note how long a start has run, by a clock that never goes back."""
        self._execute("UPDATE starts SET seconds = ? WHERE id = ?", (seconds, start))

    @property
    def seconds(self) -> float:
        """The seconds of all starts together."""
        return self._query("SELECT TOTAL(seconds) AS s FROM starts")[0]["s"]

    # --- the ledger --------------------------------------------------------------------

    def add_baseline(self, recipe_id: str, recipe: Mapping, label: str) -> int:
        """Add a candidate that no controller proposed; return its id."""
        sql = "INSERT INTO candidates (recipe_id, recipe, origin, label) VALUES (?, ?, ?, ?)"
        row = (recipe_id, json.dumps(recipe), "baseline", label)
        return self._execute(sql, row).lastrowid

    def add_adopted(self, rows: Sequence[tuple[str, np.ndarray, str, Mapping]]) -> None:
        """Add candidates of other runs: (RUN#NUMBER, genome, recipe id, recipe JSON) each."""
        sql = (
            "INSERT INTO candidates (recipe_id, recipe, genome, origin, label)"
            " VALUES (?, ?, ?, 'adopted', ?)"
        )
        with self.db.atomic():
            for label, genome, recipe_id, recipe in rows:
                blob = np.asarray(genome, "<f8").tobytes()
                row = (recipe_id, json.dumps(recipe), blob, label)
                self._event("adopt", self._execute(sql, row).lastrowid, note=label)

    def propose(
        self, n: int, proposals: Sequence[Proposal], recipes: Sequence[tuple[str, Mapping]]
    ) -> list[int]:
        """Record one ask and its candidates, before anything is done with them.

        Args:
            n: how many were asked for.
            proposals: what was proposed.
            recipes: the id and the JSON of each one's recipe.

        Returns:
            The candidates' ids.
        """
        ids = []
        with self.db.atomic():
            batch = (self._query("SELECT MAX(batch) AS b FROM events")[0]["b"] or 0) + 1
            ordinal = self.proposed() - 1
            for proposal, (recipe_id, recipe) in zip(proposals, recipes, strict=True):
                ordinal += 1
                blob = np.asarray(proposal.genome, "<f8").tobytes()
                parents = json.dumps(proposal.parents) if proposal.parents else None
                row = (recipe_id, json.dumps(recipe), blob, "search", parents, ordinal)
                sql = (
                    "INSERT INTO candidates (recipe_id, recipe, genome, origin, parents, ordinal)"
                    " VALUES (?, ?, ?, ?, ?, ?)"
                )
                ids.append(self._execute(sql, row).lastrowid)
                self._event("ask", ids[-1], batch=batch, n=n)
        return ids

    def record(
        self, candidate: int, outcome: Outcome, value: float | None, violation: float = 0.0
    ) -> None:
        """Record an outcome on the search items; the controller may hear of it afterwards.

        Args:
            candidate: its id.
            outcome: of the search split.
            value: the weighted mean that a controller of one objective gets; None for a
                failure, or as long as the baselines are not all scored.
            violation: of the constraints.
        """
        items = sum(len(s) for s in outcome.scores.values())
        with self.db.atomic():
            self._execute(
                "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?)",
                (
                    candidate,
                    outcome.status,
                    outcome.reason,
                    value,
                    outcome.seconds_merge,
                    outcome.seconds_score,
                    items,
                    outcome.weights_checksum,
                    outcome.worker,
                    violation,
                ),
            )
            self._write_scores(candidate, "search", outcome.scores)
            self._event("tell", candidate)
            if outcome.status == "ok":
                front, self._front = self._front, None  # read again if this fails half-way
                self._front = self._place_on_front(candidate, front)

    def record_copy(self, candidate: int, earlier: int) -> None:
        """Record that a candidate is the same recipe as `earlier`, with the same outcome."""
        with self.db.atomic():
            self._execute(
                "INSERT INTO outcomes SELECT ?, status, reason, value, 0, 0, 0,"
                " weights_checksum, worker, candidate_id, violation FROM outcomes"
                " WHERE candidate_id = ?",
                (candidate, earlier),
            )
            self._execute(
                "INSERT INTO scores SELECT ?, objective, split, mean, stderr, items FROM scores"
                " WHERE candidate_id = ? AND split = 'search'",
                (candidate, earlier),
            )
            # An equal is never dominated by its twin, and would stand on the front twice.
            self._execute(
                "UPDATE candidates SET dominated_by = ? WHERE id = ?", (earlier, candidate)
            )
            self._event("tell", candidate)

    def record_retry(self, candidate: int, reason: str, blamed: bool = True) -> tuple[int, int]:
        """Record that a candidate lost its worker.

        Args:
            candidate: its number.
            reason: in one line.
            blamed: whether the candidate may have killed it; a node's death is not its doing.

        Returns:
            How many workers it is blamed for on this split, and how many it lost in all.
        """
        with self.db.atomic():
            self._event("retry", candidate, n=int(blamed), note=reason)
            sql = (
                "SELECT COALESCE(SUM(COALESCE(n, 1)), 0) AS blamed, COUNT(*) AS lost FROM events"
                " WHERE candidate_id = ? AND kind = 'retry' AND seq > (SELECT COALESCE(MAX(seq), 0)"
                " FROM events WHERE candidate_id = ? AND kind = 'tell')"
            )
            (row,) = self._query(sql, (candidate, candidate))
            return row["blamed"], row["lost"]

    def forget_baselines(self) -> None:
        """Take back the outcomes of the baselines, all of which failed, to score them again."""
        with self.db.atomic():
            for row in self._query(
                "SELECT o.candidate_id AS c, o.reason FROM outcomes o JOIN candidates c"
                " ON c.id = o.candidate_id WHERE c.origin = 'baseline'"
            ):
                for table, where in (("outcomes", ""), ("events", " AND kind = 'tell'")):
                    sql = f"DELETE FROM {table} WHERE candidate_id = ?{where}"
                    self._execute(sql, (row["c"],))
                self._event("retry", row["c"], note=row["reason"])

    def record_adopt(self) -> None:
        """Record that the controller starts anew here, from the outcomes told so far."""
        with self.db.atomic():
            self._event("adopt", None, n=self.proposed())

    def record_final(self, candidate: int, outcome: Outcome) -> None:
        """Record an outcome on the held-out items, with what the model said to each."""
        with self.db.atomic():
            self._write_scores(candidate, "heldout", outcome.scores)
            for objective, answers in outcome.answers.items():
                ordinals = sorted(self.item_hashes(objective, "heldout"))
                self.db.conn.executemany(
                    "INSERT INTO answers VALUES (?, ?, 'heldout', ?, ?)",
                    [(candidate, objective, *row) for row in zip(ordinals, answers, strict=True)],
                )
            self._event("final", candidate, note=outcome.reason)

    def set_values(self, values: Mapping[int, tuple[float, float]]) -> None:
        """Fill in value and violation of what was recorded before the baselines were complete.

        The front is found anew if it is theirs alone, as constraints may have changed it.
        """
        with self.db.atomic():
            rows = [(*worth, c) for c, worth in values.items()]
            sql = "UPDATE outcomes SET value = ?, violation = ? WHERE candidate_id = ?"
            self.db.conn.executemany(sql, rows)
            if any(v for _, v in values.values()) and not self.proposed():
                sql = (
                    "SELECT candidate_id AS c FROM outcomes WHERE status = 'ok' AND copy_of IS NULL"
                )
                found = [row["c"] for row in self._query(f"{sql} ORDER BY candidate_id")]
                self._execute(f"UPDATE candidates SET dominated_by = NULL WHERE id IN ({sql})")
                self._front, front = None, {}
                for candidate in found:
                    front = self._place_on_front(candidate, front)
                self._front = front

    def _event(
        self, kind: str, candidate: int | None, *, batch=None, n=None, note: str = ""
    ) -> None:
        self._execute(
            "INSERT INTO events (kind, batch, n, candidate_id, note, at) VALUES (?, ?, ?, ?, ?, ?)",
            (kind, batch, n, candidate, note, time.time()),
        )

    def _write_scores(self, candidate: int, split: str, scores: Mapping[str, np.ndarray]) -> None:
        for objective, items in scores.items():
            mean, stderr, n = summary(items)
            encoding, blob = encode_scores(items)
            self._execute(
                "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)",
                (candidate, objective, split, mean, stderr, n),
            )
            self._execute(
                "INSERT INTO item_scores VALUES (?, ?, ?, ?, NULL, ?)",
                (candidate, objective, split, encoding, blob),
            )

    def _place_on_front(self, candidate: int, front: dict | None) -> dict:
        """Keep `dominated_by` true: the newcomer meets the present front, and only that."""
        if front is None:
            front = self._vectors("c.dominated_by IS NULL")
            front.pop(candidate, None)
        mine = self._vectors("c.id = ?", (candidate,))[candidate]
        sql = "UPDATE candidates SET dominated_by = ? WHERE id = ?"
        for other, vector in front.items():
            if beats(vector, mine):
                self._execute(sql, (other, candidate))
                return front
        for other in [o for o, vector in front.items() if beats(mine, vector)]:
            del front[other]
            self._execute(sql, (candidate, other))
        return front | {candidate: mine}

    def _vectors(self, where: str, parameters: Sequence = ()) -> dict[int, _Ranked]:
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

    def unfinished(self) -> list[Candidate]:
        """Return the candidates without an outcome: asked before a kill, or in flight."""
        return self.candidates("id NOT IN (SELECT candidate_id FROM outcomes)")

    def earlier(self, recipe_id: str) -> int | None:
        """Return the first candidate of this recipe that has an outcome, if there is one."""
        sql = (
            "SELECT c.id FROM candidates c JOIN outcomes o ON o.candidate_id = c.id"
            " WHERE c.recipe_id = ? AND o.copy_of IS NULL ORDER BY c.id LIMIT 1"
        )
        rows = self._query(sql, (recipe_id,))
        return rows[0]["id"] if rows else None

    def events(self) -> Iterator[Event]:
        """Yield asks, tells and adoptions in their order, each ask with all its genomes."""
        means: dict[int, dict[str, float]] = {}
        sql = "SELECT candidate_id, objective, mean FROM scores WHERE split = 'search'"
        for row in self._query(sql):
            means.setdefault(row["candidate_id"], {})[row["objective"]] = row["mean"]
        sql = (
            "SELECT e.seq, e.kind, e.batch, e.n, c.id, c.genome, c.origin, c.label, c.ordinal,"
            " c.parents, c.recipe_id FROM events e LEFT JOIN candidates c ON c.id = e.candidate_id"
            " WHERE e.kind IN ('ask', 'tell')"
            " OR (e.kind = 'adopt' AND e.candidate_id IS NULL) ORDER BY e.seq"
        )
        ask: list[dict] = []
        for row in self._query(sql):
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
        """Return how many candidates the controller has proposed."""
        sql = "SELECT MAX(ordinal) AS o FROM candidates"
        last = self._query(sql)[0]["o"]
        return 0 if last is None else last + 1

    def finals_done(self) -> set[int]:
        sql = "SELECT candidate_id AS c FROM events WHERE kind = 'final'"
        return {r["c"] for r in self._query(sql)}

    def work_seconds(self) -> dict[str, float]:
        """Return the seconds that workers spent merging and scoring, summed over candidates."""
        sql = "SELECT TOTAL(seconds_merge) AS merge, TOTAL(seconds_score) AS score FROM outcomes"
        return self._query(sql)[0]


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
