"""M2N2's digits: how well natural niches do, with what left out, after how many passes.

    python benchmarks/digits.py pretrained niches no-attraction no-split genetic --seeds 5
    python benchmarks/digits.py halves niches no-attraction no-split genetic --seeds 5
    python benchmarks/digits.py scratch niches --seeds 5 --passes 50000

Runs the campaigns of search_spaces/digits-*.yaml in runs/digits/, from one number of passes to
the next; one that was stopped goes on where it was. `pretrained` merges the embedded halves with
every seed, `halves` a pair trained anew for each (search_spaces/digits/make.py), `scratch` evolves
random weights, and `table` runs nothing. At each number of passes the candidate that is best on the
searched images is scored on those held out. Rows are appended to benchmarks/digits.csv; a row that
is there is not made again.

Prints the rows as they come, then their means and standard deviations over the seeds.
"""

import subprocess
import sys
import time
from pathlib import Path

import common
from rows import Rows, deviation

CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/digits")
PASSES = (1000, 2000, 3000, 10_000, 20_000, 50_000)  # at which the best is scored
VARIANTS = {  # what is set beside the campaign file
    "niches": [],
    "no-attraction": ["controller.attraction=false"],
    "no-competition": ["controller.alpha=0"],
    "genetic": ["controller.alpha=0", "controller.attraction=false"],
    "no-split": ["space.split=false"],
    "no-crossover": ["space.crossover=false"],
}


def make(start: str, variant: str, seed: int, passes: int, rows: Rows, runs: Path) -> None:
    """Run one campaign up to a number of passes, a row at each of PASSES on the way."""
    name = "digits-from-scratch" if start == "scratch" else "digits-pretrained"
    settings = [*VARIANTS[variant], f"seed={seed}", "finals=0"]
    if start == "halves":
        settings += halves(seed, runs)
    for now in sorted({*(p for p in PASSES if p < passes), passes}):
        if rows.has(start, variant, seed, now):
            continue
        started = time.perf_counter()
        archive = common.run_silently(
            Path(f"search_spaces/{name}.yaml"),
            runs / f"{start}-{variant}-{seed}",
            [*settings, f"budget.evaluations={now}"],
        )
        best = archive.best()
        assert best is not None, "a finished campaign has scored a candidate"
        row = {
            "start": start,
            "variant": variant,
            "seed": seed,
            "passes": now,
            "train": round(archive.means(best, "search")["accuracy"], 4),
            "test": round(archive.means(best, "heldout")["accuracy"], 4),
            "seconds": round(time.perf_counter() - started, 1),
        }
        rows.append(row)


def halves(seed: int, runs: Path) -> list[str]:
    """Train a pair of halves, if it is not there, and return the settings that name them."""
    folder = runs / f"halves-{seed}"
    if not (folder / "high.safetensors").exists():
        script = [sys.executable, "search_spaces/digits/make.py"]
        subprocess.run([*script, "--seed", str(seed), "--out", str(folder)], check=True)
    factory = "fitness/digits.py:network"
    return [
        f'sources.models.{name}={{factory: "{factory}", weights: {folder}/{name}.safetensors}}'
        for name in ("low", "high")
    ]


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("start", choices=["pretrained", "halves", "scratch", "table"])
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []], help="niches if none")
    parser.add_argument("--seeds", type=int, default=5, help="so many, from 42 on")
    parser.add_argument("--passes", type=int, default=10_000)
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(parser, seeds=1, passes=20)
    file = options.out / CSV.name if options.out else CSV
    rows = Rows(file, ("start", "variant", "seed", "passes"))
    if options.start != "table":
        for seed in range(42, 42 + options.seeds):
            for variant in options.variants or ["niches"]:
                make(options.start, variant, seed, options.passes, rows, options.out or RUNS)
    groups = {"start": "from", "variant": "variant", "passes": "passes"}
    print(rows.table(groups, ("train", "test"), deviation))


if __name__ == "__main__":
    main()
