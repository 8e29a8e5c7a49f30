"""Live progress: a line and a row for each worker on a terminal, plain lines elsewhere."""

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from evomerge.archive import summary
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.shapes import ProgressShape, ValuedShape
from evomerge.cli import tables
from evomerge.cli.console import terminal
from evomerge.cli.next_steps import searching_on
from evomerge.text import duration
from evomerge.workers.protocol import WorkerState

_TERMINAL = 0.5  # seconds between looks at the archive, of which each takes some milliseconds
_ELSEWHERE = 15.0  # seconds between lines: a log of a day's run stays readable
_WIDTH = 40  # columns of the bar
_PAUSE = 20.0  # times as long as a look took


class Progress:
    """The command line's observer of a campaign; see `evomerge.campaign.observer`.

    >>> import io
    >>> from evomerge.testing.archives import example_archive
    >>> log = io.StringIO()
    >>> with Progress(log) as progress:
    ...     progress.update(example_archive(), workers=())
    >>> log.getvalue()
    '3/8 | best 0.750 16.000 | best baseline (ja) 0.250 12.000 | 0/h, ? left | 1 failed\\n'
    """

    def __init__(self, stream: TextIO | None = None, every: float | None = None):
        """
        Args:
            stream: where to write, stdout by default; a terminal or not.
            every: seconds between looks; 0.5 on a terminal and 15 elsewhere by default.
        """
        stream = sys.stdout if stream is None else stream
        on_terminal = stream.isatty()
        self._every = every if every is not None else _TERMINAL if on_terminal else _ELSEWHERE
        self._pause = self._every
        self._last = -self._every  # on the clock of `time.monotonic`
        file = cast(TextIO, _Unbreakable(stream))
        self._console = Console(file=file, markup=False, highlight=False, emoji=False)
        self._display = _Display(self._console) if on_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._display:
            self._display.stop()

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._console.print(text, soft_wrap=True)

    def update(self, archive: ArchiveReader, workers: Sequence[WorkerState]) -> None:
        """Show how far a campaign is; call it as often as you like."""
        found = None
        if time.monotonic() - self._last >= self._pause:
            began = time.monotonic()
            found = summary.snapshot(archive)
            self._last = time.monotonic()
            # a look takes longer at a larger archive, and is to take little of the search's time
            self._pause = max(self._every, _PAUSE * (self._last - began))
        if self._display:
            self._display.update(found, workers)
        elif found is not None:
            self.say(line(found))

    def interrupted(self, again: str) -> None:
        """Say that the campaign was stopped, and the command that goes on with it."""
        self.say(f"interrupted; what is archived stays. To continue: {again}")

    def finished(self, directory: Path) -> None:
        """Show what a finished campaign came to."""
        if self._display:
            self._display.stop()
        console = terminal() if self._display else None
        rows, standing = summary.front(directory), summary.standing(directory)
        status = summary.status(directory)
        pictures = f"See it in pictures: evomerge report {directory}"
        last, best = f"Export the best: evomerge export {directory} OUT --pick best", status["best"]
        if best and best["origin"] == "baseline":
            last = (
                f"No candidate of the search is better than '{best['label']}', which was there"
                " before."
            )
        self.say(
            f"{tables.status(status, console)}\n\n"
            f"Pareto front and baselines:\n{tables.front(rows, standing, console)}\n"
            f"{tables.gap(summary.gap(directory))}\n\n"
            + "\n".join(line for line in (searching_on(status), pictures, last) if line)
        )


class _Display:
    """The lines at the bottom of a terminal that are rewritten, by a thread of rich's."""

    def __init__(self, console: Console):
        self._line = ""
        self._bar: Table | None = None
        self._workers: Sequence[WorkerState] = ()
        self._since = time.monotonic()
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=2)

    def update(self, found: ProgressShape | None, workers: Sequence[WorkerState]) -> None:
        """Show what workers do now, and a new state if there is one."""
        if found is not None:
            self._line, self._bar = line(found), bar(found)
        self._workers, self._since = workers, time.monotonic()
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Leave the line as the last one, without the workers."""
        self._workers = ()
        self._live.stop()

    def _draw(self) -> Group:
        # Between two updates, as while the inline pool scores, the clocks go on.
        passed = time.monotonic() - self._since
        rows = Table.grid(padding=(0, 2))
        for worker in self._workers:
            if worker.doing:
                seconds = duration(worker.seconds + passed)
                rows.add_row(f"  {worker.name}", worker.doing, seconds)
            elif worker.candidate is None:
                rows.add_row(f"  {worker.name}", "waits", "")
            else:
                side = "held-out" if worker.side == "heldout" else worker.side
                seconds = duration(worker.seconds + passed)
                others = f" and {worker.others} more" if worker.others else ""
                scores = f"candidate {worker.candidate}{others}, {side}"
                rows.add_row(f"  {worker.name}", scores, seconds)
        if not self._workers:
            return Group(self._line)
        return Group(self._line, rows) if self._bar is None else Group(self._line, self._bar, rows)


class _Unbreakable(io.TextIOBase):
    """A stream that nobody need read: a closed terminal is no reason to stop."""

    def __init__(self, stream: TextIO):
        self._stream: TextIO | None = stream

    def isatty(self) -> bool:
        """Tell whether it was a terminal's."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write, unless nobody reads any more."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except RuntimeError:  # a signal's handler speaks amid another write: leave it out
                pass
            except (OSError, ValueError):
                self._stream = None
        return len(text)

    def flush(self) -> None:
        """Write what is kept back, unless nobody reads any more."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except RuntimeError:
                pass
            except (OSError, ValueError):
                self._stream = None


def bar(snapshot: ProgressShape) -> Table | None:
    """Return how much of a campaign's time is over, races and held-out items included, as a bar.

    >>> from evomerge.testing.archives import example_archive
    >>> bar(summary.snapshot(example_archive())) is None  # nothing tells how long it takes
    True
    """
    passed, left = snapshot["seconds"]["total"], snapshot["seconds"]["left"]
    if left is None or not passed + left:
        return None
    drawn = Table.grid(padding=(0, 1))
    whole = ProgressBar(total=passed + left, completed=passed, width=_WIDTH)
    drawn.add_row(whole, f"{passed / (passed + left):.0%}", f"{duration(left)} left")
    return drawn


def line(snapshot: ProgressShape) -> str:
    """Return a campaign's snapshot as one line.

    >>> from evomerge.testing.archives import example_archive
    >>> line(summary.snapshot(example_archive())).split(" | ")[:2]
    ['3/8', 'best 0.750 16.000']
    """
    counts, budget, seconds = snapshot["candidates"], snapshot["budget"], snapshot["seconds"]
    done = max(0, budget["proposed"] - counts["running"])
    items, most = snapshot["items"]["search"], budget["items"]
    limit = budget["evaluations"]
    parts = [f"{done}/{limit}" if limit is not None else f"{done}"]
    if most is not None:
        parts.append(f"{items}/{most} items")
    if snapshot["best"]:
        parts.append(f"best {_means(snapshot['best'])}")
    values = [b["value"] for b in snapshot["baselines"] if b["value"] is not None]
    if values:
        top = next(b for b in snapshot["baselines"] if b["value"] == max(values))
        parts.append(f"best baseline ({top['label']}) {_means(top)}")
    left = f"{duration(seconds['left'])} left"
    if (limit is not None and done >= limit) or (most is not None and items >= most):
        left += ", held-out items"
    parts.append(f"{snapshot['per_hour']:.0f}/h, {left}")
    if counts["failed"]:
        parts.append(f"{counts['failed']} failed")
    return " | ".join(parts)


def _means(row: ValuedShape) -> str:
    scores = [sides["search"] for sides in row["scores"].values()]
    return " ".join("-" if score is None else f"{score['mean']:.3f}" for score in scores)
