"""Live progress: one line that is rewritten on a terminal, plain lines elsewhere."""

import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from evomerge.archive import summary
from evomerge.archive.archive import Archive
from evomerge.cli import tables


class Progress:
    """Shows how far a campaign is; call it as often as you like."""

    def __init__(self, stream: TextIO = sys.stdout, every: float | None = None):
        """
        Args:
            stream: where to write.
            every: seconds between lines; 0.5 on a terminal and 15 elsewhere by default.
        """
        self._stream, self._live = stream, stream.isatty()
        self._every = (0.5 if self._live else 15.0) if every is None else every
        self._last = 0.0
        self._open = False

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._write(("\n" if self._open else "") + text + "\n")
        self._open = False

    def _write(self, text: str) -> None:
        """Write, unless nobody reads any more: a closed terminal is no reason to stop."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError, RuntimeError):
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def finished(self, directory: Path) -> None:
        """Show what a finished campaign came to."""
        self.say(_summary(directory))

    def __call__(self, archive: Archive) -> None:
        if time.monotonic() - self._last < self._every:
            return
        self._last = time.monotonic()
        text = line(summary.snapshot(archive))
        if self._live:
            self._write(f"\r\x1b[K{text}")
            self._open = True
        else:
            self.say(text)


def line(found: dict[str, Any]) -> str:
    """Return a campaign's snapshot as one line."""
    counts, budget, seconds = found["candidates"], found["budget"], found["seconds"]
    done = budget["proposed"] - counts["running"]
    parts = [f"{max(0, done)}/{budget['evaluations']}"]
    if found["best"]:
        means = [s["search"]["mean"] for s in found["best"]["scores"].values()]
        parts.append("best " + " ".join(f"{m:.3f}" for m in means))
    rated = [b for b in found["baselines"] if b["value"] is not None]
    if rated:
        top = max(rated, key=lambda b: b["value"])
        means = [s["search"]["mean"] for s in top["scores"].values()]
        parts.append(f"best baseline ({top['label']}) " + " ".join(f"{m:.3f}" for m in means))
    left = f"{tables.duration(seconds['left'])} left"
    whole = done >= budget["evaluations"]
    parts.append(f"{found['per_hour']:.0f}/h, {'held-out items' if whole else left}")
    if counts["failed"]:
        parts.append(f"{counts['failed']} failed")
    return " | ".join(parts)


def _summary(directory: Path) -> str:
    status = summary.status(directory)
    parts = [tables.status(status)]
    rows = tables.front(summary.front(directory), summary.standing(directory))
    parts += ["", "Pareto front and baselines:", rows]
    parts += ["", f"Export the best: evomerge export {directory} OUT --pick best"]
    return "\n".join(parts)
