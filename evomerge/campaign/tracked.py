"""A campaign that is followed by trackers, beside whoever else looks on."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from evomerge.archive.archive import Archive
from evomerge.campaign.observer import Observer
from evomerge.campaign.run_log import logging_to
from evomerge.tracking import TrackerSection
from evomerge.tracking.follower import Follower, wait_for_all
from evomerge.workers.protocol import WorkerState

log = logging.getLogger("evomerge")

# Seconds that trackers have for what is left when a search is over, and when it was stopped.
_PATIENCE, _PATIENCE_AT_STOP = 60.0, 10.0


class Tracked:
    """An observer that starts the trackers of a plan, tells of those that fail, and ends them.

    >>> from evomerge.campaign.observer import Silent
    >>> with Tracked(Silent(), [], Path("runs/demo")) as observer:
    ...     observer.say("starting")
    >>> observer.inner.said
    ['starting']
    """

    def __init__(self, inner: Observer, sections: Sequence[TrackerSection], directory: Path):
        """
        Args:
            inner: the observer that hears of everything.
            sections: the trackers' options.
            directory: of the run.
        """
        self.inner = inner
        self._sections, self._directory = sections, directory
        self._followers: list[Follower] | None = None
        self._told: set[int] = set()  # of which a failure was told
        self._is_finished = False

    def say(self, text: str) -> None:
        self.inner.say(text)

    def update(self, archive: Archive, workers: tuple[WorkerState, ...]) -> None:
        """Start the trackers at the first time, as the archive is there then."""
        self._start()
        self._tell_failures()
        self.inner.update(archive, workers)

    def finished(self, directory: Path) -> None:
        self.inner.finished(directory)
        self._start()  # of a run that was finished before they log what they have not
        self._is_finished = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._followers:
            return
        followers = [f for f in self._followers if not f.failure]
        late = wait_for_all(followers, _PATIENCE if self._is_finished else _PATIENCE_AT_STOP)
        if not late and not any(f.failure for f in self._followers):
            return
        with contextlib.suppress(OSError), logging_to(self._directory / "log.txt", self.inner):
            self._tell_failures()
            for follower in late:
                mend = "run the same again, which goes on from there"
                text = "%s has not taken all that the search found, and is left behind; %s"
                log.warning(text, follower.name, mend)

    def _start(self) -> None:
        if self._followers is None:
            self._followers = [Follower(section, self._directory) for section in self._sections]

    def _tell_failures(self) -> None:
        """Tell once of each tracker that logs nothing more."""
        for index, follower in enumerate(self._followers or ()):
            if follower.failure and index not in self._told:
                self._told.add(index)
                log.warning(
                    "%s failed, and the search goes on without it: %s",
                    follower.name,
                    follower.failure,
                )
