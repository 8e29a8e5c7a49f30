"""How the numbers of what the search proposed moved while it went on: median and quartiles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.recipes.mixture import MixtureRecipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.report.charts import Palette, category, drawing, finite, hover, quantity, shown
from evomerge.report.coefficients import ALL, coefficients
from evomerge.report.figures import Panel, Part, Picture, Spec, Text
from evomerge.report.run import Run
from evomerge.text import clean

Key = tuple[str, str, str, str]

_LEAST = 12  # candidates, below which nothing moves
_PERIODS = 12
_MOST_BANDS = 16  # that have a panel each; more share one heat map
_MOST_ROWS = 60


def movement(run: Run, palette: Palette, stage: int, said: str = "") -> list[Part]:
    """Return the picture of one stage.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> movement(run, Palette(run), 0)[0].text
    'Too few candidates have been scored to show how their coefficients moved (2; it takes 12).'
    """
    rows = [r for r in run.scored if r.stage == stage and r.id in run.recipes]
    rows = [r for r in rows if r.origin in ("search", "seed")]
    if len(rows) < _LEAST:
        text = (
            f"Too few candidates{said} have been scored to show how their coefficients moved"
            f" ({len(rows)}; it takes {_LEAST})."
        )
        return [Text(text, "note")]
    recipes = [run.recipes[row.id] for row in rows]
    routed = any(isinstance(recipe, RoutingRecipe) for recipe in recipes)
    keys, table = matrix(
        [{c.key: c.value for c in coefficients(r, run.label_of_model, bins=1)} for r in recipes]
    )
    if not keys:
        return []
    periods = np.array_split(np.arange(len(rows)), min(_PERIODS, len(rows) // 4))
    ids = np.array([row.id for row in rows])
    mixed = any(isinstance(recipe, MixtureRecipe) for recipe in recipes)
    names = [_name(key, mixed) for key in keys]
    cells = []
    for period in periods:
        part = table[period]
        low, middle, high = np.nanquantile(part, [0.25, 0.5, 0.75], axis=0)
        if routed:  # a layer is passed or not, of which a median says little
            middle = np.nanmean(part, axis=0)
        when = f"candidates {ids[period].min()} to {ids[period].max()}"
        for n, name in enumerate(names):
            cells.append(
                {
                    "name": name,
                    "model": keys[n][3],
                    "x": float(ids[period].mean()),
                    "when": when,
                    "low": low[n],
                    "middle": middle[n],
                    "high": high[n],
                    "text": f"{shown(middle[n], 2)} ({shown(low[n], 2)} to {shown(high[n], 2)})",
                }
            )
    statistic = "mean" if routed else "median"
    alt = _alt(cells, names, statistic, len(rows))
    title = f"How the proposals moved{said}"
    if len(keys) <= _MOST_BANDS and not routed:
        reading = (
            f"Each panel is one coefficient of {len(rows):,} candidates, from the first proposed to"
            " the last: the line is the median of a period, the band the middle half. A band that"
            " narrows is a search that has settled. What is always equal shares a panel."
        )
        panels = _bands(cells, names, alt, palette)
        return [Picture(title, alt, reading, panels, 160)]
    reading = (
        f"A row for each coefficient, time from left to right in periods of as many candidates"
        f" ({len(rows):,} in all); the colour is the {statistic}. A row that keeps its colour has"
        " settled."
    )
    return [Picture(title, alt, reading, [_heat(cells, names, statistic, alt)])]


def matrix(found: Sequence[Mapping[Key, float]]) -> tuple[list[Key], np.ndarray]:
    """Return the numbers that vary, without those that another equals everywhere.

    Args:
        found: of each candidate, what its recipe has.

    Returns:
        What each column is, and (candidates, columns) float64, NaN where a recipe has it not.

    >>> a, b, c = ("w", "x", "", "ja"), ("w", "y", "", "ja"), ("w", "z", "", "ja")
    >>> matrix([{a: 1.0, b: 1.0, c: 5.0}, {a: 2.0, b: 2.0, c: 5.0}])
    ([('w', 'x', '', 'ja')], array([[1.],
           [2.]]))
    """
    keys = list(dict.fromkeys(key for one in found for key in one))
    table = np.array([[one.get(key, np.nan) for key in keys] for one in found], float)
    kept, seen = [], set()
    for column in range(len(keys)):
        values = table[:, column]
        known = values[~np.isnan(values)]
        if len(known) and np.ptp(known) > 0 and values.tobytes() not in seen:
            seen.add(values.tobytes())
            kept.append(column)
    return [keys[column] for column in kept], table[:, kept]


def _name(key: Key, mixed: bool) -> str:
    parameter, place, module, model = key
    who = "" if model == ALL else model
    where = "" if mixed else place
    return clean(" ".join(part for part in (parameter, who, where, module) if part))


def _bands(
    cells: list[dict[str, Any]], names: list[str], alt: str, palette: Palette
) -> list[Panel]:
    panels = []
    low, high = min(c["low"] for c in cells), max(c["high"] for c in cells)
    for name in names:
        own = [cell for cell in cells if cell["name"] == name]
        colour = palette.colour(own[0]["model"])
        x = quantity("x", "candidate", axis={"grid": False, "tickCount": 3, "format": "~s"})
        scale = {"domain": [low, high], "nice": True}
        y = {"axis": {"tickCount": 4}, "scale": scale}
        layer: list[Spec] = [
            {
                "mark": {"type": "area", "opacity": 0.25, "color": colour},
                "encoding": {"x": x, "y": quantity("low", None, **y), "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "color": colour, "strokeWidth": 2},
                "encoding": {"x": x, "y": quantity("middle", None, **y)},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 22, "color": colour},
                "encoding": {
                    "x": x,
                    "y": quantity("middle", None, **y),
                    "tooltip": hover(("when", "of"), ("text", "median, quartiles")),
                },
            },
        ]
        spec = drawing(90, f"{name}. {alt}"[:400], data=finite(own), layer=layer)
        panels.append(Panel(spec, 140, name))
    return panels


def _heat(cells: list[dict[str, Any]], names: list[str], statistic: str, alt: str) -> Panel:
    shown_names = names[:_MOST_ROWS]
    rows = [cell for cell in cells if cell["name"] in set(shown_names)]
    whens = list(dict.fromkeys(cell["when"] for cell in rows))
    height = 15 * len(shown_names)
    encoding = {
        "x": category(
            "when",
            "time: candidates in order",
            sort=whens,
            axis={"labels": False, "ticks": False, "grid": False},
        ),
        "y": category("name", None, axis={"grid": False, "labelLimit": 170, "labelFontSize": 10}),
        "color": {
            "field": "middle",
            "type": "quantitative",
            "title": statistic,
            "scale": {"scheme": "viridis"},
            "legend": {"gradientLength": 160, "direction": "horizontal"},
        },
        "tooltip": hover(("name", "coefficient"), ("when", "of"), ("text", statistic)),
    }
    spec = drawing(height, alt, data=finite(rows), mark="rect", encoding=encoding)
    return Panel(spec, height + 110)


def _alt(cells: list[dict[str, Any]], names: list[str], statistic: str, count: int) -> str:
    told = [f"The {statistic} of {len(names)} coefficients over {count:,} candidates in order."]
    for name in names[:16]:
        own = [cell for cell in cells if cell["name"] == name]
        first, last = own[0], own[-1]
        told.append(f"{name}: from {first['text']} to {last['text']}.")
    return " ".join(told)
