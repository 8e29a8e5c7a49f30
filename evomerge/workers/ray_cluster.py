"""The Ray that workers run on: connected, its room for workers, whether its head still lives."""

import contextlib
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from evomerge.config.parts import WorkersSection
from evomerge.environment import cores
from evomerge.errors import BadInput, EvomergeError, Fault, one_line

log = logging.getLogger("evomerge")

_T = TypeVar("_T")

_HEAD_CHECK = 5.0  # seconds between looks at the cluster's head
_HEAD_PATIENCE = 20.0  # seconds without it; after 60, Ray ends this process without a word


class Needs(NamedTuple):
    """What each worker reserves of a node.

    >>> Needs(cpus=2.0, gpus=0.5).cpus
    2.0
    """

    cpus: float
    gpus: float


class Node(NamedTuple):
    """What a living node of the cluster has, in use or not.

    >>> Node(cpus=8.0, gpus=1.0).workers(Needs(cpus=3.0, gpus=0.0))
    2
    >>> Node(cpus=8.0, gpus=2.0).workers(Needs(cpus=1.0, gpus=0.4))  # a worker is on one GPU
    4
    """

    cpus: float
    gpus: float

    def workers(self, needs: Needs) -> int:
        """Return how many workers it holds."""
        most = math.floor(self.cpus / needs.cpus + 1e-9)
        if needs.gpus:
            most = min(most, int(self.gpus) * math.floor(1.0 / needs.gpus + 1e-9))
        return most

    def threads(self, own_cores: int, count: int, needs: Needs) -> int:
        """Return how many torch threads each worker has here: the cores shared out.

        Args:
            own_cores: of the node; its CPUs are what Ray was told.
            count: of all workers.
            needs: of each.

        >>> Node(cpus=8.0, gpus=0.0).threads(16, count=3, needs=Needs(cpus=4.0, gpus=0.0))
        8
        """
        return max(1, own_cores // min(count, max(1, self.workers(needs))))


def shared_out(nodes: Sequence[Node], count: int, gpus: float) -> float:
    """Return the most CPUs, a whole number, with which as many workers as can be have room.

    Args:
        nodes: of the cluster.
        count: workers that are wanted.
        gpus: that each reserves.

    >>> shared_out([Node(16.0, 0.0), Node(8.0, 0.0)], count=3, gpus=0.0)
    8.0
    >>> shared_out([Node(16.0, 1.0)], count=3, gpus=1.0)  # one has room, whatever it takes
    16.0
    """

    def fit(share: float) -> int:
        return min(count, sum(node.workers(Needs(share, gpus)) for node in nodes))

    shares = {max(1.0, node.cpus // k) for node in nodes for k in range(1, count + 1)}
    return max(shares, key=lambda share: (fit(share), share), default=1.0)


class RayCluster:
    """A Ray that is connected: the caller's own, that of RAY_ADDRESS, or one begun here.

    A Ray that the process has begun already is used, and left as it is.

    Attributes:
        ray: the module.
        needs: what each worker reserves.

    >>> with RayCluster(WorkersSection(pool="ray", count=1, threads=1)) as cluster:
    ...     cluster.fits()
    1
    """

    def __init__(self, workers: WorkersSection):
        """
        Raises:
            EvomergeError: the cluster cannot be reached.
            BadInput: no node has room for a worker.
        """
        self._environment = dict(os.environ)  # in which `ray.init` sets variables
        self._workers, count = workers, workers.count
        cpus = workers.cpus_each or workers.threads
        own = float(cpus or max(1, cores() // count))  # of this machine
        try:
            self.ray, self._is_ours = _connected(max(math.ceil(count * own), 1))
        except BaseException:
            self._restore_environment()
            raise
        self._unmuted = _muted(self.ray) if self._is_ours else None
        try:
            self._head: str = self.ray.get_runtime_context().gcs_address
            self._head_seen = self._head_looked = time.monotonic()
            self._is_elsewhere = not self._is_ours or bool(os.environ.get("RAY_ADDRESS"))
            if not cpus and self._is_elsewhere:
                own = shared_out(self.nodes(), count, workers.gpus_each)
            self.needs = Needs(own, workers.gpus_each)
            self._check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def nodes(self) -> list[Node]:
        """Return what each living node has; none if the cluster's head does not answer."""
        found = [node["Resources"] for node in self.ask(self.ray.nodes) or [] if node["Alive"]]
        return [Node(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in found]

    def fits(self) -> int:
        """Return how many workers all living nodes hold together."""
        return sum(node.workers(self.needs) for node in self.nodes())

    def warning(self) -> str:
        """Return what to say if there is no room for all workers; "" if there is."""
        fits, count = self.fits(), self._workers.count
        if fits >= count:
            return ""
        nodes = len(self.nodes())
        place = f"the cluster's {nodes} node(s)" if self._is_elsewhere else "this machine"
        each = f"{self.needs.cpus:g} CPUs and {self.needs.gpus:g} GPUs each"
        rest = "the others start if it grows" if self._is_elsewhere else f"write {fits}"
        return f"workers.count: {fits} of {count} workers fit on {place}, with {each}; {rest}"

    def _check(self) -> None:
        """Refuse what no node has room for."""
        nodes, (cpus, gpus) = self.nodes(), self.needs
        if any(node.workers(self.needs) for node in nodes):
            return
        place = "no node of the cluster has" if self._is_elsewhere else "this machine has not"
        if not any(node.workers(Needs(1.0, gpus)) for node in nodes):
            wrong = f"{place} {gpus:g} GPUs for a worker"
            raise BadInput(Fault("workers.gpus_each", wrong, "write 0, or add a node with GPUs"))
        key = "threads" if self._workers.threads and not self._workers.cpus_each else "cpus_each"
        with_gpus = [node.cpus for node in nodes if node.workers(Needs(1.0, gpus))]
        wrong = f"{place} {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "") + " for a worker"
        raise BadInput(Fault(f"workers.{key}", wrong, f"write at most {max(with_gpus):g}"))

    def look_at_head(self) -> None:
        """Look every few seconds whether the cluster's head lives.

        Raises:
            EvomergeError: it has been gone for too long.
        """
        now = time.monotonic()
        if now - self._head_looked < _HEAD_CHECK:
            return
        self._head_looked = now
        if not (gone := self._head_gone()):
            self._head_seen = now
        elif now - self._head_seen > _HEAD_PATIENCE:
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

    def ask(self, question: Callable[[], _T]) -> _T | None:
        """Ask something of Ray; None if its head does not answer.

        Whatever is asked of Ray without a head waits for it, and a head may be just dying.
        """
        answers: list[_T] = []
        if not self._head_gone():
            asking = threading.Thread(target=lambda: answers.append(question()), daemon=True)
            asking.start()
            asking.join(_HEAD_PATIENCE)
        return answers[0] if answers else None

    def close(self) -> None:
        """End what was begun here; a Ray of the caller's stays up."""
        if not self._is_ours:
            return
        self.ask(self.ray.shutdown)
        if self._unmuted is not None:
            self._unmuted()
        self._restore_environment()

    def _restore_environment(self) -> None:
        for variable in os.environ.keys() - self._environment.keys():
            del os.environ[variable]
        os.environ.update(self._environment)


def _connected(cpus: int) -> tuple[Any, bool]:
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


def _muted(ray: Any) -> Callable[[], None]:
    """Let what Ray would print of its own processes go to the run's log; return what undoes that.

    It prints them in a thread of its own, whatever `log_to_driver` says.
    """
    worker: Any = ray._private.worker
    plain = getattr(worker, "print_to_stdstream", None)

    def told(data: Mapping[str, Any], *rest: object, **more: object) -> None:
        for text in data.get("lines", ()):  # of which the first tells what has happened
            log.info("Ray: %s", text.splitlines()[0] if text else "")

    def undo() -> None:
        worker.print_to_stdstream = plain

    if plain is None:
        return lambda: None
    worker.print_to_stdstream = told
    return undo


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
