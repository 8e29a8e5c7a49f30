"""How a natural-niches run grew: how deep, and what its deepest descendant takes to materialize.

    python benchmarks/descendants.py runs/smollm2-niches

Prints the archive's size, the generations of parents and the segments of the deepest descendant,
and the seconds of its first merge and of the quickest after it, into live bfloat16 tensors on all
cores; beside it the uniform average of the same models.
"""

from functools import partial
from pathlib import Path

import common
from models import live_tensors, merger_of, seconds_of

from evomerge.archive.summary import open_run
from evomerge.recipes.mixture import MixtureRecipe
from evomerge.recipes.parameters import uniform


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--times", type=int, default=9)
    options = common.parsed(parser, times=1)
    with common.errors_as_lines(options.run):
        archive = open_run(options.run)
    candidates = {candidate.id: candidate for candidate in archive.candidates()}
    depth: dict[int, int] = {}
    for number, candidate in candidates.items():  # parents come before their children
        depth[number] = 1 + max((depth[p] for p in candidate.parents), default=-1)
    deepest = max(depth, key=lambda number: (depth[number], number))
    recipe = candidates[deepest].recipe
    if not isinstance(recipe, MixtureRecipe):
        raise SystemExit(f"candidate {deepest} is of kind {recipe.kind}, not mixture")
    merger = merger_of(recipe.sources)
    live = live_tensors(merger.sources[recipe.sources[0]])
    body = []
    average = uniform(recipe.models, recipe.dtype)
    for who, merged in ((f"candidate {deepest}", recipe), ("uniform average", average)):
        merge = partial(merger.fill, merged, live)
        body.append([who, seconds_of(merge), seconds_of(merge, options.times)])
    size = (options.run / "archive.db").stat().st_size
    segments = sum(len(chromosome.coefficients) for chromosome in recipe.chromosomes)
    print(f"{len(depth)} candidates, archive of {size / 1e3:.0f} kB; the deepest is {deepest}:")
    print(f"{depth[deepest]} generations, {segments} segments of {len(recipe.models)} models")
    print(common.hardware())
    print(common.table(["", "first (s)", "again (s)"], body, ("", ".3f", ".3f")))


if __name__ == "__main__":
    main()
