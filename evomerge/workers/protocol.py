"""What a campaign and its workers say to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from evomerge.recipes.recipe import Recipe
from evomerge.scoring.fitness import FitnessSection
from evomerge.scoring.items import Split
from evomerge.scoring.outcome import Outcome
from evomerge.sources.trust import NOBODY, Trust

Side = Literal["search", "heldout"]


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker needs to start, as data that can be sent to another machine.

    Attributes:
        sources: name as recipes write it -> local directory.
        hashes: name -> content hash.
        frame: the source that gives config and tokenizer.
        dtype: of the merged weights.
        compute_dtype: of the live model, into which they are copied. A wider one takes
            nothing from them, and is quicker where the processor has no bfloat16.
        fitness: the campaign's entries, by objective.
        own_test: hold out the tasks' own test split.
        splits: objective -> ordinals searched and held out.
        first: a recipe of the space.
        prepared: recipes of all methods that may come, for what is made before the first
            candidate; by default `first` alone.
        threads: torch threads in the worker; None: a share of its node's cores.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        trust: what code of the sources may run.
        engine: what runs the live model, see `engines`.
        by_request: which engine answers what, see `EngineOptions`.
        sources_bytes: of the sources' tensors that stay on a GPU; None: what there is room for.
        device_share: of a GPU that the worker has.
        gpus: that hold its model together.
        candidates_each: how many the worker scores at once, where its engine can.
        quantize: "int8" or "int4", in which linear layers compute when they are scored; "": not.
        experts: objective -> the recipe of a source that shows what is good, where one needs it.
        labels: name -> label of sources, by which fitnesses know their heads.

    >>> from evomerge.recipes.parameters import single
    >>> plan = WorkerPlan({"a": "models/a"}, {"a": "0f"}, "a", "float32", "float32", {}, False, {},
    ...                   single("a", "float32"), threads=1)
    >>> plan.device
    'auto'
    """

    sources: Mapping[str, str]
    hashes: Mapping[str, str]
    frame: str
    dtype: str
    compute_dtype: str
    fitness: Mapping[str, FitnessSection]
    own_test: bool
    splits: Mapping[str, Split]
    first: Recipe
    threads: int | None
    device: str = "auto"
    trust: Trust = NOBODY
    engine: str = "transformers"
    by_request: Mapping[str, str] = field(default_factory=dict)
    sources_bytes: int | None = None
    device_share: float = 1.0
    gpus: int = 1
    prepared: tuple[Recipe, ...] = ()
    candidates_each: int = 1
    quantize: str = ""
    experts: Mapping[str, Recipe] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


class Job(NamedTuple):
    """One candidate to materialize and score on one side of the split.

    Attributes:
        candidate: its number.
        recipe: of its model.
        side: "search" or "heldout".
        weights: (parameters,) float32, where the recipe does not tell all; else None.
        ordinals: objective -> ordinals of the items to score; None: all of the side.

    >>> from evomerge.recipes.parameters import single
    >>> Job(7, single("a", "float32"), "search").weights is None
    True
    """

    candidate: int
    recipe: Recipe
    side: Side
    weights: np.ndarray | None = None
    ordinals: Mapping[str, tuple[int, ...]] | None = None


class Finished(NamedTuple):
    """A job's outcome.

    >>> from evomerge.recipes.parameters import single
    >>> Finished(Job(7, single("a", "float32"), "search"), Outcome("ok")).outcome.status
    'ok'
    """

    job: Job
    outcome: Outcome


class Lost(NamedTuple):
    """A job whose worker died; it is nobody's outcome yet.

    `blamed` is False where the worker's node or the way to it was lost, not its process alone.

    >>> from evomerge.recipes.parameters import single
    >>> Lost(Job(7, single("a", "float32"), "search"), "killed by signal 9").blamed
    True
    """

    job: Job
    reason: str
    blamed: bool = True


class WorkerState(NamedTuple):
    """What a worker does now.

    Attributes:
        name: of the worker, for people.
        candidate: that it scores; None if it is idle or starting.
        side: "search" or "heldout"; "" if it scores none.
        seconds: since it began that.
        doing: what it does while it starts; "" if it has started.
        others: how many candidates it scores beside that one.

    >>> WorkerState("worker 1", 7, "search", 2.5).candidate
    7
    """

    name: str
    candidate: int | None
    side: str
    seconds: float
    doing: str = ""
    others: int = 0


class Pool(Protocol):
    """Runs jobs."""

    @property
    def idle(self) -> int:
        """How many more jobs it can take now."""

    @property
    def busy(self) -> int:
        """How many jobs it holds."""

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What each worker does now."""

    def submit(self, job: Job) -> None:
        """Take a job; it will come out of `next_finished`."""

    def next_finished(self, timeout: float | None = None) -> Finished | Lost | None:
        """Wait for a job to end; None if none did within `timeout` seconds."""

    def close(self) -> None:
        """Stop the workers; jobs in flight are dropped."""
