"""The archive, read: what a resume, the commands and other processes ask of it.

Any number of processes may read while the campaign writes.
"""

import json
import math
from functools import cached_property
from typing import cast

import numpy as np

from evomerge.archive.database import Value
from evomerge.archive.records import (
    Agreement,
    AnswerRow,
    CampaignRow,
    FinalRow,
    OutcomeRow,
    SourceRecord,
    Told,
)
from evomerge.archive.work import WorkReader
from evomerge.errors import EvomergeError
from evomerge.scoring.items import ItemText
from evomerge.scoring.outcome import Score, decode_scores
from evomerge.search.objectives import Objective

# The split of held-out scores by transformers, where another engine scored the search.
BY_TRANSFORMERS = "heldout by transformers"

_ROUNDED = 1e-2  # by which scores of one item may differ without falling otherwise

_MOST_ESTIMATES = 4000  # that are looked at for whom to score in full; more would take seconds


class ArchiveReader(WorkReader):
    """The archive file of one campaign, opened; `Archive` writes to it.

    >>> reader = ArchiveReader(":memory:", write=True)
    >>> reader.begun, reader.candidates(), reader.best()
    (False, [], None)
    """

    # --- the campaign ------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether the campaign has begun: its first start may have been killed before that."""
        tables = self._db.first("SELECT 1 FROM sqlite_master WHERE name = 'campaign'")
        return bool(tables and self._db.first("SELECT 1 FROM campaign"))

    @property
    def campaign(self) -> CampaignRow:
        """The campaign's name, plan, provenance and state.

        Raises:
            EvomergeError: it has not begun.
        """
        row = self._db.first("SELECT * FROM campaign") if self.begun else None
        if row is None:
            raise EvomergeError(f"{self.path}: the campaign has not begun")
        decoded = {key: json.loads(row[key]) for key in ("plan", "provenance")}
        return cast(CampaignRow, dict(row) | decoded)

    @property
    def sources(self) -> list[SourceRecord]:
        """The sources of all stages that have begun, in the order of the campaign file."""
        listed = self.campaign["provenance"]["sources"]
        return [SourceRecord(label, **source) for label, source in listed.items()]

    @property
    def engines(self) -> dict[str, str] | None:
        """Which engine answers each kind of request, where that was measured; else None."""
        measured = self.campaign["provenance"].get("engines")
        return None if measured is None else measured["chosen"]

    @property
    def engine(self) -> str:
        """What answered for the models: an engine's name, or several joined by "and"."""
        named = self.campaign["plan"].get("workers", {}).get("engine", "transformers")
        if (chosen := self.engines) is not None:
            named = " and ".join(sorted(set(chosen.values()))) or "transformers"
        return str(named)

    @property
    def quantized(self) -> str:
        """What the weights were rounded to for scoring, "int8 by torchao"; "" if they were not."""
        return str(self.campaign["provenance"].get("quantized", ""))

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives as the provenance has them, with their directions resolved."""
        rows = self.campaign["provenance"]["objectives"]
        return tuple(Objective(**row) for row in rows)

    @cached_property
    def guards(self) -> tuple[str, ...]:
        """The names of what is guarded: tasks that are no objectives."""
        rows = self.campaign["provenance"].get("guards", [])
        return tuple(str(row["name"]) for row in rows)

    def item_hashes(self, objective: str, split: str) -> dict[int, str]:
        """Return ordinal -> hash of an objective's items on one side of the split."""
        sql = "SELECT ordinal, doc_hash FROM items WHERE objective = ? AND split = ?"
        return {r["ordinal"]: r["doc_hash"] for r in self._db.rows(sql, (objective, split))}

    # --- outcomes and scores -----------------------------------------------------------

    def outcome(self, candidate: int) -> OutcomeRow | None:
        """Return what became of a candidate on the search items, or None if nothing yet."""
        row = self._db.first("SELECT * FROM outcomes WHERE candidate_id = ?", (candidate,))
        return cast(OutcomeRow, dict(row)) if row else None

    def final(self, candidate: int) -> FinalRow | None:
        """Return what became of a candidate on the held-out items; None for no finalist."""
        row = self._db.first("SELECT * FROM finals WHERE candidate_id = ?", (candidate,))
        return cast(FinalRow, dict(row)) if row else None

    def finals_done(self) -> set[int]:
        """Return the candidates that were scored on held-out items, or failed on them."""
        return {r["candidate_id"] for r in self._db.rows("SELECT candidate_id FROM finals")}

    def is_stopped(self, candidate: int) -> bool:
        """Tell whether a race stopped a candidate, or is still on."""
        outcome = self.outcome(candidate)
        return outcome is None or outcome["status"] == "stopped"

    def violation(self, candidate: int) -> float:
        """Return by how much a candidate misses the constraints, see `Constraints`."""
        outcome = self.outcome(candidate)
        return 0.0 if outcome is None else outcome["violation"]

    def means(self, candidate: int, split: str = "search") -> dict[str, float]:
        """Return objective -> mean score of a candidate; empty if not scored there."""
        return {objective: s.mean for objective, s in self.scores(candidate, split).items()}

    def scores(self, candidate: int, split: str) -> dict[str, Score]:
        """Return objective -> score of a candidate on a split; empty if not scored there."""
        sql = "SELECT * FROM scores WHERE candidate_id = ? AND split = ?"
        rows = self._db.rows(sql, (candidate, split))
        return {r["objective"]: Score(r["mean"], r["stderr"], r["items"]) for r in rows}

    def item_scores(self, candidate: int, objective: str, split: str) -> np.ndarray | None:
        """Return a candidate's (items,) float32 scores, or None if it has none there.

        Of a part of the items, those of the part, in the order of `which_items`.
        """
        # A copy has the search scores of the candidate that it copies.
        sql = (
            "SELECT i.encoding, i.scores, s.items FROM item_scores i"
            " JOIN scores s USING (candidate_id, objective, split)"
            " WHERE objective = :objective AND split = :split AND candidate_id = COALESCE("
            "(SELECT copy_of FROM outcomes WHERE candidate_id = :id AND :split = 'search'), :id)"
        )
        row = self._db.first(sql, {"id": candidate, "objective": objective, "split": split})
        return decode_scores(row["encoding"], row["scores"], row["items"]) if row else None

    def which_items(self, candidate: int, objective: str) -> np.ndarray | None:
        """Return the (scored,) int64 positions of a candidate's search items; None: all of them."""
        sql = (
            "SELECT which FROM item_scores WHERE objective = :objective AND split = 'search'"
            " AND candidate_id = COALESCE((SELECT copy_of FROM outcomes"
            " WHERE candidate_id = :id), :id)"
        )
        row = self._db.first(sql, {"id": candidate, "objective": objective})
        if row is None or row["which"] is None:
            return None
        return np.frombuffer(row["which"], "<u4").astype(np.int64)

    def items_scored(self, stage: int | None = None) -> int:
        """Return how many search items were scored so far, in all stages or in one.

        Failures count with the items on which they were to be scored.
        """
        outcomes = "SELECT TOTAL(o.items_scored) FROM outcomes o"
        if stage is not None:
            outcomes += " JOIN candidates c ON c.id = o.candidate_id WHERE c.stage = :stage"
        ended = self._db.rows(outcomes, {"stage": stage})[0][0]
        return int(ended) + self._items_under_way(stage)

    def _items_under_way(self, stage: int | None) -> int:
        """Return how many items were scored of candidates whose race is not over."""
        sql = (
            "SELECT e.note FROM candidates c CROSS JOIN events e"
            " ON e.candidate_id = c.id AND e.kind = 'part'"
            " WHERE c.origin = 'recommended' AND (:stage IS NULL OR c.stage = :stage)"
            " AND c.id NOT IN (SELECT candidate_id FROM outcomes)"
        )
        return sum(json.loads(r["note"])["items"] for r in self._db.rows(sql, {"stage": stage}))

    def heldout_items_scored(self) -> int:
        """Return how many held-out items were scored so far."""
        sql = (
            "SELECT TOTAL(s.items) FROM finals f CROSS JOIN scores s"
            " ON s.candidate_id = f.candidate_id AND s.split = 'heldout'"
        )
        return int(self._db.rows(sql)[0][0])

    def items_spent_on_races(self) -> int:
        """Return how many items were scored so far of candidates that the stage's races had."""
        sql = (
            "SELECT TOTAL(o.items_scored) FROM candidates c CROSS JOIN outcomes o"
            " ON o.candidate_id = c.id WHERE c.origin = 'recommended' AND c.stage = ?"
        )
        return int(self._db.rows(sql, (self.stage,))[0][0]) + self._items_under_way(self.stage)

    def item_texts(self, objective: str) -> dict[int, ItemText]:
        """Return ordinal -> words of the held-out items; empty where they were not kept.

        >>> ArchiveReader(":memory:", write=True).item_texts("maths")
        {}
        """
        if self._db.version < 2:  # a file that was begun before they were kept
            return {}
        sql = (
            "SELECT ordinal, text, target FROM item_texts WHERE objective = ? AND split = 'heldout'"
        )
        rows = self._db.rows(sql, (objective,))
        return {r["ordinal"]: ItemText(r["text"], r["target"]) for r in rows}

    def answers(self, candidate: int, limit: int = -1) -> dict[str, list[AnswerRow]]:
        """Return objective -> ordinal and answer of held-out items, the first `limit` of each."""
        sql = (
            "SELECT ordinal, answer FROM answers WHERE candidate_id = ? AND objective = ?"
            " ORDER BY ordinal LIMIT ?"
        )
        answers: dict[str, list[AnswerRow]] = {}
        for objective in self.objectives:
            if rows := self._db.rows(sql, (candidate, objective.name, limit)):
                answers[objective.name] = [cast(AnswerRow, dict(row)) for row in rows]
        return answers

    def first_start(self) -> float | None:
        """Return when the campaign was first started, in seconds since 1970; None: not yet."""
        row = self._db.first("SELECT at FROM starts ORDER BY id LIMIT 1")
        return None if row is None else float(row["at"])

    def last_told(self) -> int:
        """Return the event of the latest outcome on search items; 0 before the first."""
        sql = "SELECT seq FROM events WHERE kind = 'tell' ORDER BY seq DESC LIMIT 1"
        row = self._db.first(sql)
        return 0 if row is None else int(row["seq"])

    def begun_at(self) -> dict[int, float]:
        """Return when each candidate was asked for, or begun otherwise, in seconds since 1970."""
        sql = (
            "SELECT candidate_id, MIN(at) AS at FROM events"
            " WHERE kind IN ('ask', 'seed', 'warm_start', 'recommend') GROUP BY candidate_id"
        )
        return {row["candidate_id"]: row["at"] for row in self._db.rows(sql)}

    def methods(self) -> dict[int, str]:
        """Return the merge method of each candidate, or its recipe's kind where it has none."""
        sql = (
            "SELECT id, COALESCE(json_extract(recipe, '$.method'), json_extract(recipe, '$.kind'))"
            " AS method FROM candidates"
        )
        return {row["id"]: str(row["method"]) for row in self._db.rows(sql)}

    def told(self, after: int = 0, most: int = -1) -> list[Told]:
        """Return the outcomes on search items of all stages, in their order.

        Args:
            after: the event after which they came.
            most: how many, the first of them; all by default.
        """
        sql = (
            "SELECT e.seq, e.at, c.id AS candidate, c.stage, c.origin, c.label,"
            " c.part IS NOT NULL AS is_part, o.copy_of IS NOT NULL AS is_copy, o.status,"
            " COALESCE(o.value, o.estimate) AS value, o.violation, o.seconds_merge,"
            " o.seconds_score, o.items_scored AS items"
            " FROM events e CROSS JOIN candidates c ON c.id = e.candidate_id"
            " CROSS JOIN outcomes o ON o.candidate_id = c.id"
            " WHERE e.kind = 'tell' AND e.seq > ? ORDER BY e.seq LIMIT ?"
        )
        rows = self._db.rows(sql, (after, most))
        means: dict[int, dict[str, float]] = {}
        if rows:
            sql = (
                "SELECT s.candidate_id, s.objective, s.mean FROM events e CROSS JOIN scores s"
                " ON s.candidate_id = e.candidate_id AND s.split = 'search'"
                " WHERE e.kind = 'tell' AND e.seq > ? AND e.seq <= ?"
            )
            for number, objective, mean in self._db.rows(sql, (after, rows[-1]["seq"])):
                means.setdefault(number, {})[objective] = mean
        found = []
        for row in rows:
            fields = dict(row) | {"means": means.get(row["candidate"], {})}
            fields |= {name: bool(row[name]) for name in ("is_part", "is_copy")}
            found.append(Told(**fields))
        return found

    # --- over all candidates -----------------------------------------------------------

    def front(self) -> list[int]:
        """Return the ids of the candidates that no other dominates on search scores."""
        return [r["id"] for r in self._db.rows("SELECT DISTINCT id FROM pareto_front ORDER BY id")]

    def front_means(self) -> dict[int, tuple[float, dict[str, float]]]:
        """Return the violation and the search means of each candidate on the front."""
        sql = (
            "SELECT f.id, f.objective, f.mean, o.violation FROM pareto_front f"
            " CROSS JOIN outcomes o ON o.candidate_id = f.id ORDER BY f.id"
        )
        front: dict[int, tuple[float, dict[str, float]]] = {}
        for row in self._db.rows(sql):
            _, means = front.setdefault(row["id"], (row["violation"], {}))
            means[row["objective"]] = row["mean"]
        return front

    def estimates(self) -> dict[int, dict[str, Score]]:
        """Return the estimated scores of the stage's candidates that were scored on parts alone.

        Those of one recipe are pooled, each with the weight of its items, under the number of the
        first of them. Where there are very many, those whose recipe had one of the best estimates.
        """
        sql = (
            "SELECT MIN(c.id) AS id, s.objective, SUM(s.items) AS items,"
            " SUM(s.mean * s.items) / SUM(s.items) AS mean,"
            " SUM(s.stderr * s.stderr * s.items * s.items) AS spread"
            " FROM candidates c CROSS JOIN outcomes o ON o.candidate_id = c.id AND o.status = 'ok'"
            " CROSS JOIN scores s ON s.candidate_id = c.id AND s.split = 'search'"
            " WHERE c.part IS NOT NULL AND c.stage = :stage AND o.copy_of IS NULL"
            " AND c.recipe_id IN (SELECT b.recipe_id FROM outcomes p"
            " CROSS JOIN candidates b ON b.id = p.candidate_id"
            " WHERE p.estimate IS NOT NULL AND p.status = 'ok' AND b.stage = :stage"
            " ORDER BY p.violation, p.estimate DESC LIMIT :most)"
            " GROUP BY c.recipe_id, s.objective ORDER BY MIN(c.id)"
        )
        found: dict[int, dict[str, Score]] = {}
        for row in self._db.rows(sql, {"stage": self.stage, "most": _MOST_ESTIMATES}):
            score = Score(row["mean"], math.sqrt(row["spread"]) / row["items"], row["items"])
            found.setdefault(row["id"], {})[row["objective"]] = score
        return found

    def agreement(self, candidate: int) -> dict[str, Agreement]:
        """Return how a candidate's held-out scores by its engine and by transformers compare.

        By objective; empty where only one of them scored it.
        """
        found = {}
        for objective in self.scores(candidate, BY_TRANSFORMERS):
            one = self.item_scores(candidate, objective, "heldout")
            other = self.item_scores(candidate, objective, BY_TRANSFORMERS)
            if one is None or other is None:
                continue
            # continuous scores are rounded otherwise in every item
            differing = ~np.isclose(one, other, rtol=_ROUNDED, atol=_ROUNDED)
            mean, plain = float(one.mean()), float(other.mean())
            found[objective] = Agreement(len(one), int(differing.sum()), mean, plain)
        return found

    def best(self) -> int | None:
        """Return the candidate of least violation and highest value, the earliest of equals.

        It was scored in full, as all that are compared by their value.
        """
        return self._best("1")

    def best_found(self, stage: int | None = None) -> int | None:
        """Return the best candidate that is no baseline, of a stage or of all, as `best` has it."""
        sql = "c.origin != 'baseline' AND (:stage IS NULL OR c.stage = :stage)"
        return self._best(sql, stage=stage)

    def _best(self, condition: str, **values: Value) -> int | None:
        # Outcomes come first, from the best on, until one will do.
        sql = (
            "SELECT c.id FROM outcomes o INDEXED BY outcomes_best"
            " CROSS JOIN candidates c ON c.id = o.candidate_id"
            f" WHERE o.status = 'ok' AND o.value IS NOT NULL AND {condition}"
            " ORDER BY o.violation, o.value DESC, o.candidate_id LIMIT 1"
        )
        row = self._db.first(sql, values)
        return row["id"] if row else None
