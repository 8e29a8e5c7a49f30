"""Searches beside one another at equal numbers of scored items, judged on held-out ones.

    python benchmarks/items.py demo cmaes cmaes-full random random-full --items 15000 30000 60000
    python benchmarks/items.py demo-57 cmaes cmaes-full random random-full --items 15000 30000 60000
    python benchmarks/items.py many cmaes niches nsga2 tpe random random-full --items 30000
    python benchmarks/items.py smollm2 cmaes cmaes-full --items 3200 --seeds 3
    python benchmarks/items.py demo table

`demo` is search_spaces/crosslingual-maths.yaml, `demo-57` the same with a group for each layer and
its attention, MLP and rest (57 genes), `many` search_spaces/many-experts.yaml, `lora`
search_spaces/lora-pool.yaml, and `smollm2` benchmarks/smollm2/campaign.yaml, for which its make.py
comes first; a search of it takes half an hour of one core. A search is the name of a controller,
which scores candidates in parts; with -full behind it, each on all items. Niches breed sums of task
vectors; `niches-paper` means of the models, as M2N2 does. With --evaluations the controller
proposes so many candidates, however many items they take (bayes with 48, cmaes with 160).

Items are those that the search scores, confirmations included; the baselines' come on top, as they
are the same for all. Every search is a campaign with one worker and one thread, in runs/items/, as
many at once as --jobs says. Rows are appended to benchmarks/items.csv; a row that is there is not
made again.

Prints a row a search: the held-out scores of the best that it found, which is no baseline, their
mean, that mean on the search's side, and the hypervolume of the finalists' held-out scores above 0;
then means over the seeds with 95 % intervals.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
from rows import Rows, interval_of_mean

from evomerge.search.controllers import CONTROLLERS
from evomerge.search.pareto import hypervolume

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/items")
CAMPAIGNS: dict[str, tuple[str, list[str]]] = {  # file, and what is set in it
    "demo": ("search_spaces/crosslingual-maths.yaml", []),
    "demo-57": (
        "search_spaces/crosslingual-maths.yaml",
        ["space.layer_groups=6", "space.module_groups=[self_attn, mlp]"],
    ),
    "many": ("search_spaces/many-experts.yaml", []),
    "smollm2": ("benchmarks/smollm2/campaign.yaml", []),
    "lora": ("search_spaces/lora-pool.yaml", []),
}
MIXTURES = {
    "niches": "{kind: mixture, task_vectors: true}",
    "niches-paper": "{kind: mixture}",
}


class Task(NamedTuple):
    """One search to be made."""

    campaign: str
    search: str
    limit: str  # items or evaluations
    amount: int
    seed: int
    settings: tuple[str, ...]
    folder: str


def settings_of(task: Task) -> list[str]:
    """Return what a search sets in its campaign file."""
    name, in_full = task.search.removesuffix("-full"), task.search.endswith("-full")
    kind = "niches" if name == "niches-paper" else name
    found = [*CAMPAIGNS[task.campaign][1], f"seed={task.seed}"]
    if name in MIXTURES:
        found = [f"seed={task.seed}", f"space={MIXTURES[name]}"]
    if kind != "cmaes":  # whose options the campaign file has
        found.append(f"controller={{kind: {kind}}}")
    found.append(f"scoring={'full' if in_full else 'batches'}")
    return [*found, *task.settings]


def run(task: Task) -> dict[str, Any]:
    """Run a search to its end; return its row."""
    from evomerge.campaign.build import checked

    file = Path(CAMPAIGNS[task.campaign][0])
    settings = settings_of(task)
    amount = task.amount
    if task.limit == "items":
        with common.errors_as_lines(file):
            (campaign,) = checked(file, [*settings, "budget={evaluations: 1}"])
        amount += len(campaign.baselines()) * campaign.search_items
    settings.append(f"budget={{{task.limit}: {amount}}}")
    directory = Path(task.folder)
    directory /= f"{task.campaign}-{task.search}-{task.limit}-{task.amount}-{task.seed}"
    started = time.perf_counter()
    archive = common.run_silently(file, directory, settings)
    best = archive.best_found()
    assert best is not None, "a finished campaign has found a candidate"
    names = [objective.name for objective in archive.objectives if not objective.cost]
    heldout, search = archive.means(best, "heldout"), archive.means(best, "search")
    finals = [archive.means(candidate, "heldout") for candidate in archive.finals_done()]
    points = np.array([[means[name] for name in names] for means in finals if means])
    return {
        "campaign": task.campaign,
        "search": task.search,
        "limit": task.limit,
        "amount": task.amount,
        "seed": task.seed,
        "candidates": archive.proposed(),
        "scored": archive.items_scored(),
        "scores": " ".join(f"{heldout[name]:.4f}" for name in names),
        "mean": round(float(np.mean([heldout[name] for name in names])), 4),
        "search_mean": round(float(np.mean([search[name] for name in names])), 4),
        "hypervolume": round(hypervolume(points, np.zeros(len(names))), 4),
        "seconds": round(time.perf_counter() - started),
    }


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """Return the searches that the command line asks for."""
    amounts = [("evaluations", n) for n in options.evaluations or ()]
    amounts = amounts or [("items", n) for n in options.items]
    workers = f"workers={{pool: inline, threads: 1, device: {options.device}}}"
    settings = (workers, *options.set)
    if options.fewer:
        settings += tuple(common.fewer_items(Path(CAMPAIGNS[options.campaign][0]), options.fewer))
    folder = str(options.out or RUNS)
    return [
        Task(options.campaign, search, limit, amount, seed, settings, folder)
        for seed in range(1, 1 + options.seeds)
        for limit, amount in amounts
        for search in options.searches
        if search != "table"
    ]


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("campaign", choices=CAMPAIGNS)
    names = [*CONTROLLERS.all(), "niches-paper"]
    known = [*names, *(f"{name}-full" for name in names), "table"]
    parser.add_argument("searches", nargs="+", choices=known)
    parser.add_argument("--items", type=int, nargs="+", default=[30_000])
    parser.add_argument("--evaluations", type=int, nargs="+", help="instead of items")
    parser.add_argument("--seeds", type=int, default=5, help="so many, from 1 on")
    parser.add_argument("--jobs", type=int, default=2, help="searches at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fewer", type=int, help="items of each objective, held-out ones included")
    parser.add_argument("--set", action="append", default=[], help="a.b=YAML, as evomerge run")
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(parser, seeds=1, items=[350], jobs=1, fewer=80, evaluations=None)
    rows = Rows(
        options.out / CSV.name if options.out else CSV,
        ("campaign", "search", "limit", "amount", "seed"),
    )
    tasks = [
        task
        for task in tasks_of(options)
        if not rows.has(task.campaign, task.search, task.limit, task.amount, task.seed)
    ]
    # processes of their own, so that each has its thread; begun anew, as torch may have threads
    for row in common.done_of(run, tasks, options.jobs):
        rows.append(row)
    groups = {"campaign": "campaign", "search": "search", "limit": "limit", "amount": "amount"}
    columns = ("mean", "search_mean", "hypervolume")
    print(rows.table(groups, columns, interval_of_mean))


if __name__ == "__main__":
    main()
