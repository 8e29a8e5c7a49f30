"""Searches beside one another on the embedded tiny models, at equal numbers of candidates.

    python benchmarks/crosslingual.py niches cmaes nsga2 como random --seeds 5
    python benchmarks/crosslingual.py routing routing-unscaled routing-random stages --seeds 5

Every search is a campaign in runs/crosslingual/: a controller with search_spaces/
crosslingual-maths.yaml (niches: crosslingual-niches.yaml), or layer routing with
crosslingual-routing.yaml, with gains, with slots instead of exchanges, without gains, and by random
search; `stages` is half of the candidates for parameters, then half for routing, both by cmaes
(crosslingual-stages.yaml). One that was stopped goes on where it was. A row has the best
candidate's held-out scores and the hypervolume, above 0 in each language, of the finalists'
held-out scores. Rows are appended to benchmarks/crosslingual.csv; a row that is there is not made
again.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import rows
from tabulate import tabulate

from evomerge.archive import Archive
from evomerge.controllers import CONTROLLERS
from evomerge.pareto import hypervolume
from evomerge.session import run_campaign

ROWS = Path(__file__).with_suffix(".csv")
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


def make(name: str, seed: int, evaluations: int, workers: str) -> None:
    """Run one campaign, if its row is not there yet."""
    key = (name, str(seed), str(evaluations))
    if key in {(r["controller"], r["seed"], r["evaluations"]) for r in rows.read(ROWS)}:
        return
    directory = Path("runs/crosslingual") / f"{name}-{seed}-{evaluations}"
    kind, settings = campaign(name, evaluations)
    settings = [f"seed={seed}", f"workers={workers}", *settings]
    started = time.perf_counter()
    file = Path(f"search_spaces/crosslingual-{kind}.yaml")
    if not run_campaign(file, directory=directory, settings=settings, progress=rows.Quiet()):
        raise SystemExit("interrupted; the same command goes on")
    archive = Archive(directory / "archive.db")
    finals = {c: archive.means(c, "heldout") for c in archive.finals_done()}
    best = finals[archive.best()]
    points = np.array([[means[t] for t in TASKS] for means in finals.values()])
    row = {
        "controller": name,
        "seed": seed,
        "evaluations": evaluations,
        **{task: round(best[task], 4) for task in TASKS},
        "mean": round(float(np.mean([best[t] for t in TASKS])), 4),
        "hypervolume": round(hypervolume(points, np.zeros(2)), 4),
        "seconds": round(time.perf_counter() - started),
    }
    rows.append(ROWS, row)


def table() -> str:
    """Return means over seeds with 95 % intervals of the mean (normal), of all rows there are."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows.read(ROWS):
        groups.setdefault((row["controller"], row["evaluations"]), []).append(row)
    columns, body = (*TASKS, "mean", "hypervolume"), []
    for key, group in sorted(groups.items()):
        found = [np.array([float(r[c]) for r in group]) for c in columns]
        wide = [1.96 * v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan for v in found]
        cells = [f"{v.mean():.3f} ± {w:.3f}" for v, w in zip(found, wide, strict=True)]
        body.append([*key, len(group), *cells])
    headers = ["search", "candidates", "seeds", *columns]
    return tabulate(body, headers=headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("controllers", nargs="*", choices=[*CONTROLLERS.all(), *OTHERS, []])
    parser.add_argument("--seeds", type=int, default=5, help="1 and so many in all")
    parser.add_argument("--evaluations", type=int, default=160)
    parser.add_argument("--workers", default="{pool: ray, count: 2}")
    options = parser.parse_args()
    for seed in range(1, 1 + options.seeds):
        for name in options.controllers:
            make(name, seed, options.evaluations, options.workers)
    print(table())


if __name__ == "__main__":
    main()
