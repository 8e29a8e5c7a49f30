"""Workers that start: when to try again, and what is waited for."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evomerge.node.phases import heard, tell_user
from evomerge.text import duration

_FIRST_LINE = 15.0  # seconds before it is said what is waited for
_LAST_LINE = 300.0  # seconds between such lines in the end; each is twice as late as the last
_NAMED = 4  # workers named in a line


class Attempts:
    """Counts failed starts, and says when to try again: later each time, and never not at all.

    Workers that were starting already when another one failed met the same hiccup, and do not
    count anew.

    Attributes:
        failures: in a row.
        again: when to try next, on the clock of `time.monotonic`; 0 for now.

    >>> attempts = Attempts()
    >>> attempts.failed(began=0.0, now=10.0)
    2.0
    >>> attempts.failed(began=0.0, now=10.5), attempts.failures
    (1.5, 1)
    >>> attempts.failed(began=12.0, now=20.0), attempts.failures
    (8.0, 2)
    """

    FIRST, FACTOR, LONGEST = 2.0, 4.0, 300.0  # seconds

    def __init__(self) -> None:
        self.failures, self.again = 0, 0.0
        self._last = float("-inf")  # when a failure was counted

    def failed(self, began: float, now: float) -> float:
        """Take note that a worker did not start; return the seconds until the next attempt.

        Args:
            began: when its start did, on the clock of `time.monotonic`.
            now: on the same.
        """
        if began >= self._last:
            self.failures, self._last = self.failures + 1, now
            self.again = now + min(self.FIRST * self.FACTOR ** (self.failures - 1), self.LONGEST)
        return max(0.0, self.again - now)

    def succeeded(self) -> None:
        """Take note that a worker has started."""
        self.failures, self.again = 0, 0.0


class Waited(NamedTuple):
    """A worker that is waited for.

    >>> Waited("worker 2", "hashing models/base", 125.0).doing
    'hashing models/base'
    """

    name: str
    doing: str
    seconds: float  # since it began to start


def waiting_line(count: int, waited: Sequence[Waited]) -> str:
    """Say which workers are waited for, and what they do.

    Args:
        count: of all workers.
        waited: those that start.

    >>> waiting_line(4, [Waited("worker 2", "hashing models/base", 125.0)])
    'waiting for 1 of 4 workers: worker 2 hashing models/base (2 min 05 s)'
    """
    named = [f"{w.name} {w.doing} ({duration(w.seconds)})" for w in waited[:_NAMED]]
    if len(waited) > _NAMED:
        named.append(f"{len(waited) - _NAMED} more")
    return f"waiting for {len(waited)} of {count} workers: {', '.join(named)}"


class Reminder:
    """Says when a line about a wait is due: after 15 seconds, and then ever more seldom.

    >>> reminder = Reminder(now=0.0)
    >>> [second for second in range(120) if reminder.is_due(second)]
    [15, 45, 105]
    """

    def __init__(self, now: float):
        self._pause = _FIRST_LINE
        self._next = now + self._pause

    @property
    def next(self) -> float:
        """When a line is due."""
        return self._next

    def is_due(self, now: float) -> bool:
        """Tell whether a line is due; if so, it counts as said."""
        if now < self._next:
            return False
        self._pause = min(2 * self._pause, _LAST_LINE)
        self._next = now + self._pause
        return True


@contextlib.contextmanager
def start_told(name: str) -> Iterator[None]:
    """Say now and then, by another thread, what a worker in this process does that takes so long.

    >>> with start_told("worker 1"):
    ...     pass
    """
    began, done = time.monotonic(), threading.Event()
    with heard() as phases:

        def tell() -> None:
            reminder = Reminder(began)
            while not done.wait(max(0.0, reminder.next - time.monotonic())):
                now = time.monotonic()
                if reminder.is_due(now):
                    doing = phases[-1] if phases else "starting"
                    tell_user(waiting_line(1, [Waited(name, doing, now - began)]))

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            done.set()
            teller.join()
