"""The archive: one SQLite file that holds every ask and every tell, in order, with every
candidate, outcome and item score. It is all that a resume needs.

One process writes (the campaign); any number may read meanwhile. Each method that writes is
one transaction, so a process killed at any line leaves whole facts or none.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge.archive.candidate_writer import CandidateWriter
from evomerge.archive.database import Value
from evomerge.archive.front import FrontKeeper
from evomerge.archive.reader import BY_TRANSFORMERS
from evomerge.archive.records import PartScores, RaceEnd
from evomerge.archive.verdicts import Verdicts
from evomerge.scoring.items import ItemText
from evomerge.scoring.outcome import Outcome, Score, encode_scores

log = logging.getLogger("evomerge")

_TEXT_KEPT, _TARGET_KEPT = 2000, 500  # characters


class Archive(CandidateWriter):
    """The archive file of one campaign; see the module's docstring for who may write.

    Attributes:
        verdicts: what judges said.

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
        self.verdicts = Verdicts(self._db)

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

    def add_item_texts(self, objective: str, texts: Iterable[tuple[int, ItemText]]) -> None:
        """Write down what an objective's held-out items ask; of long ones how they begin.

        >>> archive = Archive(":memory:", write=True)
        >>> archive.add_item_texts("maths", [(4, ItemText("3 + 4 =", "seven"))])
        >>> archive.item_texts("maths")[4].target
        'seven'
        """
        rows = [
            (objective, "heldout", ordinal, text[:_TEXT_KEPT], target[:_TARGET_KEPT])
            for ordinal, (text, target) in texts
        ]
        with self._db.transaction():
            self._db.execute_each("INSERT INTO item_texts VALUES (?, ?, ?, ?, ?)", rows)

    def set_plan(self, plan: Mapping[str, object]) -> None:
        """Replace the plan by one in which only what may change has changed."""
        self._db.execute("UPDATE campaign SET plan = ?", (json.dumps(plan),))

    def add_sources(self, sources: Mapping[str, Mapping[str, object]]) -> None:
        """Add a later stage's sources to the provenance, by label; see `SourceRecord`."""
        provenance = self.campaign["provenance"]
        provenance["sources"] |= sources
        self._db.execute("UPDATE campaign SET provenance = ?", (json.dumps(provenance),))

    def add_genes(self, stage: str, genes: Mapping[str, object]) -> None:
        """Add the genes of a later stage to the provenance, by its name."""
        provenance = self.campaign["provenance"]
        provenance.setdefault("stages", {})[stage] = dict(genes)
        self._db.execute("UPDATE campaign SET provenance = ?", (json.dumps(provenance),))

    def set_engines(
        self, chosen: Mapping[str, str], seconds: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Add to the provenance which engine answers what, and what was measured for that.

        Args:
            chosen: kind of request -> engine; see `ArchiveReader.engines`.
            seconds: engine -> kind of request -> seconds.
        """
        provenance = self.campaign["provenance"]
        provenance["engines"] = {"chosen": dict(chosen), "seconds": seconds}
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

    # --- outcomes ----------------------------------------------------------------------

    def record(
        self,
        candidate: int,
        outcome: Outcome,
        value: float | None,
        violation: float = 0.0,
        *,
        items: int | None = None,
        part: PartScores | None = None,
    ) -> None:
        """Record an outcome on the search items; the controller may hear of it afterwards.

        Args:
            candidate: its id.
            outcome: of the search split.
            value: the weighted mean that a controller of one objective gets; None for a
                failure, or as long as the baselines are not all scored. Of a part, an estimate.
            violation: of the constraints.
            items: that were to be scored, of which a failure has no scores; None: those scored.
            part: of the items, where not all were scored.
        """
        if items is None:
            items = sum(len(scores) for scores in outcome.scores.values())
        with self._db.transaction():
            self._db.insert(
                "outcomes",
                candidate_id=candidate,
                status=outcome.status,
                reason=outcome.reason,
                value=value if part is None else None,
                estimate=None if part is None else value,
                violation=violation,
                seconds_merge=outcome.seconds_merge,
                seconds_score=outcome.seconds_score,
                items_scored=items,
                weights_checksum=outcome.weights_checksum,
                worker=outcome.worker,
            )
            if part is None:
                self._add_scores(candidate, "search", outcome.scores, outcome.summaries)
            else:
                self._add_scores(candidate, "search", outcome.scores, part.scores, part.which)
            self._add_event("tell", candidate)
            if outcome.status == "ok" and part is None:
                self._front.place(candidate, (violation, outcome.means or {}))

    def record_race_part(
        self, candidate: int, outcome: Outcome, part: PartScores, items: int
    ) -> None:
        """Record what a candidate of a race has scored so far, before it goes on.

        Args:
            candidate: its id.
            outcome: of this part alone, for its seconds.
            part: all its scores so far.
            items: that were scored for this part.
        """
        with self._db.transaction():
            for table in ("scores", "item_scores"):
                self._db.execute(f"DELETE FROM {table} WHERE candidate_id = ?", (candidate,))
            self._add_scores(candidate, "search", part.items, part.scores, part.which)
            note = {
                "items": items,
                "seconds_merge": outcome.seconds_merge,
                "seconds_score": outcome.seconds_score,
                "weights_checksum": outcome.weights_checksum,
                "worker": outcome.worker,
            }
            self._add_event("part", candidate, note=json.dumps(note))

    def record_race_ends(self, ends: Sequence[RaceEnd]) -> None:
        """Record who leaves a race after one of its rounds, all at once.

        Those that were scored in full are compared by their values from now on.
        """
        with self._db.transaction():
            for end in ends:
                sql = "SELECT note FROM events WHERE candidate_id = ? AND kind = 'part'"
                rows = self._db.rows(f"{sql} ORDER BY seq", (end.candidate,))
                notes = [json.loads(row["note"]) for row in rows]
                self._db.insert(
                    "outcomes",
                    candidate_id=end.candidate,
                    status="ok" if end.in_full else "stopped",
                    reason=end.reason,
                    value=end.value if end.in_full else None,
                    violation=end.violation,
                    seconds_merge=sum(note["seconds_merge"] for note in notes),
                    seconds_score=sum(note["seconds_score"] for note in notes),
                    items_scored=end.items,
                    weights_checksum=notes[-1]["weights_checksum"],
                    worker=notes[-1]["worker"],
                )
                if end.in_full:
                    self._db.execute(
                        "UPDATE item_scores SET which = NULL WHERE candidate_id = ?",
                        (end.candidate,),
                    )
                self._add_event("tell", end.candidate)
                if end.in_full:
                    self._front.place(end.candidate)

    def record_race_failure(self, candidate: int, outcome: Outcome, items: int) -> None:
        """Record that a candidate failed in a race; what it scored before that is left out.

        Args:
            candidate: its number.
            outcome: the failure.
            items: on which it was scored, or was to be.
        """
        with self._db.transaction():
            for table in ("scores", "item_scores"):
                self._db.execute(f"DELETE FROM {table} WHERE candidate_id = ?", (candidate,))
            self.record(candidate, outcome, None, items=items)

    def record_copy(self, candidate: int, earlier: int) -> None:
        """Record that a candidate is the same recipe as `earlier`, with the same outcome."""
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO outcomes SELECT ?, status, reason, value, violation, 0, 0, 0,"
                " weights_checksum, worker, candidate_id, estimate FROM outcomes"
                " WHERE candidate_id = ?",
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
            self._add_scores(candidate, "heldout", outcome.scores, outcome.summaries)
            for objective, answers in outcome.answers.items():
                ordinals = sorted(self.item_hashes(objective, "heldout"))
                self._db.execute_each(
                    "INSERT INTO answers VALUES (?, ?, 'heldout', ?, ?)",
                    [(candidate, objective, *row) for row in zip(ordinals, answers, strict=True)],
                )
            self._add_event("final", candidate)

    def record_by_transformers(self, candidate: int, outcome: Outcome) -> None:
        """Record how transformers scores the held-out items of what another engine scored."""
        with self._db.transaction():
            self._add_scores(candidate, BY_TRANSFORMERS, outcome.scores, outcome.summaries)

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

    def _add_scores(
        self,
        candidate: int,
        split: str,
        items: Mapping[str, np.ndarray],
        scores: Mapping[str, Score],
        which: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        for objective, of_items in items.items():
            mean, stderr, count = scores[objective]
            positions = None if which is None else which[objective].astype("<u4").tobytes()
            encoding, blob = encode_scores(of_items)
            key: dict[str, Value] = {
                "candidate_id": candidate,
                "objective": objective,
                "split": split,
            }
            self._db.insert("scores", **key, mean=mean, stderr=stderr, items=count)
            self._db.insert("item_scores", **key, encoding=encoding, which=positions, scores=blob)
