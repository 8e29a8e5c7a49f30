"""Who looks on while a campaign runs: the command line, a notebook, a test."""

from pathlib import Path
from typing import Protocol

from evomerge.archive.archive import Archive
from evomerge.workers.protocol import WorkerState


class Observer(Protocol):
    """Hears of a campaign's progress. The library itself prints nothing."""

    def say(self, text: str) -> None:
        """Take a line for the user."""

    def update(self, archive: Archive, workers: tuple[WorkerState, ...]) -> None:
        """Take note that something may have changed; called about once a second."""

    def finished(self, directory: Path) -> None:
        """Take note that the campaign in a run's directory is finished."""


class Silent:
    """An observer that keeps what was said.

    >>> observer = Silent()
    >>> observer.say("starting")
    >>> observer.said
    ['starting']
    """

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, archive: Archive, workers: tuple[WorkerState, ...]) -> None:
        """Do nothing."""

    def finished(self, directory: Path) -> None:
        """Do nothing."""
