"""The path of a routed candidate as a picture: SVG, PNG, or whatever the file's ending says.

    python benchmarks/picture.py runs/crosslingual/routing-unscaled-1-160 best path.svg

Above, which layer of which model each hop is; below, where there are gains, what they multiply the
hop's branches by. Prints nothing.
"""

from pathlib import Path

import common
import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evomerge.archive.selection import pick
from evomerge.archive.summary import open_run
from evomerge.recipes.routing import RoutingRecipe

# The same file for the same path, its letters as text.
mpl.rcParams.update({"svg.hashsalt": "evomerge", "svg.fonttype": "none"})


def draw(recipe: RoutingRecipe) -> Figure:
    """Return the figure of a path."""
    path, hops = recipe.path, range(len(recipe.path))
    gains = [(abs(attention), abs(mlp)) for attention, mlp, _ in recipe.fold().hops]
    heights = [3, 1] if any(g != (1.0, 1.0) for g in gains) else [3]
    figure = Figure(figsize=(8, 1.2 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    layers = panels[0]
    layers.plot(hops, [hop.layer for hop in path], color="0.8", zorder=0)
    for index, model in enumerate(recipe.models):
        own = [(number, path[number].layer) for number in hops if path[number].model == index]
        if own:
            layers.scatter(*zip(*own, strict=True), label=f"{Path(model).name}, {len(own)} hops")
    layers.set_ylabel("layer")
    layers.yaxis.set_major_locator(MaxNLocator(integer=True))
    layers.legend()
    if len(heights) > 1:
        attention, mlp = zip(*gains, strict=True)
        panels[1].plot(hops, attention, "k.-", label="attention")
        panels[1].plot(hops, mlp, "k.:", label="MLP")
        panels[1].set_ylabel("gain")
        panels[1].legend()
    panels[-1].set_xlabel("hop")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("candidate", help="a number, best, ..., as of evomerge export --pick")
    parser.add_argument("file", type=Path)
    options = common.parsed(parser)
    with common.errors_as_lines(options.run):
        archive = open_run(options.run)
        candidate = archive.candidate(pick(archive, options.candidate))
    recipe = candidate.recipe
    if not isinstance(recipe, RoutingRecipe):
        raise SystemExit(f"candidate {candidate.id} is of kind {recipe.kind}, not routing")
    metadata = {"Date": None} if options.file.suffix == ".svg" else None
    draw(recipe).savefig(options.file, metadata=metadata)


if __name__ == "__main__":
    main()
