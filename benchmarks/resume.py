"""How long the ledger takes: appending, looking, and resuming, at given numbers of candidates.

    python benchmarks/resume.py --candidates 1000 10000 100000 --items 500

Outcomes are synthetic; sources, proposals, archive, controller and replay are the real code.

Prints milliseconds of a candidate's ask, archive and tell, seconds of a resume by replay, of
`status` and of `front`, and what the archive takes on disk.
"""

from pathlib import Path

import common
from models import seconds_of
from synthetic import SyntheticPool, drive, make_campaign, tiny_sources

from evomerge.archive import summary
from evomerge.archive.archive import Archive


def measure(candidates: int, items: int, folder: Path) -> dict[str, object]:
    """Return a table's row for so many candidates; the archive is written into a folder."""
    campaign = make_campaign(candidates, items)
    file = folder / "archive.db"
    archive = Archive(file, write=True)
    append = seconds_of(lambda: drive(campaign, archive, SyntheticPool(items)))
    archive.close()
    size = file.stat().st_size
    again = Archive(file, write=True)
    resume = seconds_of(lambda: drive(campaign, again, SyntheticPool(items)))
    return {
        "candidates": candidates,
        "ask, archive, tell (ms each)": f"{1000 * append / candidates:.2f}",
        "resume (s)": f"{resume:.2f}",
        "status (s)": f"{seconds_of(lambda: summary.status(folder)):.3f}",
        "front (s)": f"{seconds_of(lambda: summary.front(folder)):.3f}",
        "on it": len(again.front()),
        "MB": f"{size / 1e6:.1f}",
        "bytes each": size // candidates,
    }


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--candidates", type=int, nargs="+", default=[2000])
    parser.add_argument("--items", type=int, default=500, help="of both objectives together")
    options = common.parsed(parser, candidates=[60], items=20)
    rows = []
    with tiny_sources() as folder:
        genes = make_campaign(1, 2).space.dimension
        print(f"{common.hardware()}; cmaes, {genes} genes, {options.items} items a candidate")
        for candidates in options.candidates:
            run = folder / f"run-{candidates}"
            run.mkdir()
            rows.append(measure(candidates, options.items, run))
    print(common.table([*rows[0]], [[*row.values()] for row in rows]))


if __name__ == "__main__":
    main()
