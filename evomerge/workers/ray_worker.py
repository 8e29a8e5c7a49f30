"""A worker in a process of Ray's, and what its pool knows of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from evomerge.environment import cores, mute_imports
from evomerge.node.phases import phase
from evomerge.scoring.outcome import Outcome
from evomerge.workers.at_once import evaluate_all
from evomerge.workers.log_relay import Sender
from evomerge.workers.protocol import Job, WorkerPlan
from evomerge.workers.ray_cluster import Needs, Node
from evomerge.workers.worker import Worker, spare_collector


class Actor:
    """A worker in a process of its own, made by `ready`, so that its errors come through whole.

    >>> Actor.__init__.__annotations__["plan"].__name__
    'WorkerPlan'
    """

    def __init__(self, plan: WorkerPlan, name: str, mailbox: Any, count: int, needs: Needs):
        """
        Args:
            plan: of the worker.
            name: of it, for people.
            mailbox: that takes what it says.
            count: of all workers.
            needs: what each reserves.
        """
        mute_imports()
        Sender(name, mailbox).install()
        self._plan, self._count, self._needs = plan, count, needs
        phase("starting")

    def ready(self) -> str:
        """Start the worker; return its name."""
        plan = self._plan
        if plan.threads is None:
            plan = replace(plan, threads=self._own_threads())
        self._worker = Worker(plan)
        spare_collector()
        return self._worker.name

    def _own_threads(self) -> int:
        """Return this worker's share of its node's cores."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        found = [node["Resources"] for node in ray.nodes() if node["NodeID"] == here]
        node = Node(found[0].get("CPU", 0.0), found[0].get("GPU", 0.0))
        return node.threads(cores(), self._count, self._needs)

    def evaluate_all(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Return the jobs' outcomes."""
        return evaluate_all(self._worker, jobs)


class RayWorker(NamedTuple):
    """An actor, and what people call it.

    >>> RayWorker("worker 1", None).name
    'worker 1'
    """

    name: str
    actor: Any


class Running(NamedTuple):
    """Jobs that a worker holds at once, and when it got them.

    >>> Running(RayWorker("worker 1", None), [], 2.5).started
    2.5
    """

    worker: RayWorker
    jobs: list[Job]
    started: float


@dataclass
class Starting:
    """A worker that starts; `heard` is when it last gave a sign of life.

    >>> Starting(RayWorker("worker 1", None), 2.5, 2.5).doing
    'waiting for a place'
    """

    worker: RayWorker
    began: float
    heard: float
    doing: str = "waiting for a place"
