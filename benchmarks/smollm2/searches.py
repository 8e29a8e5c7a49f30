"""Merging parameters, routing layers, one after the other, and chance, over SmolLM2's experts.

    python benchmarks/smollm2/searches.py parameters stages routing routing-unscaled random

Run make.py first. Searches of campaign.yaml and stages.yaml at equal numbers of candidates and
items, both fewer than theirs (a row takes minutes on two cores): `parameters`, `routing` and
`stages` by CMA-ES, `routing-unscaled` without gains, `random` over parameters. One that was stopped
goes on where it was. Rows are appended to benchmarks/smollm2/searches.csv; a row that is there is
not made again.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import rows  # noqa: E402

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("searches", nargs="*", choices=[*SEARCHES, []])
    parser.add_argument("--seeds", type=int, default=5, help="1 and so many in all")
    parser.add_argument("--evaluations", type=int, default=16)
    parser.add_argument("--workers", default="{pool: ray, count: 2}")
    options = parser.parse_args()
    folder = Path("runs/smollm2-searches")
    searches = rows.Searches(Path(__file__).with_suffix(".csv"), folder, ("dates", "tickets"))
    shared = [f"fitness.{i}.items={ITEMS}" for i in (0, 1)]
    shared += [f"workers={options.workers}", "finals=1"]
    half = options.evaluations // 2
    for seed in range(1, 1 + options.seeds):
        for name in options.searches:
            budget = [f"budget.evaluations={options.evaluations}"]
            if name == "stages":
                numbers = half, options.evaluations - half
                budget = [f"stages.{i}.budget.evaluations={n}" for i, n in enumerate(numbers)]
            file = HERE / ("stages.yaml" if name == "stages" else "campaign.yaml")
            settings = [*shared, *budget, *SEARCHES[name]]
            searches.make(name, seed, options.evaluations, file, settings)
    print(searches.table())


if __name__ == "__main__":
    main()
