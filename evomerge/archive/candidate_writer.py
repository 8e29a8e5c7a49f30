"""What is to be scored, written down before anything is done with it."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Candidate, Recommended
from evomerge.archive.stored_recipe import to_columns
from evomerge.recipes.recipe import Recipe
from evomerge.search.controllers import Proposal


class CandidateWriter(ArchiveReader):
    """Adds candidates to an archive, each as one transaction; `Archive` adds what became of them.

    >>> from evomerge.recipes.parameters import single
    >>> writer = CandidateWriter(":memory:", write=True)
    >>> writer.add_baseline("5f0c", single("models/ja", "bfloat16"), "ja").id
    1
    """

    def __init__(self, path: Path | str, *, write: bool = False):
        """Open an archive; see `ArchiveReader`."""
        super().__init__(path, write=write)
        self._writes = write
        # what nobody else changes while this process writes, once it was read
        self._proposed: dict[int, int] = {}
        self._batch: int | None = None

    def proposed_in(self, stage: int) -> int:
        """See `Ledger.proposed_in`."""
        if not self._writes:
            return super().proposed_in(stage)
        if stage not in self._proposed:
            self._proposed[stage] = super().proposed_in(stage)
        return self._proposed[stage]

    def add_baseline(self, recipe_id: str, recipe: Recipe, label: str) -> Candidate:
        """Add a candidate that no controller proposed."""
        return self._add(
            Candidate.of(0, recipe_id, recipe, "baseline", label=label, stage=self.stage)
        )

    def add_warm_starts(
        self, rows: Sequence[tuple[str, np.ndarray | None, str, Recipe]]
    ) -> list[Candidate]:
        """Add the candidates of other runs with which the campaign begins.

        Args:
            rows: of each its name there (RUN#NUMBER), and genome, recipe's id and recipe here.
        """
        return self._add_labelled("warm_start", rows)

    def add_seeds(
        self, rows: Sequence[tuple[str, np.ndarray | None, str, Recipe]], part: int | None
    ) -> list[Candidate]:
        """Add what a space would have scored before its search begins.

        Args:
            rows: of each its label, genome, recipe's id and recipe.
            part: of the items, on which alone they are scored; None: on all.
        """
        return self._add_labelled("seed", rows, part)

    def _add_labelled(
        self,
        origin: str,
        rows: Sequence[tuple[str, np.ndarray | None, str, Recipe]],
        part: int | None = None,
    ) -> list[Candidate]:
        """Add what no controller proposed, with an event of its kind each, all at once."""
        added = []
        with self._db.transaction():
            for label, genome, recipe_id, recipe in rows:
                draft = Candidate.of(
                    0,
                    recipe_id,
                    recipe,
                    origin,
                    label=label,
                    stage=self.stage,
                    genome=genome,
                    part=part,
                )
                candidate = self._add(draft)
                self._add_event(origin, candidate.id, note=label)
                added.append(candidate)
        return added

    def propose(
        self,
        asked: int,
        proposals: Sequence[Proposal],
        recipes: Sequence[tuple[str, Recipe]],
        *,
        in_parts: bool = False,
    ) -> list[Candidate]:
        """Record one ask and its candidates, before anything is done with them.

        Args:
            asked: how many were asked for.
            proposals: what was proposed.
            recipes: each one's recipe, after its id.
            in_parts: whether each is scored on its part of the items.

        Returns:
            The candidates, made of what was given: nothing is read back.
        """
        added = []
        with self._db.transaction():
            batch, ordinal = self._last_batch() + 1, self.proposed_in(self.stage)
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
                    part=proposal.part if in_parts else None,
                    again=proposal.again,
                )
                candidate = self._add(draft)
                self._add_event("ask", candidate.id, batch=batch, asked=asked)
                added.append(candidate)
                ordinal += 1
        self._batch, self._proposed[self.stage] = batch, ordinal
        return added

    def recommend(
        self, rows: Sequence[Recommended], places: int, *, is_last: bool
    ) -> list[Candidate]:
        """Record a race and its candidates, before anything is done with them.

        Args:
            rows: what is to be scored in full.
            places: how many may end the race.
            is_last: whether it is the race at the end of a search.
        """
        added = []
        with self._db.transaction():
            batch = self._last_batch() + 1
            for row in rows:
                draft = Candidate.of(
                    0,
                    row.recipe_id,
                    row.recipe,
                    "recommended",
                    label=row.label,
                    stage=self.stage,
                    parents=row.parents,
                    genome=row.genome,
                    again=row.again,
                )
                candidate = self._add(draft)
                note = "last" if is_last else ""
                self._add_event("recommend", candidate.id, batch=batch, asked=places, note=note)
                added.append(candidate)
        self._batch = batch
        return added

    def _last_batch(self) -> int:
        """Return the number of the latest ask or race."""
        if self._batch is None:
            self._batch = self._db.rows("SELECT MAX(batch) FROM events")[0][0] or 0
        return self._batch

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
            part=draft.part,
            again=draft.again,
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
