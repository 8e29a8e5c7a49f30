"""Workers as Ray actors, on this machine or a cluster."""

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from evomerge.config.parts import WorkersSection
from evomerge.errors import EvomergeError, SourceChanged, one_line
from evomerge.node.phases import tell_user
from evomerge.scoring.outcome import Outcome
from evomerge.text import duration
from evomerge.workers.log_relay import Mailbox, retell
from evomerge.workers.protocol import Finished, Job, Lost, WorkerPlan, WorkerState
from evomerge.workers.ray_cluster import RayCluster
from evomerge.workers.ray_worker import Actor, RayWorker, Running, Starting
from evomerge.workers.starts import Attempts, Reminder, Waited, waiting_line

log = logging.getLogger("evomerge")


class RayPool:
    """One actor for each worker, on this machine or the cluster that RAY_ADDRESS names.

    A worker that dies is replaced; the job it held comes out as `Lost`. A job that outlasts
    `timeout` is a failure, and its worker is replaced too. Of several that a worker held at once,
    nobody knows which is to blame: each is done again by itself. A worker that does not start is
    tried again, later each time, as long as others work; so is one for which the cluster has no
    room.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> plan = example_campaign(hashed=True).worker
    >>> pool = RayPool(plan, WorkersSection(pool="ray", count=1, threads=1))
    >>> pool.idle
    1
    >>> pool.close()
    """

    _START_FAILURES = 3  # in a row, after which the campaign stops if nothing else works
    _ROOM_CHECK = 30.0  # seconds between looks for room for workers that had none
    _NODE_LOST = 10.0  # seconds after which the cluster knows that a node is lost

    def __init__(
        self, plan: WorkerPlan, workers: WorkersSection, cluster: RayCluster | None = None
    ):
        """
        Args:
            plan: sent to every worker.
            workers: how many, and what is reserved for each.
            cluster: where; by default one is connected, and left when the pool is closed.

        Raises:
            EvomergeError: the cluster cannot be reached.
            BadInput: no node has room for a worker.
        """
        self._cluster, self._owns_cluster = cluster or RayCluster(workers), cluster is None
        self._ray = self._cluster.ray
        self._timeout, self._start_timeout = workers.timeout, workers.start_timeout
        self._count, needs = workers.count, self._cluster.needs
        # On this node, which no other one takes along.
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=False
        )
        mailbox = self._ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox)
        self._mailbox = mailbox.remote()
        self._news = [self._mailbox.take.remote()]
        self._actor = self._ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_restarts=0)(
            Actor
        )
        self._plan = self._ray.put(plan)
        self._starting: dict[Any, Starting] = {}  # by the future of ready()
        self._running: dict[Any, Running] = {}  # by the future of evaluate_all()
        self._free: list[RayWorker] = []
        self._each = plan.candidates_each
        self._queued: deque[Job] = deque()
        self._alone: deque[Job] = deque()  # of which each gets a worker for itself
        self._finished: deque[Finished] = deque()
        self._attempts, self._room_look = Attempts(), 0.0
        self._roomless: float | None = None  # since when there is room for no worker at all
        self._reminder = Reminder(time.monotonic())
        self._start_missing()

    @property
    def _present(self) -> int:
        """How many workers there are, those that start among them."""
        return len(self._running) + len(self._free) + len(self._starting)

    @property
    def idle(self) -> int:
        # One job waits, though no worker be there: so somebody waits for workers.
        return max(0, max(self._present, 1) * self._each - self.busy)

    @property
    def busy(self) -> int:
        running = sum(len(running.jobs) for running in self._running.values())
        return running + len(self._queued) + len(self._alone) + len(self._finished)

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What each worker does now."""
        now = time.monotonic()
        states = [
            WorkerState(
                worker.name, jobs[0].candidate, jobs[0].side, now - started, others=len(jobs) - 1
            )
            for worker, jobs, started in self._running.values()
        ]
        states += [WorkerState(worker.name, None, "", 0.0) for worker in self._free]
        for start in self._starting.values():
            states.append(WorkerState(start.worker.name, None, "", now - start.began, start.doing))
        return tuple(sorted(states))

    def submit(self, job: Job) -> None:
        self._queued.append(job)
        if self._each == 1:  # else others may follow that are done with it
            self._dispatch()

    def next_finished(self, timeout: float | None = None) -> Finished | Lost | None:
        if self._finished:
            return self._finished.popleft()
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.busy:
            self._dispatch()
            self._cluster.look_at_head()
            self._hear()
            if late := self._overdue():
                return late
            self._tend_starts()
            futures = [*self._running, *self._starting, *self._news]
            wait = self._wait_seconds(deadline)
            done = self._ray.wait(futures, num_returns=1, timeout=wait)[0] if futures else []
            if not futures:
                time.sleep(1.0 if wait is None else wait)
            for future in done:
                if future in self._starting:
                    self._admit(future)
                elif future in self._running and (ended := self._collect(future)):
                    return ended
            if deadline is not None and time.monotonic() >= deadline:
                return None
        return None

    def close(self) -> None:
        for held in (self._queued, self._alone, self._finished):
            held.clear()
        self._cluster.ask(self._end)
        if self._owns_cluster:
            self._cluster.close()

    def _end(self) -> None:
        self._hear()
        for worker in self._living():
            self._ray.kill(worker.actor)
        self._ray.kill(self._mailbox)

    def _living(self) -> list[RayWorker]:
        running = [running.worker for running in self._running.values()]
        return [*running, *self._free, *(start.worker for start in self._starting.values())]

    def _hear(self) -> None:
        """Take what workers have said."""
        while self._news and self._ray.wait(self._news, timeout=0)[0]:
            try:
                entries = self._ray.get(self._news.pop())
            except self._ray.exceptions.RayError as error:
                log.warning("workers' log is not heard any more: %s", one_line(cause_of(error)))
                return
            self._news.append(self._mailbox.take.remote())
            starts = {start.worker.name: start for start in self._starting.values()}
            for entry in entries:
                if start := starts.get(entry.worker):
                    start.heard, start.doing = time.monotonic(), entry.phase or start.doing
                retell(entry)

    def _tend_starts(self) -> None:
        """Give up starts that are too late, begin those that are due, and say what is waited for.

        Raises:
            EvomergeError: no worker starts, and none works.
        """
        now = time.monotonic()
        for future, start in list(self._starting.items()):
            if self._start_timeout is None or now - start.heard <= self._start_timeout:
                continue
            if self._ray.wait([future], timeout=0)[0]:
                continue  # it has ended; it is we who are late
            del self._starting[future]
            self._ray.kill(start.worker.actor)
            limit = f"workers.start_timeout = {self._start_timeout:g} s"
            self._after_failed_start(start, f"nothing new for {limit}, while {start.doing}")
        self._start_missing()
        if not self._starting:
            self._reminder = Reminder(now)
        elif self._reminder.is_due(now):
            waited = [
                Waited(start.worker.name, start.doing, now - start.began)
                for start in self._starting.values()
            ]
            tell_user(waiting_line(self._count, waited))

    def _start_missing(self) -> None:
        """Start the workers that are not there, as far as there is room and it is time to."""
        now, missing = time.monotonic(), self._count - self._present
        if not missing or now < max(self._attempts.again, self._room_look):
            return
        room = self._cluster.fits() - self._present
        for _ in range(min(missing, room)):
            self._start()
        if room < missing:
            self._room_look = now + self._ROOM_CHECK
        if self._present:
            self._roomless = None
            return
        self._roomless = self._roomless or now
        if self._start_timeout is not None and now - self._roomless > self._start_timeout:
            limit = f"workers.start_timeout = {self._start_timeout:g} s"
            raise EvomergeError(f"no node has had room for a worker for {limit}")

    def _start(self) -> None:
        # it takes the least number that no living worker has
        taken = {worker.name for worker in self._living()}
        name = next(f"worker {n}" for n in itertools.count(1) if f"worker {n}" not in taken)
        actor = self._actor.remote(
            self._plan, name, self._mailbox, self._count, self._cluster.needs
        )
        now = time.monotonic()
        self._starting[actor.ready.remote()] = Starting(RayWorker(name, actor), now, now)

    def _dispatch(self) -> None:
        """Give what waits to free workers, in even shares."""
        while self._free and (self._alone or self._queued):
            share = min(self._each, math.ceil(len(self._queued) / len(self._free)))
            waiting = self._alone or self._queued
            jobs = [waiting.popleft() for _ in range(1 if self._alone else share)]
            worker = self._free.pop()
            future = worker.actor.evaluate_all.remote(jobs)
            self._running[future] = Running(worker, jobs, time.monotonic())

    def _admit(self, future: Any) -> None:
        start = self._starting.pop(future)
        try:
            place = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            cause = cause_of(error)
            is_known = isinstance(cause, EvomergeError)
            self._after_failed_start(start, str(cause) if is_known else one_line(cause))
            return
        log.info(
            "%s has started in %s: %s",
            start.worker.name,
            duration(time.monotonic() - start.began),
            place,
        )
        self._attempts.succeeded()
        self._free.append(start.worker)
        self._dispatch()

    def _after_failed_start(self, start: Starting, reason: str) -> None:
        """Try again later, unless nothing works and nothing starts."""
        pause = self._attempts.failed(start.began, time.monotonic())
        if self._attempts.failures >= self._START_FAILURES and not self._present:
            raise EvomergeError(f"workers do not start: {reason}")
        said = "%s did not start: %s; it is tried again in %s"
        log.warning(said, start.worker.name, reason, duration(pause))

    def _replace(self, worker: RayWorker, after: float = 0.0) -> None:
        """End a worker that is dead or hangs, and start another one, at once or later."""
        self._ray.kill(worker.actor)
        self._room_look = time.monotonic() + after
        self._start_missing()

    def _collect(self, future: Any) -> Finished | Lost | None:
        worker, jobs, _ = self._running.pop(future)
        try:
            outcomes = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            if isinstance(error, SourceChanged):
                raise SourceChanged(str(cause_of(error))) from None
            # evaluate() catches what a candidate does wrong: this is the worker's death. A
            # living node tells of a process that died; of a dead one Ray says so, or nothing.
            unreachable = isinstance(error, self._ray.exceptions.ActorUnavailableError)
            blamed = not unreachable and "node has died" not in str(error)
            self._replace(worker, after=0.0 if blamed else self._NODE_LOST)
            reason = one_line(cause_of(error))
            if len(jobs) > 1:
                self._part(jobs, f"their worker was lost: {reason}")
                return None
            return Lost(jobs[0], reason, blamed)
        self._free.append(worker)
        self._finished.extend(map(Finished, jobs, outcomes))
        self._dispatch()
        return self._finished.popleft()

    def _part(self, jobs: Sequence[Job], reason: str) -> None:
        """Let jobs that were done at once be done again one by one."""
        numbers = ", ".join(str(job.candidate) for job in jobs)
        log.warning("candidates %s are scored again, each by itself: %s", numbers, reason)
        self._alone.extend(jobs)

    def _overdue(self) -> Finished | None:
        if self._timeout is None:
            return None
        for future, (worker, jobs, started) in self._running.items():
            if time.monotonic() - started > self._timeout * len(jobs):
                if self._ray.wait([future], timeout=0)[0]:
                    continue  # it has ended; it is we who are late
                del self._running[future]
                self._replace(worker)
                reason = f"took longer than workers.timeout = {self._timeout:g} s"
                if len(jobs) > 1:
                    self._part(jobs, f"{reason} each")
                    return None
                return Finished(jobs[0], Outcome("failed", reason, seconds_score=self._timeout))
        return None

    def _wait_seconds(self, deadline: float | None) -> float | None:
        """Return how long to wait: until the caller's deadline, a time-out, or a start's turn."""
        moments = [] if deadline is None else [deadline]
        if self._timeout is not None:
            for running in self._running.values():
                moments.append(running.started + self._timeout * len(running.jobs) + 0.01)
        if self._present < self._count or self._starting:
            moments.append(time.monotonic() + 1.0)
        return max(0.0, min(moments) - time.monotonic()) if moments else None


def cause_of(error: BaseException) -> BaseException:
    """Return what was raised in the other process.

    >>> cause_of(ValueError("here"))
    ValueError('here')
    """
    return getattr(error, "cause", None) or error
