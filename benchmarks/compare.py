"""Held-out scores of campaigns side by side: sources, uniform average, and what each run found.

    python benchmarks/compare.py runs/crosslingual-maths runs/crosslingual-maths-random

Prints a row for each baseline of the first run and for the best candidate of each run, which is no
baseline, even where one has a higher value. Intervals are 95 %. The last column compares with the
first run's best item by item: the same items were put to both models, so that the interval of the
difference is much narrower than the two intervals would suggest.
"""

from pathlib import Path
from typing import NamedTuple

import common

from evomerge.archive.archived_plan import searches
from evomerge.archive.paired import mean_difference, paired
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.summary import mean_score, open_run
from evomerge.errors import BadInput, Fault
from evomerge.text import Z95, interval


class Entry(NamedTuple):
    """One row of the table."""

    who: str
    archive: ArchiveReader
    candidate: int


def best_of(archive: ArchiveReader) -> Entry:
    """Return the best candidate that a run has found.

    Raises:
        BadInput: it has found none yet.
    """
    found = archive.best_found()
    if found is None:
        raise BadInput(Fault("", "the search has found no candidate yet", "let it run on"))
    parts = searches(archive.campaign["plan"])
    kinds = ", then ".join(part["controller"]["kind"] for part in parts)
    return Entry(f"best of {archive.proposed()} by {kinds}", archive, found)


def cells(entry: Entry) -> list[str]:
    """Return a candidate's held-out scores and their mean, each with its 95 % interval."""
    scores = entry.archive.scores(entry.candidate, "heldout")
    listed = [scores.get(objective.name) for objective in entry.archive.objectives]
    listed.append(mean_score(entry.archive, entry.candidate, "heldout"))
    return [interval({"mean": s.mean, "stderr": s.stderr} if s else None) for s in listed]


def best_minus(entry: Entry, best: Entry) -> str:
    """Return the best minus an entry on the held-out items, averaged over the objectives.

    Raises:
        EvomergeError: the runs do not have the same items.
    """
    pairs = paired(best.archive, best.candidate, entry.candidate, rivals=entry.archive)
    difference = mean_difference(best.archive, pairs)
    if difference is None:
        return "-"
    return f"{difference.mean:+.3f} ± {Z95 * difference.stderr:.3f}"


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="directories of runs that are finished")
    options = common.parsed(parser)
    found = []
    for directory in options.run:
        with common.errors_as_lines(directory):
            found.append(best_of(open_run(directory)))
    best = found[0]
    first = best.archive
    baselines = [Entry(str(c.label), first, c.id) for c in first.baselines()]
    body = []
    for entry in (*baselines, *found):
        with common.errors_as_lines(entry.archive.path):
            against = "" if entry is best else best_minus(entry, best)
        body.append([entry.who, *cells(entry), against])
    names = [objective.name for objective in first.objectives]
    headers = ["held-out", *names, "mean", "best of first run minus this"]
    print(common.table(headers, body))


if __name__ == "__main__":
    main()
