"""The archive: one SQLite file that holds every ask and every tell, in order, with every
candidate, outcome and item score. It is all that a resume needs.

One process writes (the campaign); any number may read meanwhile. Each method that writes is
one transaction, so a process killed at any line leaves whole facts or none.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evomerge.archive.database import Value
from evomerge.archive.front import FrontKeeper
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Candidate
from evomerge.archive.stored_recipe import to_columns
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.outcome import Outcome, encode_scores, summary
from evomerge.search.controllers import Proposal

log = logging.getLogger("evomerge")


class Archive(ArchiveReader):
    """The archive file of one campaign; see the module's docstring for who may write.

    >>> from evomerge.recipes.parameters import single
    >>> archive = Archive(":memory:", write=True)
    >>> provenance = {"objectives": [{"name": "maths"}], "sources": {}}
    >>> archive.begin("first", {"seed": 7}, provenance, items=[("maths", "search", 0, "9c1f")])
    >>> baseline = archive.add_baseline("5f0c", single("models/ja", "bfloat16"), "ja")
    >>> outcome = Outcome("ok", scores={"maths": np.array([0.0, 1.0], np.float32)})
    >>> archive.record(baseline.id, outcome, value=None)
    >>> archive.front(), archive.means(baseline.id)
    ([1], {'maths': 0.5})
    """

    def __init__(self, path: Path | str, *, write: bool = False):
        """Open an archive; see `ArchiveReader`."""
        super().__init__(path, write=write)
        self._front = FrontKeeper(self._db, lambda: self.objectives)

    # --- the campaign ------------------------------------------------------------------

    def begin(
        self,
        name: str,
        plan: Mapping[str, object],
        provenance: Mapping[str, object],
        items: Iterable[tuple[str, str, int, str]],
    ) -> None:
        """Write down the frozen plan, where everything comes from, and the items.

        Args:
            name, plan, provenance: of the campaign, JSON-able.
            items: (objective, split, ordinal, doc_hash).
        """
        with self._db.transaction():
            self._db.insert(
                "campaign",
                name=name,
                plan=json.dumps(plan),
                provenance=json.dumps(provenance),
                state="running",
                reason="",
            )
            self._db.execute_each("INSERT INTO items VALUES (?, ?, ?, ?)", items)

    def set_plan(self, plan: Mapping[str, object]) -> None:
        """Replace the plan by one in which only what may change has changed."""
        self._db.execute("UPDATE campaign SET plan = ?", (json.dumps(plan),))

    def add_sources(self, sources: Mapping[str, Mapping[str, object]]) -> None:
        """Add a later stage's sources to the provenance, by label; see `SourceRecord`."""
        provenance = self.campaign["provenance"]
        provenance["sources"] |= sources
        self._db.execute("UPDATE campaign SET provenance = ?", (json.dumps(provenance),))

    def set_state(self, state: str, reason: str = "") -> None:
        """Set whether the campaign is running, finished, interrupted or failed."""
        self._db.execute("UPDATE campaign SET state = ?, reason = ?", (state, reason))

    def start(self, machine: Mapping[str, object]) -> int:
        """Note that the campaign was started on `machine`; return the start's id."""
        if self._db.journal == "delete":
            log.warning(
                "%s: the file system gives no shared memory, so the archive keeps a rollback"
                " journal: `evomerge status` may wait for the campaign, and it for that",
                self.path,
            )
        return self._db.insert("starts", at=time.time(), seconds=0.0, machine=json.dumps(machine))

    def set_seconds(self, start: int, seconds: float) -> None:
        """Note how long a start has run, by a clock that never goes back."""
        self._db.execute("UPDATE starts SET seconds = ? WHERE id = ?", (seconds, start))

    # --- candidates --------------------------------------------------------------------

    def add_baseline(self, recipe_id: str, recipe: Recipe, label: str) -> Candidate:
        """Add a candidate that no controller proposed."""
        return self._add(
            Candidate.of(0, recipe_id, recipe, "baseline", label=label, stage=self.stage)
        )

    def add_warm_starts(
        self, rows: Sequence[tuple[str, np.ndarray, str, Recipe]]
    ) -> list[Candidate]:
        """Add the candidates of other runs with which the campaign begins.

        Args:
            rows: of each its name there (RUN#NUMBER), and genome, recipe's id and recipe here.
        """
        added = []
        with self._db.transaction():
            for label, genome, recipe_id, recipe in rows:
                draft = Candidate.of(
                    0,
                    recipe_id,
                    recipe,
                    "warm_start",
                    label=label,
                    stage=self.stage,
                    genome=genome,
                )
                candidate = self._add(draft)
                self._add_event("warm_start", candidate.id, note=label)
                added.append(candidate)
        return added

    def propose(
        self, asked: int, proposals: Sequence[Proposal], recipes: Sequence[tuple[str, Recipe]]
    ) -> list[Candidate]:
        """Record one ask and its candidates, before anything is done with them.

        Args:
            asked: how many were asked for.
            proposals: what was proposed.
            recipes: each one's recipe, after its id.

        Returns:
            The candidates, made of what was given: nothing is read back.
        """
        added = []
        with self._db.transaction():
            batch = (self._db.rows("SELECT MAX(batch) FROM events")[0][0] or 0) + 1
            ordinal = self.proposed_in(self.stage)
            for proposal, (recipe_id, recipe) in zip(proposals, recipes, strict=True):
                draft = Candidate.of(
                    0,
                    recipe_id,
                    recipe,
                    "search",
                    ordinal=ordinal,
                    stage=self.stage,
                    parents=proposal.parents,
                    genome=proposal.genome,
                )
                candidate = self._add(draft)
                self._add_event("ask", candidate.id, batch=batch, asked=asked)
                added.append(candidate)
                ordinal += 1
        return added

    def _add(self, draft: Candidate) -> Candidate:
        """Add a candidate; return it with its number."""
        genome = draft.genome
        number = self._db.insert(
            "candidates",
            recipe_id=draft.recipe_id,
            **to_columns(draft.recipe),
            genome=None if genome is None else np.asarray(genome, "<f8").tobytes(),
            origin=draft.origin,
            label=draft.label,
            stage=draft.stage,
            ordinal=draft.ordinal,
            parents=json.dumps(draft.parents),
        )
        return replace(draft, id=number)

    def _add_event(
        self, kind: str, candidate: int | None, *, note: str = "", **columns: int
    ) -> None:
        self._db.insert(
            "events",
            kind=kind,
            stage=self.stage,
            candidate_id=candidate,
            note=note,
            at=time.time(),
            **columns,
        )

    # --- outcomes ----------------------------------------------------------------------

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
        with self._db.transaction():
            self._db.insert(
                "outcomes",
                candidate_id=candidate,
                status=outcome.status,
                reason=outcome.reason,
                value=value,
                violation=violation,
                seconds_merge=outcome.seconds_merge,
                seconds_score=outcome.seconds_score,
                items_scored=sum(len(scores) for scores in outcome.scores.values()),
                weights_checksum=outcome.weights_checksum,
                worker=outcome.worker,
            )
            self._add_scores(candidate, "search", outcome.scores)
            self._add_event("tell", candidate)
            if outcome.status == "ok":
                self._front.place(candidate)

    def record_copy(self, candidate: int, earlier: int) -> None:
        """Record that a candidate is the same recipe as `earlier`, with the same outcome."""
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO outcomes SELECT ?, status, reason, value, violation, 0, 0, 0,"
                " weights_checksum, worker, candidate_id FROM outcomes WHERE candidate_id = ?",
                (candidate, earlier),
            )
            self._db.execute(
                "INSERT INTO scores SELECT ?, objective, split, mean, stderr, items FROM scores"
                " WHERE candidate_id = ? AND split = 'search'",
                (candidate, earlier),
            )
            # An equal is never dominated by its twin, and would stand on the front twice.
            self._front.set_dominated(candidate, by=earlier)
            self._add_event("tell", candidate)

    def record_retry(self, candidate: int, reason: str, blamed: bool = True) -> tuple[int, int]:
        """Record that a candidate lost its worker.

        Args:
            candidate: its number.
            reason: in one line.
            blamed: whether the candidate may have killed it; a node's death is not its doing.

        Returns:
            How many workers it is blamed for on this split, and how many it lost in all.
        """
        with self._db.transaction():
            self._add_event("retry", candidate, blamed=int(blamed), note=reason)
            # What was lost before the search outcome does not count on held-out items.
            sql = (
                "SELECT TOTAL(blamed), COUNT(*) FROM events WHERE candidate_id = :id"
                " AND kind = 'retry' AND seq > (SELECT COALESCE(MAX(seq), 0) FROM events"
                " WHERE candidate_id = :id AND kind = 'tell')"
            )
            ((blames, losses),) = self._db.rows(sql, {"id": candidate})
            return int(blames), losses

    def forget_baselines(self) -> None:
        """Take back the outcomes of the baselines, all of which failed, to score them again."""
        with self._db.transaction():
            failed = self._db.rows(
                "SELECT o.candidate_id, o.reason FROM outcomes o JOIN candidates c"
                " ON c.id = o.candidate_id WHERE c.origin = 'baseline'"
            )
            for number, reason in failed:
                self._db.execute("DELETE FROM outcomes WHERE candidate_id = ?", (number,))
                self._db.execute(
                    "DELETE FROM events WHERE candidate_id = ? AND kind = 'tell'", (number,)
                )
                self._add_event("retry", number, blamed=0, note=reason)

    def record_rebuild(self) -> None:
        """Record that the controller starts anew here, from the outcomes told so far."""
        self._add_event("rebuild", None, proposed=self.proposed_in(self.stage))

    def record_final(self, candidate: int, outcome: Outcome) -> None:
        """Record an outcome on the held-out items, with what the model said to each."""
        with self._db.transaction():
            self._db.insert(
                "finals",
                candidate_id=candidate,
                status=outcome.status,
                reason=outcome.reason,
                seconds_score=outcome.seconds_score,
                worker=outcome.worker,
            )
            self._add_scores(candidate, "heldout", outcome.scores)
            for objective, answers in outcome.answers.items():
                ordinals = sorted(self.item_hashes(objective, "heldout"))
                self._db.execute_each(
                    "INSERT INTO answers VALUES (?, ?, 'heldout', ?, ?)",
                    [(candidate, objective, *row) for row in zip(ordinals, answers, strict=True)],
                )
            self._add_event("final", candidate)

    def set_values(self, values: Mapping[int, tuple[float, float]]) -> None:
        """Fill in value and violation of what was recorded before the baselines were complete.

        The front is found anew if it is theirs alone, as constraints may have changed it.
        """
        with self._db.transaction():
            self._db.execute_each(
                "UPDATE outcomes SET value = ?, violation = ? WHERE candidate_id = ?",
                [(value, violation, number) for number, (value, violation) in values.items()],
            )
            if any(violation for _, violation in values.values()) and not self.proposed():
                self._front.find()

    def _add_scores(self, candidate: int, split: str, scores: Mapping[str, np.ndarray]) -> None:
        for objective, items in scores.items():
            mean, stderr, count = summary(items)
            encoding, blob = encode_scores(items)
            key: dict[str, Value] = {
                "candidate_id": candidate,
                "objective": objective,
                "split": split,
            }
            self._db.insert("scores", **key, mean=mean, stderr=stderr, items=count)
            self._db.insert("item_scores", **key, encoding=encoding, scores=blob)
