"""Which of many experts to take: greedy selection beside other searches, and soups without any.

    python benchmarks/many_experts.py                                  # the pool of eight
    python benchmarks/many_experts.py --pool 24                        # and sixteen more in the way
    python benchmarks/many_experts.py greedy --set controller.heats=5 --out trial
    python benchmarks/many_experts.py soups
    python benchmarks/many_experts.py table

The eight are search_spaces/many-experts.yaml's, four of which help. The others of a larger pool are
made here, in runs/many_experts/: each is the base and the four experts that do not help, their task
vectors in proportions drawn from a seed, as long as these are on average. A search is the name of a
controller. Searches score so many items beyond the baselines', which are the same for all; soups
are baselines themselves, scored in full. One process and one thread each, one after the other.

Rows are appended to benchmarks/many_experts.csv; a row that is there is not made again. Prints a
row for each: the held-out scores of the best that was found, their mean, the mean on the search's
side, and of how many models it is, those with a weight of 0.05 and more (or -0.05 and less). Then
means over the seeds with 95 % intervals.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import common
import numpy as np
from rows import Rows, interval_of_mean

from evomerge.archive.reader import ArchiveReader
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.search.controllers import CONTROLLERS

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/many_experts")
CAMPAIGN = Path("search_spaces/many-experts.yaml")
EXPERTS = Path("search_spaces/many_experts")
IN_THE_WAY = ("off_by_one", "larger", "fr_long", "es_hot")
SOUPS = ("metrics", "greedy", "soce")
ALL = ("greedy", "cmaes", "random", "soups")


def more_experts(folder: Path, count: int) -> dict[str, str]:
    """Make experts that are in the way; return their directories by label."""
    import torch
    from safetensors.torch import load_file, save_file

    base = load_file(EXPERTS / "base" / "model.safetensors")
    vectors = []
    for name in IN_THE_WAY:
        tensors = load_file(EXPERTS / name / "model.safetensors")
        vectors.append({key: tensors[key].float() - base[key].float() for key in base})
    squares = [sum(float((v[key] ** 2).sum()) for key in base) for v in vectors]
    length = float(np.sqrt(squares).mean())
    found = {}
    for number in range(1, count + 1):
        place = folder / f"more-{number:02}"
        found[f"more-{number:02}"] = str(place)
        if (place / "model.safetensors").exists():
            continue
        shares = np.random.default_rng(number).normal(size=len(vectors))
        mixed = {}
        for key in base:
            parts = [float(share) * v[key] for share, v in zip(shares, vectors, strict=True)]
            mixed[key] = torch.stack(parts).sum(0)
        scale = length / float(np.sqrt(sum(float((m**2).sum()) for m in mixed.values())))
        place.mkdir(parents=True, exist_ok=True)
        for file in (EXPERTS / "base").iterdir():
            if file.suffix == ".json":
                shutil.copy(file, place / file.name)
        tensors = {k: (base[k].float() + scale * m).to(base[k].dtype) for k, m in mixed.items()}
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return found


def row_of(archive: ArchiveReader, candidate: int, key: Mapping[str, object]) -> dict[str, object]:
    """Return the row of what was found."""
    names = [objective.name for objective in archive.objectives]
    heldout, search = archive.means(candidate, "heldout"), archive.means(candidate)
    recipe = archive.candidate(candidate).recipe
    assert isinstance(recipe, ParametersRecipe)
    weights = np.atleast_1d(np.array(recipe.groups[0].values.get("weight", 1.0)))
    return {
        **key,
        "scores": " ".join(f"{heldout[name]:.4f}" for name in names),
        "mean": round(float(np.mean([heldout[name] for name in names])), 4),
        "search_mean": round(float(np.mean([search[name] for name in names])), 4),
        "models": int((np.abs(weights) >= 0.05).sum()),
    }


def search(name: str, seed: int, options: argparse.Namespace, settings: Sequence[str]) -> Mapping:
    """Run a search to its end; return its row."""
    from evomerge.campaign.build import checked

    settings = [*settings, f"seed={seed}"]
    if name != "cmaes":  # whose options the campaign file has
        settings.append(f"controller={{kind: {name}}}")
    settings += options.set
    with common.errors_as_lines(CAMPAIGN):
        (campaign,) = checked(CAMPAIGN, [*settings, "budget={evaluations: 1}"])
    amount = options.items + len(campaign.baselines()) * campaign.search_items
    settings.append(f"budget={{items: {amount}}}")
    directory = options.runs / f"{options.pool}-{name}-{options.items}-{seed}"
    archive = common.run_silently(CAMPAIGN, directory, settings)
    best = archive.best_found()
    assert best is not None, "a finished campaign has found a candidate"
    key = {"pool": options.pool, "search": name, "items": options.items, "seed": seed}
    return row_of(archive, best, key)


def soups(seed: int, options: argparse.Namespace, settings: Sequence[str]) -> list[Mapping]:
    """Score the soups; return a row for the best of each kind, and for the best model."""
    named = ", ".join(SOUPS)
    settings = [*settings, f"seed={seed}", f"soups=[{named}]", "budget={evaluations: 1}"]
    directory = options.runs / f"{options.pool}-soups-{seed}"
    archive = common.run_silently(CAMPAIGN, directory, [*settings, *options.set])
    kinds: dict[str, list[int]] = {}
    values: dict[int, float] = {}
    items: dict[str, int] = {}
    for candidate in archive.baselines():
        outcome = archive.outcome(candidate.id)
        label = str(candidate.label)
        first = label.partition(" ")[0]
        kind = first if first in (*SOUPS, "uniform") else "best model"
        if outcome is None or outcome["value"] is None or label == "base":
            continue
        values[candidate.id] = outcome["value"]
        kinds.setdefault(kind, []).append(candidate.id)
        items[kind] = items.get(kind, 0) + outcome["items_scored"]
    rows = []
    for kind, numbers in kinds.items():
        best = max(numbers, key=lambda number: values[number])
        name = kind if kind == "best model" else f"soup {kind}"
        # the models are everybody's baselines
        scored = 0 if kind in ("best model", "uniform") else items[kind]
        key = {"pool": options.pool, "search": name, "items": scored, "seed": seed}
        rows.append(row_of(archive, best, key))
    return rows


def main() -> None:
    parser = common.command_line(__doc__)
    known = [*CONTROLLERS.all(), "soups", "table", "all"]
    parser.add_argument("searches", nargs="*", choices=known, default="all", metavar="search")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--pool", type=int, default=8, help="models")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 on")
    parser.add_argument("--fewer", type=int, help="items of each objective, held-out ones included")
    parser.add_argument("--set", action="append", default=[], help="a.b=YAML, as evomerge run")
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(
        parser, searches=["greedy", "soups"], seeds=1, items=400, pool=9, fewer=50
    )
    options.runs = options.out or RUNS
    settings = ["workers={pool: inline, threads: 1}"]
    for label, place in more_experts(options.runs, options.pool - 8).items():
        settings.append(f"sources.models.{label}={place}")
    if options.fewer:
        settings += common.fewer_items(CAMPAIGN, options.fewer)
    rows = Rows(options.out / CSV.name if options.out else CSV, ("pool", "search", "items", "seed"))
    for seed in range(1, 1 + options.seeds):
        for name in ALL if options.searches == "all" else options.searches:
            if name == "soups":
                for row in soups(seed, options, settings):
                    key = (row["pool"], row["search"], row["items"], row["seed"])
                    if not rows.has(*key):
                        rows.append(row)
            elif name != "table" and not rows.has(options.pool, name, options.items, seed):
                rows.append(search(name, seed, options, settings))
    groups = {"pool": "pool", "search": "search", "items": "items"}
    print(rows.table(groups, ("mean", "search_mean", "models"), interval_of_mean))


if __name__ == "__main__":
    main()
