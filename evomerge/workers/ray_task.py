"""One task in a process of Ray's, with what a worker has, before there are workers."""

from collections.abc import Callable
from typing import Any, TypeVar

from evomerge.errors import EvomergeError, one_line
from evomerge.workers.ray_pool import cause_of, connected

T = TypeVar("T")


def on_a_worker(
    function: Callable[..., T], arguments: tuple[Any, ...], cpus: float, gpus: float
) -> T:
    """Return what a function returns in a process that Ray starts and ends for it.

    Args:
        function: of a module that the other process can import.
        arguments: of it.
        cpus, gpus: that Ray reserves.

    Raises:
        EvomergeError: it raised, or Ray has no such place.

    >>> on_a_worker(sum, ([1, 2],), cpus=1, gpus=0)
    3
    """
    with connected(cpus) as ray:
        # a process of its own, which ends with the task
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0, "max_calls": 1}
        remote = ray.remote(**options)(_called)
        try:
            return ray.get(remote.remote(function, *arguments))
        except ray.exceptions.RayError as error:
            cause = cause_of(error)
            reason = str(cause) if isinstance(cause, EvomergeError) else one_line(cause)
            raise EvomergeError(reason) from None


def _called(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)
