"""Learned starts on the two embedded pools: each learner alone, and as the start of CMA-ES.

    python benchmarks/learned_starts.py alone searches --seeds 3
    python benchmarks/learned_starts.py searches --pools many --budget 22000   # items, not 46000

`alone` learns every merge once a seed and scores it on search and held-out items beside the other
baselines: rows of benchmarks/learned_starts.csv. `searches` runs the pools' own campaigns
(search_spaces/crosslingual-maths.yaml, search_spaces/many-experts.yaml) from their own start and
from what each learner found, at equal numbers of scored items: rows of
benchmarks/learned_starts_searches.csv, with the held-out score of the best candidate found. What
was learned counts its own baseline's items, and the seconds it took are in the row of `alone`.

Rows that are there are not made again; a search that was stopped goes on where it was.
"""

import json
import time
from pathlib import Path

import common
import numpy as np
import yaml
from rows import Rows, interval_of_mean

CSV = Path(__file__).with_suffix(".csv")
SEARCHES = "learned_starts_searches.csv"
RUNS = Path("runs/learned-starts")
POOLS = {  # pool: its campaign, and what is its experts' own
    "crosslingual": (
        Path("search_spaces/crosslingual-maths.yaml"),
        {"ja": "maths_ja", "fr": "maths_fr"},
    ),
    "many": (
        Path("search_spaces/many-experts.yaml"),
        {"ja": "maths_ja", "fr": "maths_fr", "es": "maths_es", "id": "maths_id"},
    ),
}
LEARNED = {  # what is tried: a kind, with options where its defaults are not all
    "adamerging": {"kind": "adamerging", "steps": 200},
    "expert_merging": {"kind": "expert_merging"},
    "expert_merging_pp": {"kind": "expert_merging", "chunks": 0.5},
    "self_positioning": {"kind": "self_positioning", "steps": 300, "rate": 0.05},
    "self_positioning_layers": {
        "kind": "self_positioning",
        "steps": 300,
        "rate": 0.05,
        "by": "layer",
    },
    "fw_merging": {"kind": "fw_merging"},
    "fw_merging_wide": {"kind": "fw_merging", "radius": 3.0, "iterations": 20},
    "fw_merging_model": {"kind": "fw_merging", "radius": 3.0, "iterations": 20, "by": "model"},
}
STARTS = ("default", "self_positioning", "fw_merging_model", "adamerging", "expert_merging")


def entry(name: str, pool: str, most_steps: int | None) -> dict[str, object]:
    """Return an entry of `learned`, named as here."""
    found = {"name": name.replace("_", "-"), **LEARNED[name]}
    if found["kind"] == "expert_merging":
        found["experts"] = POOLS[pool][1]
    if most_steps is not None:
        found |= {"steps": most_steps} if found["kind"] != "fw_merging" else {"iterations": 1}
        found |= {"count": 4}
    return found


def settings_of(pool: str, seed: int, options: object) -> list[str]:
    """Return what every campaign of a pool is run with."""
    file, _ = POOLS[pool]
    found = [f"seed={seed}", f"workers={options.workers}"]
    return found + (common.fewer_items(file, options.items) if options.items else [])


def alone(pool: str, seed: int, options: object, rows: Rows) -> None:
    """Learn all merges of a pool and score them, if their rows are not there yet."""
    if rows.has(pool, seed, "uniform"):
        return
    file, _ = POOLS[pool]
    learned = [entry(name, pool, options.steps) for name in options.learners]
    settings = settings_of(pool, seed, options)
    settings += [f"learned={json.dumps(learned)}", "budget={evaluations: 1}", "scoring=full"]
    directory = options.out / f"alone-{pool}-{seed}"
    archive = common.run_silently(file, directory, settings)
    log = (directory / "log.txt").read_text(encoding="utf-8").splitlines()
    for candidate in archive.baselines():
        search, heldout = (archive.means(candidate.id, s) for s in ("search", "heldout"))
        row: dict[str, object] = {"pool": pool, "seed": seed, "baseline": candidate.label}
        row["search"] = round(float(np.mean(list(search.values()))), 4)
        row["heldout"] = round(float(np.mean(list(heldout.values()))), 4)
        row["seconds"] = seconds_of(str(candidate.label), log)
        rows.append(row)


def seconds_of(label: str, log: list[str]) -> float | str:
    """Return how long a merge took to be learned, by the lines of a run's log."""
    marks = [line for line in log if f" {label}: step " in line or f"learned {label} in " in line]
    if not marks:
        return ""
    first, last = (time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in (marks[0], marks[-1]))
    return time.mktime(last) - time.mktime(first)


def search(pool: str, seed: int, start: str, options: object, rows: Rows) -> None:
    """Run a pool's campaign from a start, if its row is not there yet."""
    file, _ = POOLS[pool]
    own = yaml.safe_load(file.read_text(encoding="utf-8"))["budget"]["items"]
    items = options.budget or own
    if rows.has(pool, items, seed, start):
        return
    settings = [*settings_of(pool, seed, options), f"budget={{items: {items}}}"]
    if options.evaluations:
        settings += [f"budget={{evaluations: {options.evaluations}}}"]
    if start != "default":
        learned = [entry(start, pool, options.steps)]
        settings += [f"learned={json.dumps(learned)}", "start_from_learned=true"]
    directory = options.out / f"{start}-{pool}-{items}-{seed}"
    archive = common.run_silently(file, directory, settings)
    best = archive.best_found()
    assert best is not None, "a finished campaign has found a candidate"
    row: dict[str, object] = {"pool": pool, "items": items, "seed": seed, "start": start}
    row["search"] = round(float(np.mean(list(archive.means(best).values()))), 4)
    row["heldout"] = round(float(np.mean(list(archive.means(best, "heldout").values()))), 4)
    rows.append(row)


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("parts", nargs="+", choices=["alone", "searches"])
    parser.add_argument("--pools", nargs="+", choices=[*POOLS], default=[*POOLS])
    parser.add_argument("--learners", nargs="+", choices=[*LEARNED], default=[*LEARNED])
    parser.add_argument("--starts", nargs="+", choices=["default", *LEARNED], default=[*STARTS])
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 on")
    parser.add_argument("--steps", type=int, help="of each learner; its own number")
    parser.add_argument("--budget", type=int, help="items of a search; its campaign's")
    parser.add_argument("--evaluations", type=int, help="of a search, and no budget of items")
    parser.add_argument("--items", type=int, help="of a task, held-out ones included; all of them")
    parser.add_argument("--workers", default="{pool: inline, threads: 1}")
    common.with_out(parser, CSV, RUNS)
    short = {"seeds": 1, "steps": 1, "evaluations": 2, "items": 20, "pools": ["crosslingual"]}
    options = common.parsed(parser, starts=["default", "fw_merging"], **short)
    folder = options.out or CSV.parent
    options.out = options.out or RUNS
    learned = Rows(folder / CSV.name, ("pool", "seed", "baseline"))
    searched = Rows(folder / SEARCHES, ("pool", "items", "seed", "start"))
    for seed in range(1, 1 + options.seeds):
        for pool in options.pools:
            if "alone" in options.parts:
                alone(pool, seed, options, learned)
            for start in options.starts if "searches" in options.parts else ():
                search(pool, seed, start, options, searched)
    columns = ("search", "heldout")
    if learned.read():
        print(learned.table({"pool": "pool", "baseline": "baseline"}, columns, interval_of_mean))
        print()
    if searched.read():
        groups = {"pool": "pool", "items": "items", "start": "start"}
        print(searched.table(groups, columns, interval_of_mean))


if __name__ == "__main__":
    main()
