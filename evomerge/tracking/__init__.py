"""Trackers, one file each: where the curves of a search go besides its archive.

A new tracker is one file here: a section with its options (see `evomerge.sections`), and a class
registered with `@tracker(section)`, made as `cls(options, run)`. It imports its library when it is
made, and may raise, wait or hang as it likes: it lives in a thread of its own (see `follower`), and
a search never waits for it.

What it is given is read from the archive's ledger, in its order, each point with the number of its
event. A run is continued by an id that the archive fixes, and from the last event that the tracker
says it has: what was logged before a process was killed is not logged again.
"""

import importlib.util
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from evomerge.errors import Fault
from evomerge.registry import Registry
from evomerge.sections import Section

EVENT = "ledger/event"  # under which a point's event is logged beside its values
END = "end/event"  # the last event that was there when what the search came to was logged
ITEMS = "items"  # scored so far: the axis of every curve


class TrackerSection(Section):
    """The options of a tracker in a campaign file; `kind` is its name.

    >>> from evomerge.tracking.tensorboard import TensorBoardSection
    >>> TensorBoardSection().kind
    'tensorboard'
    """

    kind: str


class TrackedRun(NamedTuple):
    """What a tracker knows of the run that it opens or continues.

    Attributes:
        id: the same at every start, and of no other run.
        name: of the campaign.
        directory: of the run.
        began: when it was first started, in seconds since 1970.
        config: the plan and where everything comes from, JSON-able, without what is private.

    >>> TrackedRun("5f0c", "demo", Path("runs/demo"), 0.0, {}).name
    'demo'
    """

    id: str
    name: str
    directory: Path
    began: float
    config: Mapping[str, Any]


class Point(NamedTuple):
    """What one outcome adds to the curves.

    Attributes:
        event: its number in the ledger.
        at: when it came, in seconds since 1970.
        items: that were scored by then, on the search's side.
        values: by name.

    >>> Point(7, 0.0, 250, {"best/value": 1.25}).items
    250
    """

    event: int
    at: float
    items: int
    values: Mapping[str, float]


class Ending(NamedTuple):
    """What a search came to.

    Attributes:
        is_finished: whether its budget is spent; else it will be continued.
        summary: numbers and texts by name: of the best, its search and its held-out scores.
        columns, rows: the front and the baselines, as a table.

    >>> Ending(True, {"end/candidate": 7}, ["id"], [[7]]).summary
    {'end/candidate': 7}
    """

    is_finished: bool
    summary: Mapping[str, float | str]
    columns: Sequence[str]
    rows: Sequence[Sequence[float | str | None]]


class Tracker(ABC):
    """A run in a tracker, opened anew or continued.

    Attributes:
        section: the class of its options.
        needs: the module that it imports; the extra that brings it has the tracker's name.

    >>> sorted(TRACKERS.all())
    ['mlflow', 'tensorboard', 'trackio', 'wandb']
    """

    section: ClassVar[type[TrackerSection]]
    needs: ClassVar[str]

    @abstractmethod
    def reached(self) -> int:
        """Return the last event that the run has a point of; 0 if it has none."""

    @abstractmethod
    def log(self, points: Sequence[Point]) -> None:
        """Add points, whose events come after all that the run has."""

    @abstractmethod
    def end(self, ending: Ending) -> None:
        """Add what the search came to, write all that is kept back, and close the run."""


TRACKERS: Registry[type[Tracker]] = Registry("evomerge.tracking", "tracker", "evomerge.trackers")

_T = TypeVar("_T", bound=Tracker)


def tracker(section: type[TrackerSection]) -> Callable[[type[_T]], type[_T]]:
    """Register a tracker class, made as `cls(options, run)`, under its section's kind.

    >>> TRACKERS.get("tensorboard").section.__name__
    'TensorBoardSection'
    """

    def register(cls: type[_T]) -> type[_T]:
        cls.section = section
        (name,) = typing.get_args(section.model_fields["kind"].annotation)
        TRACKERS.add(name, cls)
        return cls

    return register


def open_tracker(options: TrackerSection, run: TrackedRun) -> Tracker:
    """Open a run in a tracker, or continue it; it may take as long as a network does.

    >>> import tempfile
    >>> from evomerge.tracking.tensorboard import TensorBoardSection
    >>> run = TrackedRun("5f0c", "demo", Path(tempfile.mkdtemp()), 0.0, {"seed": 7})
    >>> open_tracker(TensorBoardSection(), run).reached()
    0
    """
    maker: Callable[[TrackerSection, TrackedRun], Tracker] = TRACKERS.get(options.kind)
    return maker(options, run)


def missing_trackers(sections: Iterable[TrackerSection]) -> Iterable[Fault]:
    """Return which trackers' libraries are not installed, keys relative to their list.

    >>> list(missing_trackers([]))
    []
    """
    for index, section in enumerate(sections):
        needs = TRACKERS.get(section.kind).needs
        if importlib.util.find_spec(needs) is None:
            wrong = f"needs {needs}, which is not installed"
            mend = f'run pip install "evomerge[{section.kind}]", or leave it out'
            yield Fault(str(index), wrong, mend)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[float | str | None]]) -> str:
    """Return a table in Markdown, for trackers that show texts.

    >>> print(markdown(["id", "who"], [[7, None]]))
    | id | who |
    |---|---|
    | 7 | - |
    """
    lines = [list(map(str, columns))]
    lines += [["-" if cell is None else str(cell) for cell in row] for row in rows]
    head, *rest = ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(columns), *rest])
