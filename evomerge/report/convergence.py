"""How the search came to its best: over the items that were scored on the way."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.archive.history import Row
from evomerge.report.charts import (
    FAINT,
    INK,
    INK2,
    Palette,
    category,
    drawing,
    finite,
    hover,
    quantity,
    shown,
    thinned,
)
from evomerge.report.figures import Panel, Picture, Section, Spec, Text
from evomerge.report.run import Run
from evomerge.text import clean

_MOST_DOTS = 1500
_MOST_STEPS = 400
_WINDOW = 20  # the mean is over a 20th of the candidates, and 5 at least
_LEAST = 5


def convergence(run: Run, palette: Palette) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> [type(part).__name__ for part in convergence(run, Palette(run)).parts]
    ['Picture']
    """
    title = "Convergence"
    if not run.scored:
        text = Text("No candidate of the search has been scored yet.")
        return Section("convergence", title, (text,))
    rows = sorted((r for r in run.rows if r.told is not None), key=lambda r: (r.told or 0, r.id))
    spent = dict(zip((r.id for r in rows), np.cumsum([r.items for r in rows]), strict=True))
    best, means, dots = _best_so_far(rows, spent), _means(run, spent), _dots(run, spent)
    alt = _alt(run, rows, best, means)
    spec = drawing(
        360, alt, layer=_layers(run, palette, best, means, dots, int(spent[rows[-1].id]))
    )
    reading = (
        "Up: the value that the search maximizes, the weighted mean of the objectives; on each, 0"
        " is the worst baseline and 1 the best. Full line: the best that was scored on all search"
        " items. Broken line: the mean of what was proposed of late, estimates among them. Dots:"
        " candidates; hollow ones were scored on a part of the items, so that the highest of them"
        " are partly luck. Level lines: the baselines."
    )
    return Section("convergence", title, (Picture("Value", alt, reading, [Panel(spec, 460)]),))


def _best_so_far(rows: Sequence[Row], spent: dict[int, Any]) -> list[dict[str, Any]]:
    """Return where the best changed: of least violation, then of highest value."""
    found, best = [], (float("inf"), 0.0)
    for row in rows:
        if row.value is None or row.origin == "baseline":
            continue
        rank = (row.violation, -row.value)
        if rank < best:
            best = rank
            found.append({"x": spent[row.id], "value": row.value, "who": f"candidate {row.id}"})
    return found


def _means(run: Run, spent: dict[int, Any]) -> list[dict[str, Any]]:
    """Return the mean over a window that ends at each candidate."""
    scored = [r for r in run.scored if r.id in spent and r.origin != "recommended"]
    window = max(_LEAST, len(scored) // _WINDOW)
    values = np.array([row.best for row in scored], float)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(min(window, len(scored)), len(scored) + 1)
    means = (sums[ends] - sums[np.maximum(ends - window, 0)]) / np.minimum(ends, window)
    keep = thinned(len(ends), _MOST_STEPS)
    return [{"x": spent[scored[ends[i] - 1].id], "value": means[i]} for i in keep]


def _dots(run: Run, spent: dict[int, Any]) -> list[dict[str, Any]]:
    scored = [row for row in run.scored if row.id in spent]
    found = []
    for row in (scored[i] for i in thinned(len(scored), _MOST_DOTS)):
        full = row.value is not None
        items = f"{row.items:,} items" if row.copy_of is None else f"copy of {row.copy_of}"
        found.append(
            {
                "x": spent[row.id],
                "value": row.best,
                "how": "all items" if full else "a part of the items",
                "who": run.name_of(row.id),
                "text": f"{shown(row.best)}, {items}",
            }
        )
    return found


def _layers(
    run: Run,
    palette: Palette,
    best: list[dict[str, Any]],
    means: list[dict[str, Any]],
    dots: list[dict[str, Any]],
    end: int,
) -> list[Spec]:
    x = quantity("x", "search items scored so far", axis={"format": "~s", "grid": False})
    at = {"x": x, "y": quantity("value", "value")}
    baselines = [
        {"value": row.value, "who": run.name_of(row.id), "x": 0}
        for row in run.baselines
        if row.value is not None and row.stage == 0
    ]
    for row in baselines:
        row["colour"] = palette.colour(str(row["who"]))
    own = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
    steps = [*best, {**best[-1], "x": end}] if best else []
    sides = {"domain": ["all items", "a part of the items"]}
    fill = {
        **category("how", "candidate, scored on", scale={**sides, "range": [INK2, "transparent"]}),
        "legend": {"symbolStrokeColor": INK2, "symbolSize": 50, "symbolStrokeWidth": 1},
    }
    layers: list[Spec] = [
        {
            "data": finite(dots),
            "mark": {"type": "point", "size": 16, "stroke": FAINT, "strokeWidth": 1, "opacity": 1},
            "encoding": {**at, "fill": fill, "tooltip": hover(("who", "model"), ("text", "value"))},
        },
        {
            "data": finite(baselines),
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {
                "y": at["y"],
                "color": own,
                "tooltip": hover(("who", "baseline"), ("value", "value")),
            },
        },
        {
            "data": finite(_apart(baselines)),
            "mark": {"type": "text", "align": "right", "dx": -2, "dy": -6, "fontSize": 10.5},
            "encoding": {
                "y": at["y"],
                "x": {"value": "width"},
                "text": {"field": "who"},
                "color": own,
            },
        },
        {
            "data": finite(means),
            "mark": {"type": "line", "strokeWidth": 1.6, "strokeDash": [5, 3], "color": INK2},
            "encoding": at,
        },
        {
            "data": finite(steps),
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2, "color": INK},
            "encoding": at,
        },
        {
            "data": finite(best),
            "mark": {"type": "point", "filled": True, "size": 42, "color": INK, "opacity": 1},
            "encoding": {**at, "tooltip": hover(("who", "the best so far"), ("value", "value"))},
        },
    ]
    return [*layers, *_stage_lines(run, x, dots)]


def _apart(baselines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one label for baselines whose lines would lie upon each other."""
    ordered = sorted(baselines, key=lambda row: -row["value"])
    span = (ordered[0]["value"] - ordered[-1]["value"]) if ordered else 0.0
    found: list[dict[str, Any]] = []
    for row in ordered:
        if found and found[-1]["value"] - row["value"] < 0.05 * span:
            who = clean(f"{found[-1]['who']}, {row['who']}")
            found[-1] = {**found[-1], "who": who, "colour": INK2}
        else:
            found.append(dict(row))
    return found


def _stage_lines(run: Run, x: Spec, dots: list[dict[str, Any]]) -> list[Spec]:
    """Return where each stage after the first begins."""
    if len(run.stages) < 2:
        return []
    begins: list[dict[str, Any]] = []
    spent = 0
    first: dict[int, int] = {}
    for row in sorted((r for r in run.rows if r.told is not None), key=lambda r: r.told or 0):
        first.setdefault(row.stage, spent)
        spent += row.items
    for stage, at in first.items():
        if stage:
            begins.append({"x": at, "who": run.stages[stage]})
    mark = {"type": "text", "align": "left", "dx": 4, "color": INK2, "baseline": "top"}
    return [
        {
            "data": finite(begins),
            "mark": {"type": "rule", "color": INK2, "strokeDash": [2, 2]},
            "encoding": {"x": x},
        },
        {
            "data": finite(begins),
            "mark": mark,
            "encoding": {"x": x, "y": {"value": 2}, "text": {"field": "who"}},
        },
    ]


def _alt(
    run: Run, rows: Sequence[Row], best: list[dict[str, Any]], means: list[dict[str, Any]]
) -> str:
    told = [f"Value over {sum(row.items for row in rows):,} search items."]
    if best:
        told.append(
            f"The best that was scored in full rose from {shown(best[0]['value'])} to"
            f" {shown(best[-1]['value'])} in {len(best)} steps, the last after"
            f" {best[-1]['x']:,} items ({best[-1]['who']})."
        )
    if means:
        told.append(
            f"The mean of what was proposed went from {shown(means[0]['value'])} to"
            f" {shown(means[-1]['value'])}."
        )
    baselines = [f"{run.name_of(r.id)} {shown(r.value)}" for r in run.baselines]
    told.append(f"Baselines: {', '.join(baselines)}.")
    return " ".join(told)
