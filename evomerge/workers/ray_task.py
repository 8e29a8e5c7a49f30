"""One task in a process of Ray's, with what a worker has, before there are workers."""

from collections.abc import Callable
from typing import Any, TypeVar

from evomerge.errors import EvomergeError, one_line
from evomerge.workers.ray_cluster import RayCluster
from evomerge.workers.ray_pool import cause_of

T = TypeVar("T")


def on_a_worker(cluster: RayCluster, function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function returns in a process that Ray starts and ends for it.

    Args:
        cluster: that is connected; the process reserves what a worker does.
        function: of a module that the other process can import.
        arguments: of it.

    Raises:
        EvomergeError: it raised.

    >>> from evomerge.config.parts import WorkersSection
    >>> with RayCluster(WorkersSection(pool="ray", threads=1)) as cluster:
    ...     on_a_worker(cluster, sum, [1, 2])
    3
    """
    ray, needs = cluster.ray, cluster.needs
    # with max_calls a process of its own, which ends with the task
    options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0, "max_calls": 1}
    remote = ray.remote(**options)(_called)
    try:
        found: T = ray.get(remote.remote(function, *arguments))
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        reason = str(cause) if isinstance(cause, EvomergeError) else one_line(cause)
        raise EvomergeError(reason) from None
    return found


def _called(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)
