"""A tracker in a thread of its own, which reads the ledger and never holds up the search.

The ledger is the queue between them: the thread reads what it has not logged yet, a few hundred
outcomes at a time, by a connection of its own. So nothing is dropped and nothing piles up in
memory, however slow a tracker is; one that fails, or hangs, is left behind.
"""

import contextlib
import threading
import time
from pathlib import Path

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Told
from evomerge.errors import one_line
from evomerge.tracking import Point, TrackedRun, Tracker, TrackerSection, open_tracker
from evomerge.tracking.curves import Curves, ending
from evomerge.tracking.private import public_config, run_id

_POLL = 2.0  # seconds between looks at the ledger
_CHUNK = 250  # outcomes that are logged at once


class Follower:
    """Follows one run's ledger into one tracker until it is told to end, or fails.

    Attributes:
        name: of the tracker.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> from evomerge.tracking.tensorboard import TensorBoardSection
    >>> run = Path(tempfile.mkdtemp())
    >>> archive = example_archive(run / "archive.db")
    >>> _ = archive.start({})
    >>> follower = Follower(TensorBoardSection(), run)
    >>> follower.end()
    >>> follower.wait(60.0), follower.failure
    (True, '')
    """

    def __init__(self, options: TrackerSection, directory: Path):
        """
        Args:
            options: of the tracker.
            directory: of the run, whose archive is there.
        """
        self.name = options.kind
        self._options, self._directory = options, directory
        self._failure, self._logged = "", 0
        self._is_ending = threading.Event()
        # a daemon: one that hangs is no reason for the process to stay
        self._thread = threading.Thread(target=self._run, name=f"track {self.name}", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str:
        """Why it logs nothing more, in one line; "" if it does."""
        return self._failure

    @property
    def logged(self) -> int:
        """The last event of the ledger that it has logged."""
        return self._logged

    def end(self) -> None:
        """Let it log what is left, and end."""
        self._is_ending.set()

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, at most so long; return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with contextlib.closing(ArchiveReader(self._directory / "archive.db")) as archive:
                self._follow(archive)
        except BaseException as error:  # whatever a library does: it is no matter of the search
            self._failure = one_line(error)

    def _follow(self, archive: ArchiveReader) -> None:
        began = self._wait_for_start(archive)
        if began is None:
            return
        campaign = archive.campaign
        run = TrackedRun(
            run_id(campaign, began),
            campaign["name"],
            self._directory,
            began,
            public_config(campaign),
        )
        tracker = open_tracker(self._options, run)
        self._logged = tracker.reached()
        curves, last = Curves(campaign["plan"]), 0
        while True:
            is_ending = self._is_ending.is_set()  # before the ledger is read for the last time
            points = []
            for told in archive.told(after=last, most=_CHUNK):
                if _is_early(told):
                    break
                points.append(curves.point(told))
                last = told.seq
            self._log(tracker, points)
            if not points:
                if is_ending:
                    break
                self._is_ending.wait(_POLL)
        tracker.end(ending(archive, self._directory))

    def _wait_for_start(self, archive: ArchiveReader) -> float | None:
        """Return when the run was first started, as soon as it is; None if it ends before."""
        while (began := archive.first_start()) is None:
            if self._is_ending.wait(_POLL):
                return archive.first_start()
        return began

    def _log(self, tracker: Tracker, points: list[Point]) -> None:
        new = [point for point in points if point.event > self._logged]
        if new:
            tracker.log(new)
            self._logged = new[-1].event


def _is_early(told: Told) -> bool:
    """Tell whether an outcome has no value yet, as a baseline's until all of them are scored."""
    return told.origin == "baseline" and told.status == "ok" and told.value is None


def wait_for_all(followers: list[Follower], seconds: float) -> list[Follower]:
    """Let followers end, all within so long; return those that have not.

    >>> wait_for_all([], 1.0)
    []
    """
    for follower in followers:
        follower.end()
    until = time.monotonic() + seconds
    return [f for f in followers if not f.wait(max(0.0, until - time.monotonic()))]
