"""What the best is made of, layer by layer, and how what the search proposed moved there."""

from collections.abc import Sequence
from typing import Any

from evomerge.recipes.mixture import MixtureRecipe
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.report.charts import (
    ON_HEAT,
    Palette,
    category,
    drawing,
    finite,
    hover,
    quantity,
    sentence,
    shown,
)
from evomerge.report.coefficients import ALL, Coefficient, coefficients
from evomerge.report.figures import Panel, Part, Picture, Section, Spec, Text
from evomerge.report.movement import movement
from evomerge.report.routes import route
from evomerge.report.run import Run
from evomerge.text import clean

_MOST_NUMBERS = 160  # that are written into cells
_MOST_ROWS = 40
_ORDER = {"embeddings": 0, "final norm": 2, "head": 3}  # of places; layers are between


def weights(run: Run, palette: Palette) -> Section:
    """Return the section: of each stage the best that it found.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> [type(part).__name__ for part in weights(run, Palette(run)).parts]
    ['Text', 'Picture', 'Text']
    """
    parts: list[Part] = []
    for stage, best in enumerate(run.bests):
        said = f" (stage {run.stages[stage]})" if len(run.stages) > 1 else ""
        if best is None:
            parts.append(Text(f"No candidate{said} has been scored on all search items yet."))
        else:
            parts += _of_best(run, palette, best, said)
        parts += movement(run, palette, stage, said)
    return Section("weights", "What the best is made of", tuple(parts))


def _of_best(run: Run, palette: Palette, best: int, said: str) -> list[Part]:
    recipe = run.recipes[best]
    name = f"{run.name_of(best)}{said}"
    if isinstance(recipe, RoutingRecipe):
        return route(run, palette, best, said)
    found = coefficients(recipe, run.label_of_model)
    if not found:
        text = (
            f"{sentence(name)} was bred and mutated from its sources"
            f" ({recipe.kind}): it has no coefficients by layer. Its lineage is below."
        )
        return [Text(text)]
    parts: list[Part] = [Text(f"{sentence(name)} {_made(recipe)}.")]
    for parameter in dict.fromkeys(one.parameter for one in found):
        own = [one for one in found if one.parameter == parameter]
        parts.append(_picture(run, recipe, parameter, own, name))
    return parts


def _made(recipe: Recipe) -> str:
    if isinstance(recipe, ParametersRecipe):
        return f"is merged by {', '.join(recipe.methods)}"
    return "is a mixture: each stretch of its parameters is a weighted sum of the sources'"


def _picture(
    run: Run, recipe: Recipe, parameter: str, found: Sequence[Coefficient], name: str
) -> Picture:
    values = [one.value for one in found]
    domain = [min(values), max(values)] if max(values) > min(values) else [values[0], values[0] + 1]
    models = list(dict.fromkeys(one.model for one in found))[:_MOST_ROWS]
    modules = list(dict.fromkeys(one.module for one in found))
    make = _along if isinstance(recipe, MixtureRecipe) else _by_groups
    alt = _alt(parameter, found, name)
    panels = []
    for module in modules:
        own = [one for one in found if one.module == module and one.model in models]
        title = (module or "all other tensors") if len(modules) > 1 else ""
        height = max(48, 26 * len(models))
        panels.append(Panel(make(parameter, own, domain, alt, height), height + 120, title))
    return Picture(
        f"{parameter} in {name}",
        alt,
        _reading(recipe, models),
        panels,
        380 if len(modules) > 1 else 0,
    )


def _reading(recipe: Recipe, models: Sequence[str]) -> str:
    rows = "The one row holds for all models" if models == [ALL] else "A row for each model"
    if isinstance(recipe, MixtureRecipe):
        return (
            f"{rows}, over the model's parameters in their order, from the embeddings through the"
            " layers to the head. Light is much of the model, dark is little or less than nothing."
        )
    return (
        f"{rows}, a column for each group of layers, from the embeddings through the layers to the"
        " head. The lighter, the higher."
    )


def _by_groups(
    parameter: str, found: Sequence[Coefficient], domain: list[float], alt: str, height: int
) -> Spec:
    found = sorted(found, key=lambda one: _ORDER.get(one.place, 1))  # stable: layers as they are
    rows: list[dict[str, Any]] = []
    middle = domain[0] + 0.6 * (domain[1] - domain[0])
    for one in found:
        rows.append(
            {
                "place": one.place,
                "model": one.model,
                "value": one.value,
                "text": shown(one.value, 2),
                "dark": one.value < middle,
            }
        )
    places = list(dict.fromkeys(clean(row["place"]) for row in rows))
    axis = {"labelAngle": 0 if len(places) <= 3 else -35, "labelLimit": 110, "grid": False}
    at = {
        "x": category("place", None, axis=axis),
        "y": category("model", None, axis={"grid": False}),
    }
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 1.5},
            "encoding": {
                **at,
                "color": _heat(parameter, domain),
                "tooltip": hover(("model", "model"), ("place", "where"), ("text", parameter)),
            },
        }
    ]
    if len(rows) <= _MOST_NUMBERS:
        size = {"expr": f"width / {len(places)} < 34 ? 0 : 11"}
        layers.append(
            {
                "mark": {"type": "text", "fontSize": size},
                "encoding": {
                    **at,
                    "text": {"field": "text"},
                    "color": ON_HEAT,
                },
            }
        )
    return drawing(height, alt, data=finite(rows), layer=layers)


def _along(
    parameter: str, found: Sequence[Coefficient], domain: list[float], alt: str, height: int
) -> Spec:
    places = {place: n for n, place in enumerate(dict.fromkeys(one.place for one in found))}
    share = 100.0 / len(places)
    rows = []
    for one in found:
        first = share * places[one.place]
        rows.append(
            {
                "place": one.place,
                "model": one.model,
                "value": one.value,
                "text": shown(one.value, 3),
                "x": first,
                "x2": first + share,
            }
        )
    title = "% of the parameters, in their order"
    encoding = {
        "x": quantity("x", title, axis={"grid": False}, scale={"domain": [0, 100]}),
        "x2": {"field": "x2"},
        "y": category("model", None, axis={"grid": False}),
        "color": _heat(parameter, domain),
        "tooltip": hover(("model", "model"), ("place", "where"), ("text", "mean weight")),
    }
    return drawing(height, alt, data=finite(rows), mark={"type": "rect"}, encoding=encoding)


def _heat(title: str, domain: list[float]) -> Spec:
    return {
        "field": "value",
        "type": "quantitative",
        "title": clean(title),
        "scale": {"scheme": "viridis", "domain": domain},
        "legend": {"gradientLength": 160, "direction": "horizontal"},
    }


def _alt(parameter: str, found: Sequence[Coefficient], name: str) -> str:
    told = [f"{parameter} of {name} by model and place."]
    by_model: dict[str, list[Coefficient]] = {}
    for one in found:
        by_model.setdefault(one.model, []).append(one)
    for model, own in list(by_model.items())[:12]:
        high, low = max(own, key=lambda c: c.value), min(own, key=lambda c: c.value)
        if high.value == low.value:
            told.append(f"{model}: {shown(high.value, 2)} everywhere.")
        else:
            told.append(
                f"{model}: from {shown(low.value, 2)} ({_place(low)}) to {shown(high.value, 2)}"
                f" ({_place(high)})."
            )
    return " ".join(told)


def _place(one: Coefficient) -> str:
    return f"{one.place} {one.module}".strip()
