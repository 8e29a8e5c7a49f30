"""Workers in this process or in processes of their own, as a campaign asks for."""

import contextlib
import gc
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from evomerge.config.parts import WorkersSection
from evomerge.scoring.generators import generators_kept
from evomerge.scoring.lm_eval_loading import levels_kept
from evomerge.workers.at_once import evaluate_all
from evomerge.workers.protocol import Finished, Job, Lost, Pool, WorkerPlan, WorkerState
from evomerge.workers.starts import start_told
from evomerge.workers.worker import Worker, spare_collector

if TYPE_CHECKING:
    from evomerge.workers.ray_cluster import RayCluster


class InlinePool:
    """One worker in this process: for one device, tests and notebooks. Has no time-out.

    What a worker sets for the whole process is put back when it is closed.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> pool = InlinePool(example_campaign(hashed=True).worker)
    >>> pool.idle, pool.busy
    (1, 0)
    """

    def __init__(self, plan: WorkerPlan):
        with contextlib.ExitStack() as kept:
            kept.enter_context(process_kept())
            with start_told("worker 1"):
                self._worker = Worker(plan)
            spare_collector()
            self._kept = kept.pop_all()
        self._most = plan.candidates_each
        self._jobs: deque[Job] = deque()
        self._finished: deque[Finished] = deque()
        self._began = time.monotonic()

    @property
    def idle(self) -> int:
        """How many more jobs it can take now."""
        return self._most - self.busy

    @property
    def busy(self) -> int:
        """How many jobs it holds."""
        return len(self._jobs) + len(self._finished)

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What its worker does now."""
        seconds = time.monotonic() - self._began
        if not self._jobs:
            return (WorkerState("worker 1", None, "", seconds),)
        job, others = self._jobs[0], len(self._jobs) - 1
        return (WorkerState("worker 1", job.candidate, job.side, seconds, others=others),)

    def submit(self, job: Job) -> None:
        """Take a job; it is done when it is waited for."""
        self._jobs.append(job)
        self._began = time.monotonic()

    def next_finished(self, timeout: float | None = None) -> Finished | Lost | None:
        """Do the jobs that it holds, however long they take; None if there is none."""
        if not self._finished and self._jobs:
            outcomes = evaluate_all(self._worker, self._jobs)
            self._finished.extend(map(Finished, self._jobs, outcomes))
            self._jobs.clear()
        return self._finished.popleft() if self._finished else None

    def close(self) -> None:
        """Drop what was not done."""
        self._jobs.clear()
        self._finished.clear()
        self._worker.close()
        self._kept.close()


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """Put back, on leaving, what a worker sets for the whole process.

    >>> with process_kept():
    ...     torch.set_num_threads(1)
    """
    threads = torch.get_num_threads()
    with generators_kept(), levels_kept():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            gc.unfreeze()  # the worker's memory can be taken back, for the next stage's


def make_pool(
    plan: WorkerPlan, workers: WorkersSection, cluster: "RayCluster | None" = None
) -> Pool:
    """Make the pool that a campaign's `workers` section asks for.

    Args:
        plan: of each worker.
        workers: the section.
        cluster: that is connected; by default a pool of Ray workers connects one.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> type(make_pool(example_campaign(hashed=True).worker, WorkersSection())).__name__
    'InlinePool'
    """
    if workers.pool == "inline":
        return InlinePool(plan)
    from evomerge.workers.ray_pool import RayPool

    return RayPool(plan, workers, cluster)
