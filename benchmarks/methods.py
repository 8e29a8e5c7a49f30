"""Each merge method: alone at its default, and as what a search weighs, judged on held-out items.

    python benchmarks/methods.py demo many                       # every method, three seeds
    python benchmarks/methods.py demo --methods iso svc --items 5000

`demo` and `many` are as in items.py. Alone: one merge of all models with the method's defaults; a
weight that has none is one divided by the number of models. As a search: cmaes, scoring in parts,
over the campaign's weights from the method's default on and, where the method has one, over a
density; all else stays at its default. Methods that take two models are left out, and those that
merge LoRA adapters alone, which lora_methods.py compares. Those that merge by data read 256 texts
of each expert (expert_texts.py). Every search is a campaign with one worker and one thread, as many
at once as --jobs says. Rows are appended to benchmarks/methods.csv; a row that is there is not made
again.

Prints a row a method and seed: the mean held-out score alone, that of the best found by the search,
which is no baseline, and the seconds of the search; then means over the seeds with 95 % intervals.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import common
import items
import numpy as np
import yaml
from expert_texts import write_texts
from rows import Rows, interval_of_mean

from evomerge.merging.methods import METHODS, MergeMethod, Parameter
from evomerge.testing import recipe_of

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/methods")


class Task(NamedTuple):
    """One method on one campaign with one seed."""

    campaign: str
    method: str
    amount: int
    seed: int
    settings: tuple[str, ...]
    folder: str


def default(parameter: Parameter, models: int) -> float:
    """Return a parameter's default, or one divided by the number of models."""
    return 1 / models if parameter.default is None else parameter.default


def space_of(campaign: str, method: MergeMethod) -> dict[str, Any]:
    """Return the campaign's space with another method."""
    plan = yaml.safe_load(Path(items.CAMPAIGNS[campaign][0]).read_text(encoding="utf-8"))
    space, models = plan["space"], len(plan["sources"]["models"])
    weight, axes = space["axes"]["weight"], {}
    for parameter in method.parameters:
        value = default(parameter, models)
        if parameter.name == "weight":
            axes["weight"] = weight | {"start": value}
        elif parameter.name == "density":
            tied = ["layers", "modules", "outside"]
            tied += ["models"] if parameter.axis.per_model else []
            axes["density"] = {"low": 0.1, "high": 1.0, "start": 0.8, "tied": tied}
        elif method.name == "model_stock":  # which has nothing else to search
            axes[parameter.name] = {"low": 0.0, "high": 2.0, "start": value}
        else:
            axes[parameter.name] = value
    return space | {"method": method.name, "axes": axes}


def with_texts(campaign: str, method: str, folder: Path) -> list[str]:
    """Return settings that give each model texts, where a method reads any."""
    if not METHODS.get(method).reads:
        return []
    plan = yaml.safe_load(Path(items.CAMPAIGNS[campaign][0]).read_text(encoding="utf-8"))
    files = write_texts(campaign, folder)
    listed = plan["sources"]["models"]
    known = {label: {"model": listed[label], "texts": str(files[label])} for label in listed}
    return [f"sources.models={yaml.safe_dump(known, default_flow_style=True).strip()}"]


def alone(task: Task, settings: list[str]) -> float:
    """Return the mean held-out score of the merge at the method's defaults."""
    from evomerge.campaign.build import checked
    from evomerge.campaign.source_hashes import hash_sources
    from evomerge.workers.protocol import Job
    from evomerge.workers.worker import Worker

    (campaign,) = map(hash_sources, checked(Path(items.CAMPAIGNS[task.campaign][0]), settings))
    method, models = METHODS.get(task.method), campaign.models
    values = {p.name: default(p, len(models)) for p in method.parameters}
    recipe = recipe_of(task.method, models, str(campaign.listed.base), based=False, **values)
    recipe = replace(recipe, dtype=campaign.worker.dtype)
    outcome = Worker(campaign.worker).evaluate(Job(1, recipe, "heldout"))
    if outcome.means is None:
        raise SystemExit(f"{task.method}: {outcome.reason}")
    return float(np.mean([*outcome.means.values()]))


def run(task: Task) -> dict[str, Any]:
    """Return a method's row."""
    space = space_of(task.campaign, METHODS.get(task.method))
    settings = [f"space={yaml.safe_dump(space, default_flow_style=True).strip()}", *task.settings]
    found = items.run(
        items.Task(
            task.campaign,
            "cmaes",
            "items",
            task.amount,
            task.seed,
            tuple(settings),
            f"{task.folder}/{task.method}",
        )
    )
    own = [f"seed={task.seed}", "budget={evaluations: 1}", *settings]
    return {
        "campaign": task.campaign,
        "method": task.method,
        "amount": task.amount,
        "seed": task.seed,
        "alone": round(alone(task, own), 4),
        "found": found["mean"],
        "hypervolume": found["hypervolume"],
        "seconds": found["seconds"],
    }


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """Return what the command line asks for."""
    every = [
        name
        for name, method in METHODS.all().items()
        if not method.models and method.family != "factored"
    ]
    methods = options.methods or every
    settings = ["workers={pool: inline, threads: 1, device: cpu}"]
    folder, tasks = options.out or RUNS, []
    for seed in range(1, 1 + options.seeds):
        for campaign in options.campaigns:
            fewer = of_campaign(campaign, options.fewer)
            for method in methods:
                texts = with_texts(campaign, method, folder / "texts")
                given = tuple(settings + fewer + texts)
                tasks.append(Task(campaign, method, options.items, seed, given, str(folder)))
    return tasks


def of_campaign(campaign: str, fewer: int | None) -> list[str]:
    """Return settings for a trial run of a campaign, none for a whole one."""
    return common.fewer_items(Path(items.CAMPAIGNS[campaign][0]), fewer) if fewer else []


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("campaigns", nargs="+", choices=["demo", "many"])
    parser.add_argument("--methods", nargs="+", choices=METHODS.all())
    parser.add_argument("--items", type=int, default=5000, help="beyond the baselines'")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 on")
    parser.add_argument("--jobs", type=int, default=2, help="searches at once")
    parser.add_argument("--fewer", type=int, help="items of each objective, held-out ones included")
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(parser, methods=["regmean"], items=150, seeds=1, jobs=1, fewer=80)
    rows = Rows(
        options.out / CSV.name if options.out else CSV, ("campaign", "method", "amount", "seed")
    )
    tasks = [t for t in tasks_of(options) if not rows.has(t.campaign, t.method, t.amount, t.seed)]
    for row in common.done_of(run, tasks, options.jobs):
        rows.append(row)
    groups = {"campaign": "campaign", "method": "method", "amount": "items"}
    print(rows.table(groups, ("alone", "found", "hypervolume"), interval_of_mean))


if __name__ == "__main__":
    main()
