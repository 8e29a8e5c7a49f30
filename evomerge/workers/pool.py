"""The two pools that run workers: inline (this process) and Ray (actors).

A pool takes jobs and gives back outcomes, or `Lost` where a worker died under one.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from evomerge.workers.protocol import Finished, Job, Lost, Pool, WorkerPlan
from evomerge.workers.ray_pool import RayPool
from evomerge.workers.worker import Worker


class InlinePool:
    """One worker in this process: for one device, tests and notebooks. Has no time-out."""

    def __init__(self, plan: WorkerPlan):
        self._worker = Worker(plan)
        self._jobs: deque[Job] = deque()

    @property
    def idle(self) -> int:
        return 1 - len(self._jobs)

    @property
    def busy(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def next_finished(self, timeout: float | None = None) -> Finished | Lost | None:
        if not self._jobs:
            return None
        outcome = self._worker.evaluate(self._jobs[0])
        return Finished(self._jobs.popleft(), outcome)

    def close(self) -> None:
        self._jobs.clear()


def make_pool(plan: WorkerPlan, workers: Mapping[str, Any]) -> Pool:
    """Make the pool that a campaign's `workers` mapping asks for."""
    if workers["pool"] == "inline":
        return InlinePool(plan)
    cpus_each = workers.get("cpus_each") or plan.threads
    return RayPool(plan, workers["count"], cpus_each, workers["gpus_each"], workers.get("timeout"))
