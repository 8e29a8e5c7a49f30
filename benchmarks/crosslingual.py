"""Searches beside one another on the embedded tiny models, at equal numbers of candidates.

    python benchmarks/crosslingual.py niches cmaes nsga2 como random --seeds 5
    python benchmarks/crosslingual.py routing routing-unscaled routing-random stages --seeds 5

Every search is a campaign in runs/crosslingual/: a controller with search_spaces/
crosslingual-maths.yaml (niches: crosslingual-niches.yaml), or layer routing with
crosslingual-routing.yaml, with gains, with slots instead of exchanges, without gains, and by random
search; `stages` is half of the candidates for parameters, then half for routing, both by cmaes
(crosslingual-stages.yaml). One that was stopped goes on where it was. A row has the held-out scores
of the best that was found, which is no baseline, and the hypervolume, above 0 in each language, of
the finalists' held-out scores. Rows are appended to crosslingual.csv; a row that is there
is not made again.
"""

import argparse
from pathlib import Path

import rows

from evomerge.search.controllers import CONTROLLERS

TASKS = ("maths_ja", "maths_fr")
CMAES = "{kind: cmaes, population: 12, sigma: 0.15}"
OTHERS = ("routing", "routing-slots", "routing-unscaled", "routing-random", "stages")


def campaign(name: str, evaluations: int) -> tuple[str, list[str]]:
    """Return the campaign file of a search, and what is set in it."""
    budget = [f"budget.evaluations={evaluations}"]
    if name == "stages":
        half = evaluations // 2
        parts = [
            f"{{name: {task}, task: fitness/crosslingual/{task}.yaml, metric: exact_match,"
            " batch_size: 250}"
            for task in TASKS
        ]
        return "stages", [
            f"fitness=[{', '.join(parts)}]",
            f"stages.0.budget.evaluations={half}",
            f"stages.1.budget.evaluations={evaluations - half}",
            f"stages.1.controller={CMAES}",
        ]
    if name.startswith("routing"):
        more = {
            "routing": [],
            "routing-slots": ["space.order=depth"],
            "routing-unscaled": ["space.gains=none"],
            "routing-random": ["controller={kind: random}"],
        }
        return "routing", budget + more[name]
    if CONTROLLERS.get(name).breeds:
        return "niches", budget
    own = CMAES if name == "cmaes" else f"{{kind: {name}}}"
    return "maths", [*budget, f"controller={own}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("controllers", nargs="*", choices=[*CONTROLLERS.all(), *OTHERS, []])
    parser.add_argument("--seeds", type=int, default=5, help="1 and so many in all")
    parser.add_argument("--evaluations", type=int, default=160)
    parser.add_argument("--workers", default="{pool: ray, count: 2}")
    options = parser.parse_args()
    searches = rows.Searches(Path(__file__).with_suffix(".csv"), Path("runs/crosslingual"), TASKS)
    for seed in range(1, 1 + options.seeds):
        for name in options.controllers:
            kind, settings = campaign(name, options.evaluations)
            file = Path(f"search_spaces/crosslingual-{kind}.yaml")
            settings = [f"workers={options.workers}", *settings]
            searches.make(name, seed, options.evaluations, file, settings)
    print(searches.table())


if __name__ == "__main__":
    main()
