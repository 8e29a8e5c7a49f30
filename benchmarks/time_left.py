"""How right the time left is: finished runs, cut off after a share of their time.

    python benchmarks/time_left.py runs/items/demo-cmaes-items-15000-1 [RUN ...]

Each run's ledger is copied up to what was there after a tenth, a fifth and a half of its time, from
the first start to the end, and asked how long it goes on. `ratio` is the answer by what it was.
"""

import argparse
import contextlib
import shutil
import sqlite3
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.time_left import seconds_left

SHARES = (0.1, 0.2, 0.5)

# What is later than a moment leaves the ledger, from the events on.
CUT = """
CREATE TEMP TABLE later AS SELECT seq, kind, candidate_id FROM events WHERE at > :moment;
DELETE FROM events WHERE seq IN (SELECT seq FROM later);
CREATE TEMP TABLE told AS SELECT candidate_id FROM events WHERE kind = 'tell';
CREATE TEMP TABLE final AS SELECT candidate_id FROM events WHERE kind = 'final';
DELETE FROM finals WHERE candidate_id NOT IN (SELECT candidate_id FROM final);
DELETE FROM scores WHERE split != 'search' AND candidate_id NOT IN (SELECT candidate_id FROM final);
DELETE FROM outcomes WHERE candidate_id NOT IN (SELECT candidate_id FROM told);
DELETE FROM scores WHERE candidate_id NOT IN (SELECT candidate_id FROM told);
CREATE TEMP TABLE known AS SELECT id FROM candidates
    WHERE origin = 'baseline' OR id IN (SELECT candidate_id FROM events);
UPDATE candidates SET dominated_by = NULL WHERE dominated_by NOT IN (SELECT candidate_id FROM told);
DELETE FROM candidates WHERE id NOT IN (SELECT id FROM known);
UPDATE campaign SET state = 'running';
"""


@contextlib.contextmanager
def cut_off(run: Path, seconds: float) -> Iterator[ArchiveReader]:
    """Yield the archive of a run as it was so many seconds after its only start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.db"
        shutil.copy(run / "archive.db", path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            ((start,),) = database.execute("SELECT at FROM starts").fetchall()
            for statement in CUT.split(";\n"):
                named = {"moment": start + seconds} if ":moment" in statement else {}
                database.execute(statement, named)
            database.execute("UPDATE starts SET seconds = ?", (seconds,))
        with contextlib.closing(ArchiveReader(path)) as archive:
            yield archive


def ratios(run: Path) -> list[float]:
    """Return, for each share of a run's time, the time left as foretold by what it was."""
    with contextlib.closing(ArchiveReader(run / "archive.db")) as archive:
        whole = archive.seconds
    found = []
    for share in SHARES:
        with cut_off(run, share * whole) as archive:
            foretold = seconds_left(archive)
        found.append(float("nan") if foretold is None else foretold / (whole * (1.0 - share)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of finished runs")
    options = parser.parse_args()
    rows = {}
    print(f"{'run':44}", *(f"{share:>6.0%}" for share in SHARES))
    for run in options.runs:
        rows[run] = ratios(run)
        print(f"{run.name:44}", *(f"{ratio:6.2f}" for ratio in rows[run]))
    for index, share in enumerate(SHARES):
        column = sorted(row[index] for row in rows.values())
        within = sum(2 / 3 <= ratio <= 4 / 3 for ratio in column)
        middle = statistics.median(column)
        said = f"least {column[0]:.2f}, median {middle:.2f}, most {column[-1]:.2f}"
        print(f"after {share:.0%}: {within} of {len(column)} within a third; {said}")


if __name__ == "__main__":
    main()
