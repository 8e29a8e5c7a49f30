"""Merging parameters, routing layers, one after the other, and chance, over SmolLM2's experts.

    python benchmarks/smollm2/searches.py parameters stages routing routing-unscaled random

Run make.py first. Searches of campaign.yaml and stages.yaml at equal numbers of candidates and
items, both fewer than theirs (a row takes minutes on two cores): `parameters`, `routing` and
`stages` by CMA-ES, `routing-unscaled` without gains, `random` over parameters. One that was stopped
goes on where it was. Rows are appended to benchmarks/smollm2/searches.csv; a row that is there is
not made again.

Prints a row a search, as benchmarks/crosslingual.py does, then means over the seeds.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import common  # noqa: E402
from rows import Searches  # noqa: E402

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/smollm2-searches")
ITEMS = 100  # of a task, 60 of them held out
ROUTING = "space={{kind: routing, frame: dates, order: exchange{}}}"
CMAES = "controller={kind: cmaes, population: 8, sigma: 0.1}"
SEARCHES = {  # what is set in campaign.yaml; of stages.yaml nothing
    "parameters": [],
    "stages": [],
    "routing": [ROUTING.format(""), CMAES],
    "routing-unscaled": [ROUTING.format(", gains: none"), CMAES],
    "random": ["controller={kind: random}"],
}


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("searches", nargs="*", choices=[*SEARCHES, []])
    parser.add_argument("--seeds", type=int, default=5, help="so many, from 1 on")
    parser.add_argument("--evaluations", type=int, default=16)
    parser.add_argument("--items", type=int, default=ITEMS, help="of a task, the held-out included")
    parser.add_argument("--workers", default="{pool: ray, count: 2}")
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(
        parser, seeds=1, evaluations=2, items=20, workers="{pool: inline, threads: 1}"
    )
    file = options.out / CSV.name if options.out else CSV
    table = Searches(file, options.out or RUNS, ("dates", "tickets"))
    half = options.evaluations // 2
    for seed in range(1, 1 + options.seeds):
        for search in options.searches:
            campaign = HERE / ("stages.yaml" if search == "stages" else "campaign.yaml")
            budget = [f"budget.evaluations={options.evaluations}"]
            if search == "stages":
                numbers = half, options.evaluations - half
                budget = [f"stages.{i}.budget.evaluations={n}" for i, n in enumerate(numbers)]
            settings = common.fewer_items(campaign, options.items)
            settings += [
                f"workers={options.workers}",
                "finals=1",
                "scoring=full",
                *budget,
                *SEARCHES[search],
            ]
            table.make(search, seed, options.evaluations, campaign, settings)
    print(table.table())


if __name__ == "__main__":
    main()
