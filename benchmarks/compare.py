"""Held-out scores of campaigns side by side: sources, uniform average, and each run's best.

    python benchmarks/compare.py runs/crosslingual-maths runs/crosslingual-maths-random

Intervals are 95 %. The paired column compares item by item with the first run's best: the
same items were put to both models, so the interval of the difference is much narrower than
the two intervals would suggest.
"""

import argparse

import numpy as np
from tabulate import tabulate

from evomerge.archive.archive import Archive
from evomerge.archive.summary import mean_score, open_run, row
from evomerge.errors import BadInput
from evomerge.text import Z95, interval


def paired(archive: Archive, candidate: int, other: Archive, best: int) -> str:
    """Return best minus candidate on the held-out items, averaged over objectives."""
    differences, variance, count = [], 0.0, len(archive.objectives)
    for objective in archive.objectives:
        a = other.item_scores(best, objective.name, "heldout")
        b = archive.item_scores(candidate, objective.name, "heldout")
        d = objective.sign * (a.astype(float) - b)
        differences.append(d.mean())
        variance += d.var(ddof=1) / len(d)
    return f"{np.mean(differences):+.3f} ± {Z95 * np.sqrt(variance) / count:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="+", help="directories of runs that are finished")
    try:
        archives = [open_run(directory) for directory in parser.parse_args().run]
    except BadInput as error:
        parser.error(str(error))
    first = archives[0]
    names = [o.name for o in first.objectives]
    rows = [(c.label, first, c.id) for c in first.candidates("origin = 'baseline'")]
    for a in archives:
        kind = a.campaign["plan"]["controller"]["kind"]
        rows.append((f"best of {a.proposed()} by {kind}", a, a.best()))
    body = []
    for who, archive, candidate in rows:
        scores = row(archive, candidate)["scores"]
        mean = mean_score(archive, candidate, "heldout")
        against = (
            ""
            if (archive, candidate) == (first, first.best())
            else paired(archive, candidate, first, first.best())
        )
        body.append(
            [
                who,
                *(interval(scores[n]["heldout"]) for n in names),
                interval(mean._asdict()) if mean else "-",
                against,
            ]
        )
    headers = ["held-out", *names, "mean", "best of first run minus this"]
    print(tabulate(body, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
