"""The archive: one SQLite file that holds every ask and every tell, in order, with every
candidate, outcome and item score. It is all that a resume needs.

One process writes (the campaign); any number may read meanwhile. Each method that writes is
one transaction, so a process killed at any line leaves whole facts or none.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evomerge.archive.reader import Candidate, DatabaseError, Event, Reading
from evomerge.scoring.outcome import Outcome, encode_scores, summary
from evomerge.search.controllers import Proposal
from evomerge.search.pareto import beats

__all__ = ["Archive", "Candidate", "DatabaseError", "Event"]


class Archive(Reading):
    """The archive file of one campaign; see the module's docstring for who may write.

    Attributes:
        stage: of the campaign, to which what is added belongs.
    """

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

    def set_plan(self, plan: Mapping) -> None:
        self._execute("UPDATE campaign SET plan = ?", (json.dumps(plan),))

    def add_sources(self, sources: Mapping[str, Mapping]) -> None:
        """Add a later stage's sources to the provenance, by label."""
        provenance = self.campaign["provenance"]
        provenance["sources"] |= sources
        self._execute("UPDATE campaign SET provenance = ?", (json.dumps(provenance),))

    def set_state(self, state: str, reason: str = "") -> None:
        self._execute("UPDATE campaign SET state = ?, reason = ?", (state, reason))

    def start(self, machine: Mapping) -> int:
        """Note that the campaign was started on `machine`; return the start's id."""
        row = (time.time(), json.dumps(machine))
        sql = "INSERT INTO starts (at, seconds, machine) VALUES (?, 0, ?)"
        return self._execute(sql, row).lastrowid

    def set_seconds(self, start: int, seconds: float) -> None:
        """Note how long a start has run, by a clock that never goes back."""
        self._execute("UPDATE starts SET seconds = ? WHERE id = ?", (seconds, start))

    # --- the ledger --------------------------------------------------------------------

    def add_baseline(self, recipe_id: str, recipe: Mapping, label: str) -> int:
        """Add a candidate that no controller proposed; return its id."""
        sql = (
            "INSERT INTO candidates (recipe_id, recipe, origin, label, stage)"
            " VALUES (?, ?, 'baseline', ?, ?)"
        )
        row = (recipe_id, json.dumps(recipe), label, self.stage)
        return self._execute(sql, row).lastrowid

    def add_adopted(self, rows: Sequence[tuple[str, np.ndarray, str, Mapping]]) -> None:
        """Add candidates of other runs: (RUN#NUMBER, genome, recipe id, recipe JSON) each."""
        sql = (
            "INSERT INTO candidates (recipe_id, recipe, genome, origin, label, stage)"
            " VALUES (?, ?, ?, 'adopted', ?, ?)"
        )
        with self.db.atomic():
            for label, genome, recipe_id, recipe in rows:
                blob = np.asarray(genome, "<f8").tobytes()
                row = (recipe_id, json.dumps(recipe), blob, label, self.stage)
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
            ordinal = self.proposed_in(self.stage) - 1
            for proposal, (recipe_id, recipe) in zip(proposals, recipes, strict=True):
                ordinal += 1
                blob = np.asarray(proposal.genome, "<f8").tobytes()
                parents = json.dumps(proposal.parents) if proposal.parents else None
                row = (recipe_id, json.dumps(recipe), blob, parents, ordinal, self.stage)
                sql = (
                    "INSERT INTO candidates"
                    " (recipe_id, recipe, genome, origin, parents, ordinal, stage)"
                    " VALUES (?, ?, ?, 'search', ?, ?, ?)"
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
            self._event("adopt", None, batch=self.stage, n=self.proposed_in(self.stage))

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
