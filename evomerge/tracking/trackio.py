"""Trackio: a run in its local store, which `trackio show` draws, or in a Space of the hub."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Literal

from evomerge.sections import Text, option
from evomerge.tracking import (
    END,
    EVENT,
    ITEMS,
    Ending,
    Point,
    TrackedRun,
    Tracker,
    TrackerSection,
    markdown,
    tracker,
)


class TrackioSection(TrackerSection):
    """Options of Trackio.

    >>> TrackioSection(project="merges").space is None
    True
    """

    kind: Literal["trackio"] = "trackio"
    project: Text = option("that the run belongs to", "evomerge")
    space: Text | None = option(
        "of the hub, as NAME or ORG/NAME; null: the local store, where TRACKIO_DIR says", None
    )


@tracker(TrackioSection)
class Trackio(Tracker):
    """Trackio: curves against the scored items, and the front as a text.

    >>> Trackio.section(project="merges").kind
    'trackio'
    """

    needs = "trackio"

    def __init__(self, options: TrackioSection, run: TrackedRun):
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{run.name}-{run.id}"  # by which it continues a run
        with _silence():
            self._run = trackio.init(
                project=options.project,
                name=name,
                space_id=options.space,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        logs = SQLiteStorage.get_logs(options.project, name)
        self._ended = max((int(row.get(END) or 0) for row in logs), default=0)
        found = [(int(row.get(EVENT) or 0), int(row.get(ITEMS) or 0)) for row in logs]
        self._last, self._items = max(found, default=(0, 0))

    def reached(self) -> int:
        return self._last

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            values = {**point.values, ITEMS: point.items, EVENT: point.event}
            self._run.log(values, step=point.items)
            self._last, self._items = point.event, point.items

    def end(self, ending: Ending) -> None:
        import trackio

        if ending.is_finished and self._ended < self._last:
            front = trackio.Markdown(markdown(ending.columns, ending.rows))
            values = {**ending.summary, END: self._last, "front": front}
            self._run.log(values, step=self._items)
        with _silence():
            self._run.finish()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep from the terminal what Trackio prints; it is the search's."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
