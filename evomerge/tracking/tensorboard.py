"""TensorBoard: event files in a folder, one event a point.

An event file is a sequence of records with checksums, each of which is whole or not there
(https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/summary_iterator): a point is one
record, so that a process that is killed leaves whole points.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from evomerge.sections import Text, option
from evomerge.tracking import (
    END,
    EVENT,
    Ending,
    Point,
    TrackedRun,
    Tracker,
    TrackerSection,
    markdown,
    tracker,
)


class TensorBoardSection(TrackerSection):
    """Options of TensorBoard's event files.

    >>> TensorBoardSection(folder="logs").folder
    'logs'
    """

    kind: Literal["tensorboard"] = "tensorboard"
    folder: Text | None = option(
        "of the event files; null: `tensorboard` in the run's directory", None, example="logs"
    )


@tracker(TensorBoardSection)
class TensorBoard(Tracker):
    """TensorBoard's event files: scalars against the scored items, and texts.

    >>> import tempfile
    >>> run = TrackedRun("5f0c", "demo", Path(tempfile.mkdtemp()), 0.0, {"seed": 7})
    >>> board = TensorBoard(TensorBoardSection(), run)
    >>> board.log([Point(7, 0.0, 50, {"best/value": 1.25})])
    >>> board.end(Ending(False, {}, [], []))
    >>> TensorBoard(TensorBoardSection(), run).reached()
    7
    """

    needs = "tensorboard"

    def __init__(self, options: TensorBoardSection, run: TrackedRun):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = Path(options.folder) / run.name if options.folder else run.directory / self.needs
        (self._last, self._items), (self._ended, _) = (_last(folder, tag) for tag in (EVENT, END))
        _await_next_second(folder)
        self._writer = EventFileWriter(str(folder))
        if not self._last:
            config = json.dumps(run.config, indent=1, sort_keys=True)
            self._text("campaign", "\n".join(f"    {line}" for line in config.splitlines()))

    def reached(self) -> int:
        return self._last

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            scalars = dict(point.values) | {EVENT: point.event}
            self._scalars(scalars, point.items, point.at)
            self._last, self._items = point.event, point.items
        self._writer.flush()

    def end(self, ending: Ending) -> None:
        if ending.is_finished and self._ended < self._last:
            numbers = {n: v for n, v in ending.summary.items() if not isinstance(v, str)}
            self._scalars(numbers | {END: self._last}, self._items)
            self._text("front", markdown(ending.columns, ending.rows))
        self._writer.close()

    def _scalars(self, values: dict[str, float], step: int, at: float | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [Summary.Value(tag=t, simple_value=float(v)) for t, v in values.items()]
        self._add(Summary(value=entries), step, at)

    def _text(self, tag: str, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto

        plugin = SummaryMetadata.PluginData(plugin_name="text")
        value = Summary.Value(
            tag=tag,
            metadata=SummaryMetadata(plugin_data=plugin),
            tensor=TensorProto(dtype="DT_STRING", string_val=[text.encode()]),
        )
        self._add(Summary(value=[value]), self._items, None)

    def _add(self, summary: Any, step: int, at: float | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        wall = time.time() if at is None else at
        self._writer.add_event(Event(wall_time=wall, step=step, summary=summary))


def _await_next_second(folder: Path) -> None:
    """Wait until a new event file is named later than those of a folder.

    Their names begin with the second in which they were made, and they are read in the order of
    their names: of two of one second, the later might come first.
    """
    seconds = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    after = max(seconds, default=0) + 1 - time.time()
    if 0 < after <= 1:  # not where a clock was set back
        time.sleep(after)


def _last(folder: Path, tag: str) -> tuple[int, int]:
    """Return the last value that a folder's event files have under a tag, and its step."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = [(0, 0)]
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(file)).Load():  # up to a record that is cut off
            for value in event.summary.value:
                if value.tag == tag:
                    found.append((int(value.simple_value), event.step))
    return max(found)
