"""What a report is made of: one run's archive, read once, in one moment of it."""

import contextlib
import functools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.archive.archived_plan import searches
from evomerge.archive.history import History, Row, Work
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import SourceRecord
from evomerge.archive.run_lock import RunLock
from evomerge.archive.selection import baselines_scale
from evomerge.archive.shapes import ProgressShape
from evomerge.archive.summary import as_written, open_run, snapshot
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.items import ItemText
from evomerge.scoring.outcome import Score
from evomerge.search.objectives import Objective, Scale

UNIFORM = "uniform"  # the label of the sources' average
MOST_RECIPES = 2000  # that are read, evenly over time; a picture shows no more

Scores = Mapping[int, Mapping[str, Score]]
ItemScores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """One run as its archive has it.

    Attributes:
        directory: of the run.
        name, state, reason, plan, provenance: of the campaign; the state is what it is now.
        objectives: of the campaign, in its order.
        scale: of the objectives, which the baselines fix.
        progress: what `status` prints.
        rows: every candidate, in order of the numbers.
        search, heldout: candidate -> objective -> score.
        final_failures: candidate -> why it failed on held-out items, "" if it did not.
        front: the numbers of the candidates that no other dominates.
        best: the number of the best of all, a baseline or not; None before the first score.
        bests: of each stage, the best that it found; None where it found none.
        sources: of the campaign, with hashes.
        recipes: candidate -> recipe, of baselines, the front, the bests, and of others evenly.
        items: candidate -> objective -> (items,) float32 scores of held-out items.
        ordinals: objective -> (items,) int64 numbers of its held-out items.
        hashes: objective -> split -> ordinal -> hash of the item.
        texts: objective -> ordinal -> what a held-out item asks, and what is right; empty where
            the archive has not kept it.
        answers: candidate -> objective -> ordinal -> answer, of baselines and the bests.
        work: of each worker.
        starts: of each start, when it was and the seconds it took.
        engine: what answered for the models.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> run.name, run.state, run.row(3).value, run.stages, run.controllers
    ('example', 'interrupted', 1.25, ['example'], ['cmaes'])
    """

    directory: Path
    name: str
    state: str
    reason: str
    plan: Mapping[str, Any]
    provenance: Mapping[str, Any]
    objectives: tuple[Objective, ...]
    scale: Scale
    progress: ProgressShape
    rows: Sequence[Row]
    search: Scores
    heldout: Scores
    final_failures: Mapping[int, str]
    front: Sequence[int]
    best: int | None
    bests: Sequence[int | None]
    sources: Sequence[SourceRecord]
    recipes: Mapping[int, Recipe]
    items: Mapping[int, ItemScores]
    ordinals: Mapping[str, np.ndarray]
    hashes: Mapping[str, Mapping[str, Mapping[int, str]]]
    texts: Mapping[str, Mapping[int, ItemText]]
    answers: Mapping[int, Mapping[str, Mapping[int, str]]]
    work: Sequence[Work]
    starts: Sequence[tuple[float, float]]
    engine: str
    _by_id: dict[int, Row] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._by_id.update({row.id: row for row in self.rows})

    def row(self, candidate: int) -> Row:
        """Return a candidate by its number."""
        return self._by_id[candidate]

    @property
    def known(self) -> Set[int]:
        """The numbers of all candidates."""
        return self._by_id.keys()

    def first_of(self, recipe_id: str) -> int:
        """Return the first candidate of a recipe."""
        return self._first[recipe_id]

    @functools.cached_property
    def _first(self) -> dict[str, int]:
        return {row.recipe_id: row.id for row in reversed(self.rows)}

    def name_of(self, candidate: int) -> str:
        """Return what a page calls a candidate: a baseline by its label, others by their number."""
        row = self._by_id[candidate]
        if row.origin == "baseline" and row.label:
            return "uniform average" if row.label == UNIFORM else row.label
        return f"candidate {candidate}"

    @property
    def best_found(self) -> int | None:
        """The best candidate that is no baseline, of all stages."""
        found = [self._by_id[b] for b in self.bests if b is not None]
        ranked = sorted(found, key=lambda row: (row.violation, -(row.value or 0.0), row.id))
        return ranked[0].id if ranked else None

    @functools.cached_property
    def baselines(self) -> list[Row]:
        """The baselines that were scored, in order."""
        return [r for r in self.rows if r.origin == "baseline" and r.id in self.search]

    @property
    def source_baselines(self) -> list[Row]:
        """The baselines that are sources as the campaign file names them."""
        labels = {source.label for source in self.sources if not source.own}
        return [row for row in self.baselines if row.label in labels]

    @property
    def scored(self) -> list[Row]:
        """What the search proposed and scored, in full or in part, in the order of outcomes."""
        found = [r for r in self.rows if r.origin != "baseline" and r.best is not None]
        return sorted(found, key=lambda row: (row.told is None, row.told or 0, row.id))

    @property
    def in_full(self) -> list[Row]:
        """Every candidate that was scored on all search items, baselines among them."""
        return [r for r in self.rows if r.value is not None and r.id in self.search]

    @property
    def stages(self) -> list[str]:
        """The names of the stages; the campaign's own where it has none."""
        return [str(part.get("name", "")) for part in searches(self.plan)]

    @property
    def controllers(self) -> list[str]:
        """The kind of controller of each stage."""
        return [str(part["controller"]["kind"]) for part in searches(self.plan)]

    @property
    def heldout_objectives(self) -> list[Objective]:
        """The objectives that are scores of items."""
        return [objective for objective in self.objectives if not objective.cost]

    def label_of_model(self, name: str) -> str:
        """Return the campaign file's label of a model that a recipe names."""
        labels = {source.name: source.label for source in self.sources}
        return labels.get(name, name)


def read_run(directory: Path) -> Run | None:
    """Read a run's archive; None where the campaign has not begun.

    Raises:
        BadInput: the directory holds no archive, or one that evomerge has not written.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     found = read_run(Path(run))
    >>> found.best_found, found.name_of(3), [found.name_of(row.id) for row in found.baselines]
    (3, 'candidate 3', ['ja', 'maths'])
    """
    file = directory / "archive.db"
    if file.is_file():
        with as_written(), contextlib.closing(ArchiveReader(file)) as archive:
            if not archive.begun:
                return None
    with contextlib.closing(open_run(directory)) as archive, as_written():
        history = History(archive)
        with history.one_state():
            return _read(directory, archive, history)


def _read(directory: Path, archive: ArchiveReader, history: History) -> Run:
    campaign, objectives = archive.campaign, archive.objectives
    state = campaign["state"]
    if state == "running" and not RunLock.held(directory):
        state = "interrupted"
    rows = history.rows()
    stages = range(len(searches(campaign["plan"])))
    bests = [archive.best_found(stage) for stage in stages]
    front = archive.front()
    finals = history.finals()
    kept = {c for c in (*bests, archive.best()) if c is not None}
    kept |= {row.id for row in rows if row.origin == "baseline"}
    others = [row.id for row in rows if row.best is not None]
    step = max(1, -(-len(others) // MOST_RECIPES))
    scored_names = [objective.name for objective in objectives if not objective.cost]
    items: dict[int, ItemScores] = {}
    for candidate in finals:
        found = {n: archive.item_scores(candidate, n, "heldout") for n in scored_names}
        items[candidate] = {n: scores for n, scores in found.items() if scores is not None}
    hashes = {
        name: {split: archive.item_hashes(name, split) for split in ("search", "heldout")}
        for name in scored_names
    }
    return Run(
        directory=directory,
        name=campaign["name"],
        state=state,
        reason=campaign["reason"],
        plan=campaign["plan"],
        provenance=campaign["provenance"],
        objectives=objectives,
        scale=baselines_scale(archive),
        progress=snapshot(archive),
        rows=rows,
        search=history.scores("search"),
        heldout=history.scores("heldout"),
        final_failures=finals,
        front=front,
        best=archive.best(),
        bests=bests,
        sources=archive.sources,
        recipes=history.recipes([*kept, *front[:MOST_RECIPES], *others[::step]]),
        items=items,
        ordinals={n: np.array(sorted(sides["heldout"]), np.int64) for n, sides in hashes.items()},
        hashes=hashes,
        texts={name: archive.item_texts(name) for name in scored_names},
        answers={c: _answers(archive, c) for c in sorted(kept) if c in finals},
        work=history.work(),
        starts=history.starts(),
        engine=archive.engine,
    )


def _answers(archive: ArchiveReader, candidate: int) -> dict[str, dict[int, str]]:
    found = archive.answers(candidate)
    return {name: {row["ordinal"]: row["answer"] for row in rows} for name, rows in found.items()}
