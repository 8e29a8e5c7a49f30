"""What a process says of its own slow steps, on the package's log.

Whoever waits for it listens there: the inline pool to its own process, the Ray pool to what its
workers send.
"""

import contextlib
import logging
import time
from collections.abc import Iterator

log = logging.getLogger("evomerge")

AGAIN = 10.0  # seconds between signs of life within a step


def phase(doing: str) -> None:
    """Say that this process begins a step that may take long.

    >>> with heard() as phases:
    ...     phase("hashing models/base")
    >>> phases
    ['hashing models/base']
    """
    log.info("%s", doing, extra={"phase": doing})


def still(doing: str) -> None:
    """Give a sign of life within a step: to those who wait, not to the run's log.

    >>> with heard() as phases:
    ...     still("preparing wudi: 12 of 290 tensors")
    >>> phases
    ['preparing wudi: 12 of 290 tensors']
    """
    log.debug("%s", doing, extra={"phase": doing})


def tell_user(text: str) -> None:
    """Say something that whoever started the campaign should hear, as well as the run's log.

    >>> tell_user("waiting for 1 of 2 workers")
    """
    log.info("%s", text, extra={"for_user": True})


class Steps:
    """Says how far a step is, every ten seconds.

    >>> steps = Steps("preparing wudi", "tensors", 290)
    >>> with heard() as phases:
    ...     steps.done(1)
    >>> phases
    []
    """

    def __init__(self, doing: str, unit: str, count: int):
        """
        Args:
            doing: the step.
            unit: what it is counted in.
            count: how many there are.
        """
        self._doing, self._unit, self._count = doing, unit, count
        self._said = time.monotonic()

    def done(self, number: int) -> None:
        """Take note of how many are done."""
        if time.monotonic() - self._said >= AGAIN:
            self._said = time.monotonic()
            still(f"{self._doing}: {number} of {self._count} {self._unit}")


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Give a list to which this process adds, until it is left, what it begins to do.

    >>> with heard() as phases:
    ...     phase("opening the sources")
    >>> phases[-1]
    'opening the sources'
    """
    found: list[str] = []
    listener, level = _Listener(found), log.level
    log.addHandler(listener)
    log.setLevel(logging.DEBUG)
    try:
        yield found
    finally:
        log.setLevel(level)
        log.removeHandler(listener)


class _Listener(logging.Handler):
    def __init__(self, found: list[str]):
        super().__init__()
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a process does."""
        if doing := getattr(record, "phase", ""):
            self._found.append(doing)
