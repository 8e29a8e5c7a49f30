"""Searches beside one another on the embedded tiny models, at equal numbers of candidates.

    python benchmarks/crosslingual.py niches niches-paper cmaes nsga2 como random --seeds 5
    python benchmarks/crosslingual.py routing routing-unscaled routing-random stages --seeds 5

Every search is a campaign in runs/crosslingual/: a controller with search_spaces/
crosslingual-maths.yaml (niches: crosslingual-niches.yaml; `niches-paper`, over means of the models:
crosslingual-niches-paper.yaml), or layer routing with crosslingual-routing.yaml: with gains
(`routing`), with slots instead of exchanges, without gains, and by random search; `stages` is half
of the candidates for parameters, then half for routing, both by cmaes (crosslingual-stages.yaml).
One that was stopped goes on where it was. Rows are appended to benchmarks/crosslingual.csv; a row
that is there is not made again.

Every candidate is scored on all items: benchmarks/items.py compares searches by scored items.

Prints a row a search: the held-out scores of the best that it found, which is no baseline, and the
hypervolume, above 0 in each language, of the finalists' held-out scores; then means over the seeds.
"""

import json
from pathlib import Path

import common
import yaml
from rows import Searches

from evomerge.search.controllers import CONTROLLERS

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/crosslingual")
TASKS = ("maths_ja", "maths_fr")
CMAES = "{kind: cmaes, population: 12, sigma: 0.15}"
PAPER = "niches-paper"
ROUTING = {  # what is set in crosslingual-routing.yaml
    "routing": [f"controller={CMAES}"],
    "routing-slots": [f"controller={CMAES}", "space.order=depth"],
    "routing-unscaled": [f"controller={CMAES}", "space.gains=none"],
    "routing-random": ["controller={kind: random}"],
}


def campaign(search: str, evaluations: int) -> tuple[Path, list[str]]:
    """Return the campaign file of a search, and what is set in it."""
    budget = f"budget={{evaluations: {evaluations}}}"
    if search == "stages":
        half, file = evaluations // 2, campaign_file("stages")
        tasks = yaml.safe_load(file.read_text(encoding="utf-8"))["fitness"][: len(TASKS)]
        return file, [
            f"fitness={json.dumps(tasks)}",  # without depth, which no other search minds
            f"stages.0.budget={{evaluations: {half}}}",
            f"stages.1.budget={{evaluations: {evaluations - half}}}",
            f"stages.0.controller={CMAES}",
            f"stages.1.controller={CMAES}",
        ]
    if search in ROUTING:
        return campaign_file("routing"), [budget, *ROUTING[search]]
    if search == PAPER:
        return campaign_file(PAPER), [budget]
    if CONTROLLERS.get(search).breeds:
        return campaign_file("niches"), [budget]
    controller = CMAES if search == "cmaes" else f"{{kind: {search}}}"
    return campaign_file("maths"), [budget, f"controller={controller}"]


def campaign_file(kind: str) -> Path:
    """Return one of the campaign files over the embedded tiny models."""
    return Path(f"search_spaces/crosslingual-{kind}.yaml")


def main() -> None:
    parser = common.command_line(__doc__)
    searches = [*CONTROLLERS.all(), PAPER, *ROUTING, "stages"]
    parser.add_argument("searches", nargs="*", choices=[*searches, []])
    parser.add_argument("--seeds", type=int, default=5, help="so many, from 1 on")
    parser.add_argument("--evaluations", type=int, default=160)
    parser.add_argument("--items", type=int, help="of a task, held-out ones included; all of them")
    parser.add_argument("--workers", default="{pool: ray, count: 2}")
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(
        parser, seeds=1, evaluations=4, items=20, workers="{pool: inline, threads: 1}"
    )
    file = options.out / CSV.name if options.out else CSV
    table = Searches(file, options.out or RUNS, TASKS)
    for seed in range(1, 1 + options.seeds):
        for search in options.searches:
            yaml_file, settings = campaign(search, options.evaluations)
            settings += [f"workers={options.workers}", "scoring=full"]
            if options.items:
                settings += common.fewer_items(yaml_file, options.items)
            table.make(search, seed, options.evaluations, yaml_file, settings)
    print(table.table())


if __name__ == "__main__":
    main()
