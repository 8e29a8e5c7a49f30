"""M2N2's digits: how well natural niches do, with what left out, after how many passes.

    python benchmarks/digits.py pretrained niches no-attraction no-split genetic --seeds 5
    python benchmarks/digits.py halves niches no-attraction no-split genetic --seeds 5
    python benchmarks/digits.py scratch niches --seeds 5 --passes 50000

Runs the campaigns of search_spaces/digits-*.yaml stage by stage in runs/digits/; one that was
stopped goes on where it was. `pretrained` merges the embedded halves with every seed, `halves` a
pair trained anew for each (search_spaces/digits/make.py). After each stage the best on the searched
images is scored on those held out. Rows are appended to benchmarks/digits.csv; a row that is there
is not made again.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rows
from tabulate import tabulate

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign

ROWS = Path(__file__).with_suffix(".csv")
STAGES = (1000, 2000, 3000, 10_000, 20_000, 50_000)
VARIANTS = {  # what is set beside the campaign file
    "niches": [],
    "no-attraction": ["controller.attraction=false"],
    "no-competition": ["controller.alpha=0"],
    "genetic": ["controller.alpha=0", "controller.attraction=false"],
    "no-split": ["space.split=false"],
    "no-crossover": ["space.crossover=false"],
}


def make(start: str, variant: str, seed: int, passes: int) -> None:
    """Run one campaign up to a number of passes, a row after each stage."""
    there = {
        int(r["passes"])
        for r in rows.read(ROWS)
        if (r["start"], r["variant"], int(r["seed"])) == (start, variant, seed)
    }
    name = "digits-from-scratch" if start == "scratch" else "digits-pretrained"
    own = halves(seed) if start == "halves" else []
    directory = Path("runs/digits") / f"{start}-{variant}-{seed}"
    for stage in (s for s in STAGES if s <= passes and s not in there):
        settings = [*VARIANTS[variant], *own, f"seed={seed}", "finals=0"]
        settings.append(f"budget.evaluations={stage}")
        started = time.perf_counter()
        finished = run_campaign(
            Path(f"search_spaces/{name}.yaml"),
            directory=directory,
            settings=settings,
            progress=rows.Quiet(),
        )
        if not finished:
            raise SystemExit("interrupted; the same command goes on")
        archive = Archive(directory / "archive.db")
        best = archive.best()
        row = {
            "start": start,
            "variant": variant,
            "seed": seed,
            "passes": stage,
            "train": round(archive.means(best)["accuracy"], 4),
            "test": round(archive.means(best, "heldout")["accuracy"], 4),
            "seconds": round(time.perf_counter() - started, 1),
        }
        rows.append(ROWS, row)


def halves(seed: int) -> list[str]:
    """Train a pair of halves, if it is not there, and return the settings that name them."""
    folder = Path(f"runs/digits/halves-{seed}")
    if not (folder / "high.safetensors").exists():
        script = [sys.executable, "search_spaces/digits/make.py"]
        subprocess.run([*script, "--seed", str(seed), "--out", str(folder)], check=True)
    factory = "fitness/digits.py:network"
    return [
        f'sources.models.{name}={{factory: "{factory}", weights: {folder}/{name}.safetensors}}'
        for name in ("low", "high")
    ]


def table() -> str:
    """Return mean and standard deviation over seeds, of all rows there are."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows.read(ROWS):
        groups.setdefault((row["start"], row["variant"], int(row["passes"])), []).append(row)
    body = []
    for key, group in sorted(groups.items()):
        found = {k: np.array([float(r[k]) for r in group]) for k in ("train", "test")}
        cells = [
            f"{v.mean():.3f} ± {v.std(ddof=1) if len(v) > 1 else 0:.3f}" for v in found.values()
        ]
        body.append([*key, len(group), *cells])
    return tabulate(body, headers=["from", "variant", "passes", "seeds", "train", "test"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("start", choices=["pretrained", "halves", "scratch", "table"])
    parser.add_argument("variants", nargs="*", default=["niches"], choices=[*VARIANTS])
    parser.add_argument("--seeds", type=int, default=5, help="42 and so many in all")
    parser.add_argument("--passes", type=int, default=10_000)
    options = parser.parse_args()
    if options.start != "table":
        for seed in range(42, 42 + options.seeds):
            for variant in options.variants:
                make(options.start, variant, seed, options.passes)
    print(table())


if __name__ == "__main__":
    main()
