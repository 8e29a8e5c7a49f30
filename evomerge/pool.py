"""Workers and the two pools that run them: inline (this process) and Ray (actors).

A worker is warm: sources mapped, one model resident on its device, requests built. A pool
takes jobs and gives back outcomes, or `Lost` where a worker died under one.
"""

import gc
import os
import platform
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from evomerge.errors import CandidateFailure, EvomergeError, one_line
from evomerge.fitness import open_fitness
from evomerge.items import Split
from evomerge.recipe import Outcome, Recipe, from_json
from evomerge.sources import open_source


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
    threads: int
    device: str = "auto"
    trust_remote_code: bool = False


class Job(NamedTuple):
    """One candidate to materialize and score on one split ("search" or "heldout")."""

    candidate: int
    recipe: dict
    split: str


class Finished(NamedTuple):
    """A job's outcome."""

    job: Job
    outcome: Outcome


class Lost(NamedTuple):
    """A job whose worker died; it is nobody's outcome yet."""

    job: Job
    reason: str


class Worker:
    """Materializes recipes into its resident model and scores them."""

    def __init__(self, plan: WorkerPlan):
        import torch

        from evomerge.merge import Merger
        from evomerge.resident import ResidentModel

        torch.set_num_threads(plan.threads)
        cuda = torch.cuda.is_available()
        device = ("cuda" if cuda else "cpu") if plan.device == "auto" else plan.device
        opened = {
            name: open_source(path, trust_remote_code=plan.trust_remote_code)
            for name, path in plan.sources.items()
        }
        self.name = f"{platform.node()}/{os.getpid()}/{device}"
        self._merger = Merger(opened, plan.hashes, device)
        self._resident = ResidentModel(
            opened[plan.frame], plan.compute_dtype, device, plan.trust_remote_code
        )
        self._splits = plan.splits
        self._fitness = {}
        for objective, spec in plan.fitness.items():
            fitness = open_fitness(spec, "worker", objective)
            split = plan.splits[objective]
            ordinals = sorted((*split.search, *split.heldout))
            fitness.prepare(self._resident.model, self._resident.tokenizer, ordinals)
            self._fitness[objective] = fitness

    def ready(self) -> str:
        """Return the worker's name; answers only when it is warm."""
        return self.name

    def evaluate(self, job: Job) -> Outcome:
        """Merge and score one candidate; whatever it does wrong is in the outcome."""
        clock = [time.perf_counter()]
        try:
            checksum = self._materialize(from_json(job.recipe))
            clock.append(time.perf_counter())
            scores = self._score(job.split)
            answers = self._answers(job.split) if job.split == "heldout" else {}
        except (Exception, SystemExit) as error:
            known = isinstance(error, CandidateFailure)
            reason = str(error) if known else one_line(error)
            error.__traceback__ = None  # its frames hold tensors
            _free_memory()
            seconds = np.diff([*clock, time.perf_counter()]).tolist()
            return Outcome("failed", reason, {}, *seconds, worker=self.name)
        seconds = np.diff([*clock, time.perf_counter()]).tolist()
        return Outcome("ok", "", scores, *seconds, checksum, self.name, answers)

    def _materialize(self, recipe: Recipe) -> str:
        from evomerge.merge import Checksum

        checksum = Checksum()

        def seen():
            for name, tensor in self._merger.stream(recipe):
                checksum.update(name, tensor)
                yield name, tensor

        self._resident.load(seen())
        return checksum.hexdigest()

    def _score(self, split: str) -> dict[str, np.ndarray]:
        import torch

        scores = {}
        for objective, ordinals in self._asked(split).items():
            torch.manual_seed(0)  # a task that samples draws the same for every candidate
            with torch.inference_mode():
                found = self._fitness[objective].score(ordinals)
            if not np.isfinite(found).all():
                first = int(np.flatnonzero(~np.isfinite(found))[0])
                raise CandidateFailure(f"{objective} scored {found[first]} on item {first}")
            scores[objective] = found
        return scores

    def _answers(self, split: str) -> dict[str, list[str]]:
        said = {o: self._fitness[o].answers(asked) for o, asked in self._asked(split).items()}
        return {objective: answers for objective, answers in said.items() if answers is not None}

    def _asked(self, split: str) -> dict[str, tuple[int, ...]]:
        """Return objective -> ordinals of a split; an objective may hold nothing out."""
        found = {o: getattr(self._splits[o], split) for o in self._fitness}
        return {objective: ordinals for objective, ordinals in found.items() if ordinals}


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


class RayPool:
    """One actor per worker, on this machine or the cluster that RAY_ADDRESS names.

    A worker that dies is replaced; the job it held comes out as `Lost`. A job that outlasts
    `timeout` is a failure, and its worker is replaced too.
    """

    _START_FAILURES = 3  # in a row, after which the campaign stops

    def __init__(
        self,
        plan: WorkerPlan,
        count: int,
        cpus_each: float,
        gpus_each: float = 0.0,
        timeout: float | None = None,
    ):
        """
        Args:
            plan: sent to every worker.
            count: workers.
            cpus_each, gpus_each: what Ray reserves for each.
            timeout: seconds that one job may take.
        """
        import logging

        import ray

        self._ray, self._timeout = ray, timeout
        if not ray.is_initialized():
            local = "RAY_ADDRESS" not in os.environ
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            options = {"num_cpus": max(count * cpus_each, 1)} if local else {}
            options |= {"include_dashboard": False} if local else {}
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        self._check_resources(cpus_each, gpus_each)
        self._actor = ray.remote(num_cpus=cpus_each, num_gpus=gpus_each, max_restarts=0)(Worker)
        self._plan = ray.put(plan)
        self._starting: dict[Any, Any] = {}  # future of ready() -> worker
        self._running: dict[Any, tuple[Any, Job, float]] = {}  # future -> worker, job, started
        self._free: list[Any] = []
        self._queued: deque[Job] = deque()
        self._count, self._failed_starts = count, 0
        for _ in range(count):
            self._start()

    def _check_resources(self, cpus: float, gpus: float) -> None:
        """Refuse to wait for ever for a worker that no node has room for."""
        nodes = [n["Resources"] for n in self._ray.nodes() if n["Alive"]]
        if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
            raise EvomergeError(
                f"no node has {cpus:g} CPUs and {gpus:g} GPUs for one worker; lower"
                " workers.cpus_each, workers.threads or workers.gpus_each"
            )

    @property
    def idle(self) -> int:
        return max(0, self._count - self.busy)

    @property
    def busy(self) -> int:
        return len(self._running) + len(self._queued)

    def submit(self, job: Job) -> None:
        self._queued.append(job)
        self._dispatch()

    def next_finished(self, timeout: float | None = None) -> Finished | Lost | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.busy:
            if late := self._overdue():
                return late
            futures = [*self._running, *self._starting]
            wait = self._wait_seconds(deadline)
            done, _ = self._ray.wait(futures, num_returns=1, timeout=wait)
            for future in done:
                if future in self._starting:
                    self._admit(future)
                else:
                    return self._collect(future)
            if deadline is not None and time.monotonic() >= deadline:
                return None
        return None

    def close(self) -> None:
        self._queued.clear()
        for worker in (*self._free, *self._starting.values()):
            self._ray.kill(worker)
        for worker, _, _ in self._running.values():
            self._ray.kill(worker)
        self._ray.shutdown()

    def _start(self) -> None:
        worker = self._actor.remote(self._plan)
        self._starting[worker.ready.remote()] = worker

    def _dispatch(self) -> None:
        while self._free and self._queued:
            worker, job = self._free.pop(), self._queued.popleft()
            self._running[worker.evaluate.remote(job)] = (worker, job, time.monotonic())

    def _admit(self, future: Any) -> None:
        worker = self._starting.pop(future)
        try:
            self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= self._START_FAILURES:
                if self._running or self._free or self._starting:
                    self._count -= 1  # go on with those that work
                    return
                raise EvomergeError(f"workers do not start: {one_line(_cause(error))}") from None
            self._start()
            return
        self._failed_starts = 0
        self._free.append(worker)
        self._dispatch()

    def _collect(self, future: Any) -> Finished | Lost:
        worker, job, _ = self._running.pop(future)
        try:
            outcome = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            # evaluate() catches what a candidate does wrong: this is the worker's death.
            self._ray.kill(worker)
            self._start()
            return Lost(job, one_line(_cause(error)))
        self._free.append(worker)
        self._dispatch()
        return Finished(job, outcome)

    def _overdue(self) -> Finished | None:
        if self._timeout is None:
            return None
        for future, (worker, job, started) in self._running.items():
            if time.monotonic() - started > self._timeout:
                if self._ray.wait([future], timeout=0)[0]:
                    continue  # it has ended; it is we who are late
                del self._running[future]
                self._ray.kill(worker)
                self._start()
                reason = f"took longer than workers.timeout = {self._timeout:g} s"
                return Finished(job, Outcome("failed", reason, seconds_score=self._timeout))
        return None

    def _wait_seconds(self, deadline: float | None) -> float | None:
        """Return how long to wait: until the caller's deadline or the next time-out."""
        moments = [] if deadline is None else [deadline]
        if self._timeout is not None and self._running:
            moments.append(min(s for _, _, s in self._running.values()) + self._timeout + 0.01)
        return max(0.0, min(moments) - time.monotonic()) if moments else None


def _cause(error: BaseException) -> BaseException:
    return getattr(error, "cause", None) or error


def make_pool(plan: WorkerPlan, workers: Mapping[str, Any]) -> Pool:
    """Make the pool that a campaign's `workers` mapping asks for."""
    if workers["pool"] == "inline":
        return InlinePool(plan)
    cpus_each = workers.get("cpus_each") or plan.threads
    return RayPool(plan, workers["count"], cpus_each, workers["gpus_each"], workers.get("timeout"))
