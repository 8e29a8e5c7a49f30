"""Archived candidates by name: `RUN#NUMBER` or `RUN#best`."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Candidate
from evomerge.archive.selection import pick
from evomerge.archive.summary import open_run
from evomerge.errors import BadInput, EvomergeError, Fault
from evomerge.sources.source import is_candidate


def pinned(name: str, begun: str | None = None) -> str:
    """Return a source's name, with `RUN#best` written as the number that it means now.

    Args:
        name: a directory, a hub id or a candidate of a run.
        begun: what the campaign was begun with in its place, whose number stays.

    Raises:
        BadInput: the run or the candidate is not there.

    >>> pinned("models/ja"), pinned("runs/first#best", begun="runs/first#7")
    ('models/ja', 'runs/first#7')
    """
    run, _, which = name.rpartition("#")
    if not is_candidate(name):
        return name
    if begun is not None and which == "best" and begun.rpartition("#")[0] == run:
        return begun
    with _about(run), closing(open_run(run)) as archive:
        return f"{run}#{pick(archive, which)}"


def read_candidate(name: str) -> tuple[ArchiveReader, Candidate]:
    """Return a candidate, RUN#NUMBER or RUN#best, and the archive that holds it, to be closed.

    Raises:
        BadInput: it is not there.

    >>> read_candidate("runs/absent#7")
    Traceback (most recent call last):
    evomerge.errors.BadInput: runs/absent: is no run's directory; write RUN#best or RUN#NUMBER, \
RUN a folder in which `evomerge run` was started
    """
    run, _, which = name.rpartition("#")
    with _about(run):
        archive = open_run(run)
        try:
            return archive, archive.candidate(pick(archive, which))
        except EvomergeError:
            archive.close()
            raise


@contextmanager
def _about(run: str) -> Iterator[None]:
    """Say which run the faults within are about, and how a candidate is written."""
    mend = "write RUN#best or RUN#NUMBER, RUN a folder in which `evomerge run` was started"
    try:
        yield
    except BadInput as error:
        raise BadInput(*(Fault("", f"{run}: {f.wrong}", mend) for f in error.faults)) from None
