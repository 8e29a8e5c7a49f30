"""How a natural-niches run grew: how deep, and what its deepest descendant takes to materialize.

    python benchmarks/descendants.py runs/smollm2-niches

Depth counts generations of parents. The same models' uniform average is timed beside it, in the
same way, into live bfloat16 tensors, on all cores.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
from materialize import best_of, live_tensors
from tabulate import tabulate

from evomerge.archive.reader import Reading
from evomerge.merging.merger import Merger
from evomerge.recipes.parse import from_json
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--times", type=int, default=9)
    options = parser.parse_args()
    archive = Reading(options.run / "archive.db")
    depth: dict[int, int] = {}
    for candidate in archive.candidates():  # parents come before their children
        parents = archive.parents(candidate.id)
        depth[candidate.id] = 1 + max((depth[p] for p in parents), default=-1)
    deepest = max(depth, key=lambda c: (depth[c], c))
    (candidate,) = archive.candidates("id = ?", (deepest,))
    recipe = from_json(candidate.recipe, f"candidate {deepest}")
    named = recipe.sources
    opened = {name: open_source(name) for name in named}
    merger = Merger(opened, {name: digest(source).sha256 for name, source in opened.items()})
    live = live_tensors(opened[named[0]], "cpu")
    segments = sum(len(chromosome.coefficients) for chromosome in recipe.chromosomes)
    uniform = replace(recipe_of("linear", list(recipe.models), None), dtype="bfloat16")
    rows = []
    for who, what in ((f"candidate {deepest}", recipe), ("uniform average", uniform)):
        first = best_of(1, lambda r=what: merger.fill(r, live))
        rows.append([who, first, best_of(options.times, lambda r=what: merger.fill(r, live))])
    size = (options.run / "archive.db").stat().st_size
    print(f"{len(depth)} candidates, archive of {size / 1e3:.0f} kB; the deepest is {deepest}:")
    print(f"{depth[deepest]} generations, {segments} segments of {len(recipe.models)} models")
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers=["", "first (s)", "again (s)"], floatfmt=".3f"))


if __name__ == "__main__":
    main()
