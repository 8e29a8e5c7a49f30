"""What a campaign and its workers say to each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from evomerge.scoring.items import Split
from evomerge.scoring.outcome import Outcome


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker needs to start, as plain data that can be sent to another machine.

    Attributes:
        sources: name as recipes write it -> local directory.
        hashes: name -> content hash.
        frame: the source that gives config and tokenizer.
        dtype: of the merged weights.
        compute_dtype: of the resident model, into which they are copied. A wider one takes
            nothing from them, and is quicker where the processor has no bfloat16.
        fitness: the campaign's entries, by objective.
        splits: objective -> (search ordinals, held-out ordinals).
        first: a recipe of the space, for what its method prepares before the first candidate.
        threads: torch threads in the worker.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        trust_remote_code: run code that comes with a source.
    """

    sources: Mapping[str, str]
    hashes: Mapping[str, str]
    frame: str
    dtype: str
    compute_dtype: str
    fitness: Mapping[str, Mapping[str, Any]]
    splits: Mapping[str, Split]
    first: Mapping[str, Any]
    threads: int
    device: str = "auto"
    trust_remote_code: bool = False


class Job(NamedTuple):
    """One candidate to materialize and score on one split ("search" or "heldout")."""

    candidate: int
    recipe: dict
    split: str
    weights: np.ndarray | None = None  # (parameters,) float32, where the recipe does not tell all


class Finished(NamedTuple):
    """A job's outcome."""

    job: Job
    outcome: Outcome


class Lost(NamedTuple):
    """A job whose worker died; it is nobody's outcome yet.

    `blamed` is False where the worker's node or the way to it was lost, not its process alone.
    """

    job: Job
    reason: str
    blamed: bool = True


class Pool(Protocol):
    """Runs jobs. `idle` is how many more it can take now; `busy` how many it holds."""

    idle: int
    busy: int

    def submit(self, job: Job) -> None:
        """Take a job; it will come out of `next_finished`."""

    def next_finished(self, timeout: float | None = None) -> Finished | Lost | None:
        """Wait for a job to end; None if none did within `timeout` seconds."""

    def close(self) -> None:
        """Stop the workers; jobs in flight are dropped."""
