"""What workers in processes of their own log, carried to the campaign's log.

A worker's records go to a mailbox, an actor without a core, as they come: so those of a worker
that is killed are not lost with it.
"""

import asyncio
import logging
from typing import Any, NamedTuple

log = logging.getLogger("evomerge")


class Entry(NamedTuple):
    """A record of a worker's log.

    Attributes:
        worker: its name, for people.
        number: of the record among the worker's, as a mailbox may get a later one first.
        level: of the record.
        text: its message, with a traceback if it has one.
        phase: what the worker begins to do, if that is what it says.

    >>> Entry("worker 2", 1, logging.INFO, "hashing models/base", "hashing models/base").worker
    'worker 2'
    """

    worker: str
    number: int
    level: int
    text: str
    phase: str


class Mailbox:
    """Keeps workers' records until they are fetched; an actor.

    >>> async def one() -> list[Entry]:
    ...     mailbox = Mailbox()
    ...     await mailbox.put(Entry("worker 1", 1, logging.INFO, "text", ""))
    ...     return await mailbox.take()
    >>> [entry.text for entry in asyncio.run(one())]
    ['text']
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._arrived = asyncio.Event()

    async def put(self, entry: Entry) -> None:
        """Keep a record."""
        self._entries.append(entry)
        self._arrived.set()

    async def take(self) -> list[Entry]:
        """Wait until there are records, and give them away, those of each worker in its order."""
        await self._arrived.wait()
        self._arrived.clear()
        entries, self._entries = self._entries, []
        return sorted(entries, key=lambda entry: (entry.worker, entry.number))


class Sender(logging.Handler):
    """Sends a worker's records to a mailbox, instead of to its process's own output.

    >>> class Here:
    ...     class put:
    ...         remote = staticmethod(print)
    >>> sender = Sender("worker 2", Here)
    >>> sender.handle(logging.makeLogRecord({"msg": "it is slow", "levelno": logging.WARNING}))
    Entry(worker='worker 2', number=1, level=30, text='it is slow', phase='')
    True
    """

    def __init__(self, worker: str, mailbox: Any):
        """
        Args:
            worker: its name.
            mailbox: the actor.
        """
        super().__init__()
        self._worker, self._mailbox, self._number = worker, mailbox, 0

    def install(self) -> None:
        """Take what the package logs in this process from now on."""
        log.addHandler(self)
        log.setLevel(logging.DEBUG)  # of which `emit` takes the signs of life
        log.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        phase = getattr(record, "phase", "")
        if record.levelno < logging.INFO and not phase:
            return
        self._number += 1
        try:
            text = self.format(record)
            entry = Entry(self._worker, self._number, record.levelno, text, phase)
            self._mailbox.put.remote(entry)
        except Exception:
            self.handleError(record)


def retell(entry: Entry) -> None:
    """Log a worker's record here, with the worker's name.

    >>> retell(Entry("worker 2", 1, logging.DEBUG, "a sign of life", "preparing wudi"))
    """
    if log.isEnabledFor(entry.level):
        log.log(entry.level, "%s: %s", entry.worker, entry.text, extra={"of_worker": entry.text})
