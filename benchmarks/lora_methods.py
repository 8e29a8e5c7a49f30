"""Ways to merge LoRA adapters: each at its default, and searched, judged on held-out items.

    python benchmarks/lora_methods.py
    python benchmarks/lora_methods.py --methods knots_ties lora_lego --items 10000 --seeds 5
    python benchmarks/lora_methods.py --sizes 25M 135M

The pool is search_spaces/lora-pool.yaml's: four adapters, whose ranks, scales and modules differ.
`task_arithmetic` is gates, a weighted sum in which each adapter has its own for every group; `ties`
works on dense updates, weight by weight; knots_ties, knots_dare_ties and lora_lego work within the
factors. At its default: one merge of all adapters. Searched: cmaes, scoring in parts, over the
campaign's gates; where the method has them, over a density and a scale as well. Every search is a
campaign with one worker and one thread, as many at once as --jobs says. Rows are appended to
benchmarks/lora_methods.csv; a row that is there is not made again.

Prints a row a method and seed: seconds of what is prepared once and of one merge after that, both
of a processor's own work, the mean held-out score at the default, that of the best found by the
search, which is no baseline, and the seconds of the search; then means over the seeds with 95 %
intervals. With --sizes, nothing is searched: what preparing and a merge cost, of four adapters of
random factors of a larger model.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import items
import torch
import yaml
from materialize import RANK, make_adapter
from methods import Task, alone, default
from models import SHAPES, make_model
from rows import Rows, interval_of_mean

from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS, MergeMethod
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/lora_methods")
POOL = "lora"
COMPARED = ["task_arithmetic", "ties", "knots_ties", "knots_dare_ties", "lora_lego"]


def space_of(method: MergeMethod) -> dict[str, Any]:
    """Return the pool's space with another method."""
    plan = yaml.safe_load(Path(items.CAMPAIGNS[POOL][0]).read_text(encoding="utf-8"))
    space, models = plan["space"], len(plan["sources"]["models"])
    for parameter in method.parameters:
        start = default(parameter, models)
        tied = ["layers", "modules", "outside"]
        if parameter.name == "weight":
            gates = space["axes"]["weight"]
            low = max(gates["low"], parameter.axis.low)
            space["axes"]["weight"] = gates | {"low": low, "start": start}
        elif parameter.name == "density":
            space["axes"]["density"] = {"low": 0.1, "high": 1.0, "start": 0.8, "tied": tied}
        elif parameter.name == "scale" and method.name != "task_arithmetic":
            # averages, whose weights say ratios alone
            space["axes"]["scale"] = {"low": 0.5, "high": 3.0, "start": 1.0, "tied": tied}
    return space | {"method": method.name}


def costs(name: str, base: str, adapters: Sequence[str]) -> tuple[float, float]:
    """Return the seconds of what a method does once, and of a merge into live tensors after it.

    Of this thread's own work: what else runs on the machine makes no difference.
    """
    opened = {source: open_source(source) for source in (base, *adapters)}
    merger = Merger(opened, {source: source for source in opened})
    values = {p.name: default(p, len(adapters)) for p in METHODS.get(name).parameters}
    if "density" in values:
        values["density"] = 0.5
    recipe = recipe_of(name, adapters, base, **values)
    live = {n: torch.empty(t.shape) for n, t in opened[base].tensors.items()}
    merger.fill(recipe_of("linear", adapters, base), live)  # kernels compiled, files opened
    began = time.thread_time()
    merger.prepare([recipe])
    prepared = time.thread_time() - began
    seconds = []
    for _ in range(3):
        began = time.thread_time()
        merger.fill(recipe, live)
        seconds.append(time.thread_time() - began)
    return prepared, sorted(seconds)[1]


def pool() -> tuple[str, list[str]]:
    """Return the base and the adapters of the campaign, as sources are named."""
    plan = yaml.safe_load(Path(items.CAMPAIGNS[POOL][0]).read_text(encoding="utf-8"))
    models = plan["sources"]["models"].values()
    return plan["sources"]["base"], [f"{model['model']}+{model['adapter']}" for model in models]


def print_costs(size: str, count: int, methods: Sequence[str]) -> None:
    """Print what each method costs, of adapters of random factors of a model of a size."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_model(size, Path(folder) / "base")
        adapters = [make_adapter(base, Path(folder), seed)[0] for seed in range(count)]
        names, rows = [f"{base}+{adapter}" for adapter in adapters], []
        for method in methods:
            rows.append((method, *costs(method, str(base), names)))
    print(f"\n{size}, {count} adapters of rank {RANK}, {common.hardware()}\n")
    print(common.table(("method", "preparing (s)", "merge (s)"), rows, ("", ".2f", ".2f")))


def run(task: Task) -> dict[str, Any]:
    """Return a method's row."""
    torch.set_num_threads(1)
    prepared, merged = costs(task.method, *pool())
    space = yaml.safe_dump(space_of(METHODS.get(task.method)), default_flow_style=True, width=9999)
    settings = (f"space={space.strip()}", *task.settings)
    folder = f"{task.folder}/{task.method}"
    found = items.run(items.Task(POOL, "cmaes", "items", task.amount, task.seed, settings, folder))
    own = [f"seed={task.seed}", "budget={evaluations: 1}", *settings]
    return {
        "method": task.method,
        "amount": task.amount,
        "seed": task.seed,
        "prepared_s": round(prepared, 3),
        "merge_s": round(merged, 4),
        "default": round(alone(task, own), 4),
        "found": found["mean"],
        "search_mean": found["search_mean"],
        "candidates": found["candidates"],
        "seconds": found["seconds"],
    }


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """Return what the command line asks for."""
    settings = ["workers={pool: inline, threads: 1, device: cpu}", "finals=4"]
    if options.fewer:
        settings += common.fewer_items(Path(items.CAMPAIGNS[POOL][0]), options.fewer)
    folder = str(options.out or RUNS)
    return [
        Task(POOL, method, options.items, seed, tuple(settings), folder)
        for seed in range(1, 1 + options.seeds)
        for method in options.methods
    ]


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS.all(), default=COMPARED)
    parser.add_argument("--items", type=int, default=5000, help="beyond the baselines'")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 on")
    parser.add_argument("--jobs", type=int, default=2, help="searches at once")
    parser.add_argument("--fewer", type=int, help="items of each objective, held-out ones included")
    parser.add_argument("--sizes", nargs="+", default=[], choices=SHAPES)
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(parser, methods=["knots_ties"], items=150, seeds=1, jobs=1, fewer=80)
    torch.set_num_threads(1)
    for size in ["0.2M"] if options.short else options.sizes:
        print_costs(size, 4, options.methods)
    if options.sizes and not options.short:
        return
    rows = Rows(options.out / CSV.name if options.out else CSV, ("method", "amount", "seed"))
    tasks = [t for t in tasks_of(options) if not rows.has(t.method, t.amount, t.seed)]
    for row in common.done_of(run, tasks, options.jobs):
        rows.append(row)
    groups = {"method": "method", "amount": "items"}
    columns = ("prepared_s", "merge_s", "default", "found")
    print(rows.table(groups, columns, interval_of_mean))


if __name__ == "__main__":
    main()
