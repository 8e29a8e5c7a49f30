"""Who looks on while `evomerge run` runs: people, nobody until the end, or a program."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from evomerge.archive.reader import ArchiveReader
from evomerge.campaign.observer import Observer
from evomerge.cli.json_lines import JsonLines
from evomerge.cli.progress import Progress
from evomerge.errors import BadInput, Fault
from evomerge.workers.protocol import WorkerState


class CommandObserver(Observer, Protocol):
    """An observer of the command line, which also hears of an interruption."""

    def interrupted(self, again: str) -> None:
        """Take note that the campaign was stopped, and of the command that goes on with it."""


class Quiet:
    """An observer that says nothing but what came out in the end.

    >>> Quiet().say("starting")
    """

    def say(self, text: str) -> None:
        """Say nothing."""

    def update(self, archive: ArchiveReader, workers: Sequence[WorkerState]) -> None:
        """Say nothing."""

    def finished(self, directory: Path) -> None:
        """Show what a finished campaign came to."""
        with Progress() as progress:
            progress.finished(directory)

    def interrupted(self, again: str) -> None:
        """Say so, as it is the result."""
        Progress().interrupted(again)


@contextlib.contextmanager
def observer_of(quiet: bool, json_lines: bool) -> Iterator[CommandObserver]:
    """Give the observer that the options of `evomerge run` ask for.

    Raises:
        BadInput: they ask for two.

    >>> with observer_of(quiet=True, json_lines=False) as observer:
    ...     type(observer).__name__
    'Quiet'
    """
    if quiet and json_lines:
        mend = "leave one of them out"
        raise BadInput(Fault("", "says nothing, and --json-lines says all", mend, file="--quiet"))
    if quiet:
        yield Quiet()
    elif json_lines:
        yield JsonLines()
    else:
        with Progress() as progress:
            yield progress
