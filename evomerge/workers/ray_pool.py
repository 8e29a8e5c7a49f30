"""Workers as Ray actors, on this machine or a cluster."""

import contextlib
import itertools
import logging
import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from evomerge.errors import EvomergeError, SourceChanged, one_line
from evomerge.scoring.outcome import Outcome
from evomerge.workers.protocol import Finished, Job, Lost, WorkerPlan, WorkerState
from evomerge.workers.worker import Worker, spare_collector

log = logging.getLogger("evomerge")


class _Actor:
    """A worker in a process of its own, made by `ready`, so that its errors come through whole."""

    def __init__(self, plan: WorkerPlan):
        self._plan = plan

    def ready(self) -> str:
        self._worker = Worker(self._plan)
        spare_collector()
        return self._worker.name

    def evaluate(self, job: Job) -> Outcome:
        return self._worker.evaluate(job)


class _RayWorker(NamedTuple):
    """An actor, and what people call it."""

    name: str
    actor: Any


class RayPool:
    """One actor for each worker, on this machine or the cluster that RAY_ADDRESS names.

    A Ray that the process has begun already is used, and left as it is. A worker that dies is
    replaced; the job it held comes out as `Lost`. A job that outlasts
    `timeout` is a failure, and its worker is replaced too.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> plan = example_campaign(hashed=True).worker
    >>> pool = RayPool(plan, count=1, cpus_each=1)
    >>> pool.idle
    1
    >>> pool.close()
    """

    _START_FAILURES = 3  # in a row, after which the campaign stops
    _HEAD_CHECK = 5.0  # seconds between looks at the cluster's head
    _HEAD_PATIENCE = 20.0  # seconds without it; after 60, Ray ends this process without a word

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
        self._environment = dict(os.environ)  # in which `ray.init` sets variables
        self._ray, self._is_ours = _ray(max(math.ceil(count * cpus_each), 1))
        self._timeout = timeout
        self._head = self._ray.get_runtime_context().gcs_address
        self._head_seen = self._head_looked = time.monotonic()
        self._check_resources(cpus_each, gpus_each)
        self._actor = self._ray.remote(num_cpus=cpus_each, num_gpus=gpus_each, max_restarts=0)(
            _Actor
        )
        self._plan = self._ray.put(plan)
        self._starting: dict[Any, _RayWorker] = {}  # future of ready() -> worker
        # future of evaluate() -> worker, job, when it started
        self._running: dict[Any, tuple[_RayWorker, Job, float]] = {}
        self._free: list[_RayWorker] = []
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

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What each worker does now."""
        now = time.monotonic()
        states = [
            WorkerState(worker.name, job.candidate, job.side, now - started)
            for worker, job, started in self._running.values()
        ]
        for worker in (*self._free, *self._starting.values()):
            states.append(WorkerState(worker.name, None, "", 0.0))
        return tuple(sorted(states))

    def submit(self, job: Job) -> None:
        self._queued.append(job)
        self._dispatch()

    def next_finished(self, timeout: float | None = None) -> Finished | Lost | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.busy:
            self._look_at_head()
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

    def _look_at_head(self) -> None:
        now = time.monotonic()
        if now - self._head_looked < self._HEAD_CHECK:
            return
        self._head_looked = now
        if not (gone := self._head_gone()):
            self._head_seen = now
        elif now - self._head_seen > self._HEAD_PATIENCE:
            raise EvomergeError(
                f"the head of the Ray cluster is gone ({gone}); what is archived stays: start the"
                " cluster and run the same again"
            )

    def _head_gone(self) -> str:
        """Return why the cluster's head cannot be reached; "" if it can."""
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except OSError as error:
            return one_line(error)
        return ""

    def close(self) -> None:
        self._queued.clear()
        # Whatever is asked of Ray without a head waits for it, and a head may be just dying.
        if not self._head_gone():
            ending = threading.Thread(target=self._end, daemon=True)
            ending.start()
            ending.join(self._HEAD_PATIENCE)
        if self._is_ours:
            _restore(self._environment)

    def _end(self) -> None:
        for worker in (*self._free, *self._starting.values()):
            self._ray.kill(worker.actor)
        for worker, _, _ in self._running.values():
            self._ray.kill(worker.actor)
        if self._is_ours:
            self._ray.shutdown()

    def _start(self) -> None:
        # it takes the least number that no living worker has
        running = [worker for worker, _, _ in self._running.values()]
        taken = {worker.name for worker in (*running, *self._free, *self._starting.values())}
        number = next(n for n in itertools.count(1) if f"worker {n}" not in taken)
        worker = _RayWorker(f"worker {number}", self._actor.remote(self._plan))
        self._starting[worker.actor.ready.remote()] = worker

    def _dispatch(self) -> None:
        while self._free and self._queued:
            worker, job = self._free.pop(), self._queued.popleft()
            self._running[worker.actor.evaluate.remote(job)] = (worker, job, time.monotonic())

    def _admit(self, future: Any) -> None:
        worker = self._starting.pop(future)
        try:
            self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            log.warning("a worker did not start: %s", one_line(cause_of(error)))
            self._failed_starts += 1
            if self._failed_starts >= self._START_FAILURES:
                if self._running or self._free or self._starting:
                    self._count -= 1
                    log.warning("going on with %d worker(s)", self._count)
                    return
                cause = cause_of(error)
                reason = str(cause) if isinstance(cause, EvomergeError) else one_line(cause)
                raise EvomergeError(f"workers do not start: {reason}") from None
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
            if isinstance(error, SourceChanged):
                raise SourceChanged(str(cause_of(error))) from None
            # evaluate() catches what a candidate does wrong: this is the worker's death. A
            # living node tells of a process that died; of a dead one Ray says so, or nothing.
            unreachable = isinstance(error, self._ray.exceptions.ActorUnavailableError)
            blamed = not unreachable and "node has died" not in str(error)
            self._ray.kill(worker.actor)
            self._start()
            return Lost(job, one_line(cause_of(error)), blamed)
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
                self._ray.kill(worker.actor)
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


def _ray(cpus: int) -> tuple[Any, bool]:
    """Return the module ray, connected, and whether it was connected here.

    It is connected to the cluster that RAY_ADDRESS names, or to one that is begun here.

    Args:
        cpus: that a cluster begun here may use.

    Raises:
        EvomergeError: the cluster cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    import ray

    if ray.is_initialized():
        return ray, False
    # Leave CUDA_VISIBLE_DEVICES as it is in workers that reserve no GPU; they inherit this.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _process_kept():
            if address:
                ray.init(**quiet)
            else:  # not one that happens to run here
                ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not address:
            raise EvomergeError(f"Ray does not start here: {one_line(error)}") from error
        hint = "a cluster begun with `ray start` may ask for RAY_AUTH_MODE=token"
        reason = f"the Ray cluster at {address} cannot be reached: {one_line(error)}"
        raise EvomergeError(f"{reason} ({hint})") from error
    return ray, True


@contextlib.contextmanager
def connected(cpus: float) -> Iterator[Any]:
    """Give the module ray, connected as for a pool, and leave it as it was found.

    >>> with connected(1) as ray:
    ...     ray.is_initialized()
    True
    """
    environment = dict(os.environ)
    ray, is_ours = _ray(max(math.ceil(cpus), 1))
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()
            _restore(environment)


def _restore(environment: Mapping[str, str]) -> None:
    """Take back the variables that `ray.init` sets."""
    for variable in os.environ.keys() - environment.keys():
        del os.environ[variable]
    os.environ.update(environment)


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Put back what `ray.init` sets in this process: its log's form, and what SIGTERM does."""
    logger, on_terminate = logging.getLogger("ray"), signal.getsignal(signal.SIGTERM)
    level, formatters = logger.level, [(h, h.formatter) for h in logger.handlers]
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler, formatter in formatters:
            handler.setFormatter(formatter)
        if threading.current_thread() is threading.main_thread() and on_terminate is not None:
            signal.signal(signal.SIGTERM, on_terminate)


def cause_of(error: BaseException) -> BaseException:
    """Return what was raised in the other process.

    >>> cause_of(ValueError("here"))
    ValueError('here')
    """
    return getattr(error, "cause", None) or error
