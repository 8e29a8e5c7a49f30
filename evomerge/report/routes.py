"""The path of a routed candidate: which layer of which model, hop by hop, and how strongly."""

from evomerge.recipes.routing import RoutingRecipe
from evomerge.report.charts import (
    INK2,
    Palette,
    category,
    drawing,
    finite,
    hover,
    quantity,
    sentence,
    shown,
)
from evomerge.report.figures import Panel, Part, Picture, Spec, Text
from evomerge.report.run import Run
from evomerge.text import clean


def route(run: Run, palette: Palette, candidate: int, said: str = "") -> list[Part]:
    """Return the picture of a candidate's path.

    Args:
        run, palette: of the page.
        candidate: of kind routing.
        said: what is added to its name.

    >>> from evomerge.recipes.routing import whole
    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> run.recipes[3] = whole("models/ja", 3, "float32")
    >>> route(run, Palette(run), 3)[0].text
    'Candidate 3 passes 3 layers: 3 of ja. Embeddings, final norm and head are those of ja.'
    """
    recipe = run.recipes[candidate]
    assert isinstance(recipe, RoutingRecipe)
    labels = [run.label_of_model(model) for model in recipe.models]
    counts = {label: 0 for label in labels}
    for hop in recipe.path:
        counts[labels[hop.model]] += 1
    used = ", ".join(f"{count} of {label}" for label, count in counts.items() if count)
    name = f"{run.name_of(candidate)}{said}"
    text = (
        f"{sentence(name)} passes {len(recipe.path)} layers: {used}. Embeddings, final norm and"
        f" head are those of {labels[recipe.frame]}."
    )
    alt = f"{text} {_in_words(recipe, labels)}"
    panels = [Panel(_path(recipe, labels, palette, alt), 400)]
    gains = [(abs(attention), abs(mlp)) for attention, mlp, _ in recipe.fold().hops]
    reading = (
        "From left to right, the layers that a token passes; up, which layer of its model each is."
    )
    if any(gain != (1.0, 1.0) for gain in gains):
        panels.append(Panel(_gains(gains, alt), 240, "What each hop's branches are multiplied by"))
        reading += (
            " Below, by what the attention's and the MLP's outputs of each hop are multiplied."
        )
    legend = [palette.key(label) for label in labels]
    return [Text(text), Picture(f"The path of {name}", alt, reading, panels, legend=legend)]


def _path(recipe: RoutingRecipe, labels: list[str], palette: Palette, alt: str) -> Spec:
    rows = []
    for number, hop in enumerate(recipe.path, start=1):
        label = labels[hop.model]
        text = f"layer {hop.layer} of {label}, scale {shown(hop.scale)}"
        rows.append({"hop": number, "layer": hop.layer, "model": label, "text": text})
    colours, shapes = palette.scales(labels)
    at = {
        "x": quantity("hop", "hop", axis={"tickMinStep": 1, "format": "d", "grid": False}),
        "y": quantity("layer", "layer of its model", axis={"tickMinStep": 1, "format": "d"}),
    }
    marks = {
        "color": category("model", None, scale=colours, legend=None),
        "shape": category("model", None, scale=shapes, legend=None),
        "tooltip": hover(("hop", "hop"), ("text", "passes")),
    }
    layer: list[Spec] = [
        {"mark": {"type": "line", "color": INK2, "strokeWidth": 1, "opacity": 0.5}, "encoding": at},
        {
            "mark": {"type": "point", "filled": True, "size": 150, "opacity": 1},
            "encoding": {**at, **marks},
        },
    ]
    return drawing(280, alt, data=finite(rows), layer=layer)


def _gains(gains: list[tuple[float, float]], alt: str) -> Spec:
    rows = []
    for number, (attention, mlp) in enumerate(gains, start=1):
        rows.append({"hop": number, "branch": "attention", "gain": attention})
        rows.append({"hop": number, "branch": "MLP", "gain": mlp})
    styles = {"domain": ["attention", "MLP"]}
    encoding = {
        "x": quantity("hop", "hop", axis={"tickMinStep": 1, "format": "d", "grid": False}),
        "y": quantity("gain", "gain (1: unchanged)"),
        "strokeDash": category("branch", None, scale={**styles, "range": [[1, 0], [4, 3]]}),
        "color": category("branch", None, scale={**styles, "range": ["var(--ink)", INK2]}),
        "tooltip": hover(("hop", "hop"), ("branch", "branch"), ("gain", "gain")),
    }
    mark = {"type": "line", "point": {"size": 40}}
    return drawing(140, alt, data=finite(rows), mark=mark, encoding=encoding)


def _in_words(recipe: RoutingRecipe, labels: list[str]) -> str:
    """Say a path, consecutive layers of one model together."""
    runs: list[list[int]] = []  # model, first layer, last layer
    for hop in recipe.path:
        if runs and runs[-1][0] == hop.model and hop.layer == runs[-1][2] + 1:
            runs[-1][2] = hop.layer
        else:
            runs.append([hop.model, hop.layer, hop.layer])
    told = []
    for model, first, last in runs:
        layers = f"layer {first}" if first == last else f"layers {first} to {last}"
        told.append(f"{layers} of {clean(labels[model])}")
    return f"The path: {', '.join(told)}."
