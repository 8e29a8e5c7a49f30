"""Rows of benchmarks that run for long: appended to a CSV as they come, and read again."""

import csv
from pathlib import Path
from typing import Any


class Quiet:
    """A campaign's progress that says nothing."""

    def say(self, text: str) -> None:
        pass

    def __call__(self, archive: Any) -> None:
        pass


def read(file: Path) -> list[dict]:
    """Return the rows that are there, all values as text."""
    if not file.exists():
        return []
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def append(file: Path, row: dict) -> None:
    """Append a row, and print it."""
    fresh = not file.exists()
    with open(file, "a", newline="") as stream:
        writer = csv.DictWriter(stream, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(*row.values(), flush=True)
