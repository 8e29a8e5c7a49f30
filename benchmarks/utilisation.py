"""How much of their time simulated workers score, when scoring times vary.

    python benchmarks/utilisation.py --workers 8 64

The campaign's loop, archive and controller are the real ones; time is simulated, so that a pool of
any size takes seconds. Times are log-normal. `barrier` hands a new generation out only when the
last one is whole, population = workers; `steady` is what evomerge does. Baselines are left out.

Prints the share of the workers' time, up to the campaign's end, that they score.
"""

from pathlib import Path

import common
from synthetic import SyntheticPool, drive, make_campaign, tiny_sources

from evomerge.archive.archive import Archive

ITEMS = 20


def share_of(workers: int, sigma: float, barrier: bool, generations: int, file: Path) -> float:
    """Run a campaign with so many workers; return the share of their time that they score."""
    campaign = make_campaign(workers * generations, ITEMS, population=max(workers, 3))
    pool = SyntheticPool(ITEMS, workers, sigma, barrier)
    drive(campaign, Archive(file, write=True), pool)
    return pool.share


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.3, 0.6])
    parser.add_argument("--generations", type=int, default=60)
    options = common.parsed(parser, workers=[4], sigma=[0.6], generations=8)
    generations = options.generations
    rows = []
    with tiny_sources() as folder:
        for workers in options.workers:
            for sigma in options.sigma:
                row = [workers, sigma]
                for barrier in (False, True):
                    file = folder / f"{workers}-{sigma}-{barrier}.db"
                    row.append(f"{share_of(workers, sigma, barrier, generations, file):.3f}")
                rows.append(row)
    print(f"{common.hardware()}, {generations} x workers candidates, the end included")
    headers = ["workers", "sigma", "steady", "barrier"]
    print(common.table(headers, rows))


if __name__ == "__main__":
    main()
