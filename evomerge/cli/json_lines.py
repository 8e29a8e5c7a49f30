"""A campaign for other programs: one JSON object a line, each with its event's name.

docs/first-campaign.md lists the events and their keys. Keys may be added, none is renamed or taken
away.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from evomerge.archive import summary
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Told
from evomerge.workers.protocol import WorkerState

_EVERY = 5.0  # seconds between two lines of progress
_AT_ONCE = 100  # candidates that are told at one update


class JsonLines:
    """An observer that writes events; see `evomerge.campaign.observer`.

    >>> import io
    >>> from evomerge.testing.archives import example_archive
    >>> out = io.StringIO()
    >>> lines = JsonLines(out)
    >>> lines.update(example_archive(), workers=())
    >>> [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    ['start', 'progress']
    """

    def __init__(self, stream: TextIO | None = None, every: float = _EVERY):
        """
        Args:
            stream: where to write, stdout by default.
            every: seconds between two lines of progress.
        """
        self._stream: TextIO | None = sys.stdout if stream is None else stream
        self._every, self._due = every, 0.0  # on the clock of `time.monotonic`
        self._last: int | None = None  # the last outcome's event that was told

    def say(self, text: str) -> None:
        """Write a message."""
        self._write("message", text=text)

    def update(self, archive: ArchiveReader, workers: Sequence[WorkerState]) -> None:
        """Write the outcomes that came since the last time, and now and then the progress."""
        if self._last is None:
            self._last = archive.last_told()
            name, counts = archive.campaign["name"], archive.counts()
            scored = sum(counts.values()) - counts["running"]
            directory = str(archive.path.parent)
            self._write("start", name=name, directory=directory, scored=scored)
        for told in archive.told(after=self._last, most=_AT_ONCE):
            self._last = told.seq
            self._write("candidate", **_fields(told))
        if time.monotonic() >= self._due:
            began = time.monotonic()
            states = [worker._asdict() for worker in workers]
            self._write("progress", **summary.snapshot(archive), workers=states)
            self._due = began + max(self._every, 20.0 * (time.monotonic() - began))

    def finished(self, directory: Path) -> None:
        """Write what a finished campaign came to."""
        status, front = summary.status(directory), summary.front(directory)
        self._write("finished", directory=str(directory), status=status, front=front)

    def interrupted(self, again: str) -> None:
        """Write that the campaign was stopped, and the command that goes on with it."""
        self._write("interrupted", command=again)

    def _write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "at": time.time(), **fields})
        if self._stream is None:
            return
        try:
            print(line, file=self._stream, flush=True)
        except RuntimeError:  # a signal's handler speaks amid another write: leave it out
            pass
        except (OSError, ValueError):  # nobody reads any more, which is no reason to stop
            self._stream = None


def _fields(told: Told) -> Mapping[str, Any]:
    """Return an outcome's keys: `id` as other commands have it, and when it was told."""
    fields = told._asdict()
    return {"id": fields.pop("candidate"), "told_at": fields.pop("at"), **fields}
