"""The front: what trades one objective for another, on search items and on those held out."""

import itertools
from collections.abc import Sequence
from typing import Any

from evomerge.report.charts import (
    FAINT,
    INK,
    INK2,
    STAR,
    Palette,
    best_key,
    category,
    drawing,
    finite,
    hover,
    quantity,
    shown,
    thinned,
)
from evomerge.report.figures import Panel, Part, Picture, Section, Spec, Table, Text
from evomerge.report.front_choice import chosen
from evomerge.report.run import Run
from evomerge.scoring.outcome import Score
from evomerge.search.objectives import Objective
from evomerge.text import Z95, clean

_MOST_PAIRS = 6  # of objectives, each with a panel of its own
_MOST_DOTS = 1000

Rows = list[dict[str, Any]]


def front(run: Run, palette: Palette) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> [type(part).__name__ for part in front(run, Palette(run)).parts]
    ['Text', 'Picture', 'Table']
    """
    if not run.front:
        text = "No candidate has been scored on all search items yet."
        return Section("front", "The front", (Text(text),))
    picked = chosen(run)
    pairs = list(itertools.combinations(run.objectives, 2))
    parts: list[Part] = [Text(_introduction(run, picked))]
    if 0 < len(pairs) <= _MOST_PAIRS:
        parts.append(_scatter(run, palette, pairs, picked))
    if len(run.objectives) == 1 or len(pairs) > _MOST_PAIRS:
        parts.append(_dots(run, palette, picked))
    parts.append(_table(run, picked))
    return Section("front", "The front", tuple(parts))


def _introduction(run: Run, picked: dict[int, str]) -> str:
    count = len(run.front)
    if len(run.objectives) == 1:
        return (
            "There is one objective, so the front is the best alone; the picture has the best of"
            " what was scored on all search items, beside the baselines."
        )
    found = "One model is" if count == 1 else f"{count:,} models are"
    told = f"{found} on the front: no other is as good on every search objective and better on one."
    if len(picked) < count:
        told += (
            f" {len(picked)} of them stand out below, chosen to lie far apart; the others are dots."
        )
    return told


# --- two objectives or a few ---------------------------------------------------------------


def _scatter(
    run: Run, palette: Palette, pairs: Sequence[tuple[Objective, Objective]], picked: dict[int, str]
) -> Picture:
    alt = _alt(run, picked)
    several = len(pairs) > 1
    height = 280 if several else 420
    panels = []
    for x, y in pairs:
        spec = drawing(height, alt, layer=_layers(run, palette, x, y, picked, not several))
        title = f"{x.name} and {y.name}" if several else ""
        panels.append(Panel(spec, height + 60, title))
    reading = (
        "Each mark is a model; point at it for its name and scores. Filled: on search items, which"
        " chose it. A line leads to its hollow mark on held-out items, which did not: a long line"
        " towards worse scores is luck on the search items. Star: the best. Small dots: other"
        " candidates that were scored on all search items."
    )
    legend = [palette.key(run.name_of(row.id)) for row in run.baselines]
    kinds = {_kind(run, candidate) for candidate in [*picked, *_best(run)]}
    legend += [best_key(kind) for kind in ("on the front", "the best") if kind in kinds]
    least = 330 if several else 0
    return Picture("Search and held-out scores", alt, reading, panels, least, legend)


def _layers(
    run: Run,
    palette: Palette,
    x: Objective,
    y: Objective,
    picked: dict[int, str],
    written: bool,
) -> list[Spec]:
    labelled = [row.id for row in run.baselines]
    marked = list(dict.fromkeys([*labelled, *picked, *_best(run)]))
    others = [row.id for row in run.in_full if row.id not in set(marked)]
    others = [others[i] for i in thinned(len(others), _MOST_DOTS)]
    dots = [_point(run, c, x, y, "search") for c in others]
    search = [_point(run, c, x, y, "search") for c in marked]
    both = [r for r in (_line(run, c, x, y) for c in marked) if r]
    held = [{**r, "x": r["x2"], "y": r["y2"]} for r in both]
    axes = {
        "x": quantity("x", _axis(x)),
        "y": quantity("y", _axis(y)),
    }
    names = [run.name_of(c) for c in labelled]
    colours, shapes = palette.scales([*names, "on the front", "the best"])
    colours["range"][-2:], shapes["range"][-2:] = [INK, INK], ["circle", STAR]
    kinds = {
        "color": category("kind", None, scale=colours, legend=None),
        "shape": category("kind", None, scale=shapes, legend=None),
    }
    tooltip = hover(("who", "model"), ("search", "on search items"), ("held", "held out"))
    mark = {"type": "point", "size": 110, "strokeWidth": 1.6, "filled": True, "opacity": 1}
    return [
        {
            "data": finite(dots),
            "mark": {"type": "point", "filled": True, "size": 14, "color": FAINT, "opacity": 1},
            "encoding": {**axes, "tooltip": tooltip},
        },
        {
            "data": finite(both),
            "mark": {"type": "rule", "strokeWidth": 1, "color": INK2, "opacity": 0.6},
            "encoding": {**axes, "x2": {"field": "x2"}, "y2": {"field": "y2"}},
        },
        {
            "data": finite(held),
            "mark": {**mark, "filled": False, "size": 70, "fill": "var(--paper)"},
            "encoding": {**axes, **kinds, "tooltip": tooltip},
        },
        {"data": finite(search), "mark": mark, "encoding": {**axes, **kinds, "tooltip": tooltip}},
        {
            "data": finite(_apart(search, held) if written else []),
            "mark": {"type": "text", "align": "left", "dx": 9, "dy": -7, "color": INK},
            "encoding": {**axes, "text": {"field": "text"}},
        },
    ]


def _best(run: Run) -> list[int]:
    return [c for c in (run.best, run.best_found) if c is not None and c in run.search]


def _apart(points: Rows, others: Rows) -> Rows:
    """Return the points beside which their names can be written without touching a mark.

    A name stands to the right, a little above; a letter is about a hundredth of the width.
    """
    marks = [*points, *others]
    wide, high = (max(p[k] for p in marks) - min(p[k] for p in marks) or 1.0 for k in ("x", "y"))
    kept: Rows = []
    for point in points:
        reach = (0.02 + 0.01 * len(point["text"])) * wide
        free = not any(
            0 < other["x"] - point["x"] < reach and -0.01 < (other["y"] - point["y"]) / high < 0.05
            for other in marks
        )
        if point["text"] and free:
            kept.append(point)
    return kept


def _axis(objective: Objective) -> str:
    better = "more is better" if objective.sign > 0 else "less is better"
    return f"{objective.name} ({'cost' if objective.cost else 'mean over items'}, {better})"


def _kind(run: Run, candidate: int) -> str:
    if run.row(candidate).origin == "baseline":
        return run.name_of(candidate)
    return "the best" if candidate == run.best_found else "on the front"


def _point(run: Run, candidate: int, x: Objective, y: Objective, split: str) -> dict[str, Any]:
    scores = run.search[candidate]
    is_baseline = run.row(candidate).origin == "baseline"
    return {
        "x": scores[x.name].mean,
        "y": scores[y.name].mean,
        "kind": _kind(run, candidate),
        "who": run.name_of(candidate),
        "text": clean(run.name_of(candidate))[:24] if is_baseline else "",
        "search": said(run, run.search.get(candidate)),
        "held": said(run, run.heldout.get(candidate)),
    }


def _line(run: Run, candidate: int, x: Objective, y: Objective) -> dict[str, Any] | None:
    """Return where a line begins and ends; None where a side is missing."""
    held = run.heldout.get(candidate, {})
    if not all(o.name in held or o.cost for o in (x, y)):
        return None
    point = _point(run, candidate, x, y, "search")
    ends = [held[o.name].mean if o.name in held else point[k] for o, k in ((x, "x"), (y, "y"))]
    return {**point, "x2": ends[0], "y2": ends[1]}


def said(run: Run, scores: Any) -> str:
    """Say scores by objective.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> said(run, run.search[3]), said(run, None)
    ('accuracy 0.750, length 16.000', 'not scored')
    """
    if not scores:
        return "not scored"
    return ", ".join(
        f"{o.name} {shown(scores[o.name].mean)}" for o in run.objectives if o.name in scores
    )


def _alt(run: Run, picked: dict[int, str]) -> str:
    told = []
    for candidate in [*(row.id for row in run.baselines), *_best(run)][:14]:
        held = said(run, run.heldout.get(candidate))
        told.append(
            f"{run.name_of(candidate)}: search {said(run, run.search[candidate])}; held out {held}"
        )
    names = " and ".join(o.name for o in run.objectives)
    return (
        f"Scores on {names} of {len(run.in_full)} models, {len(run.front)} of them on the front."
        f" {'. '.join(dict.fromkeys(told))}."
    )


# --- one objective, or many ------------------------------------------------------------------


def _dots(run: Run, palette: Palette, picked: dict[int, str]) -> Picture:
    ranked = sorted(run.in_full, key=lambda r: (r.violation, -(r.value or 0.0), r.id))
    shown_rows = [row.id for row in run.baselines]
    shown_rows += list(picked) if len(run.objectives) > 1 else [r.id for r in ranked[:8]]
    order = [r.id for r in ranked if r.id in {*shown_rows, *_best(run)}]
    alt = _alt(run, picked)
    height = 26 * len(order)
    panels = []
    for objective in run.objectives:
        spec = drawing(height, alt, layer=_dot_layers(run, palette, objective, order))
        title = objective.name if len(run.objectives) > 1 else ""
        panels.append(Panel(spec, height + 90, title))
    reading = (
        "A row for each model, the best on search items above. Filled: the mean over search items,"
        " which chose the best. Hollow: over held-out items, which chose nothing. The bars are 95 %"
        " intervals of each mean by itself; the verdict's paired intervals are narrower."
    )
    several = len(run.objectives) > 1
    return Picture("Scores with intervals", alt, reading, panels, 330 if several else 0)


def _dot_layers(run: Run, palette: Palette, objective: Objective, order: list[int]) -> list[Spec]:
    rows: Rows = []
    for candidate in order:
        for side, scores in (("search items", run.search), ("held-out items", run.heldout)):
            score = scores.get(candidate, {}).get(objective.name)
            if score is not None:
                rows.append(_dot(run, candidate, side, score))
    names = list(dict.fromkeys(clean(run.name_of(c)) for c in order))
    sides = {"domain": ["search items", "held-out items"]}
    at = {
        "x": quantity("mean", _axis(objective)),
        "y": category("who", None, sort=names, axis={"labelLimit": 150, "grid": True}),
        "yOffset": {"field": "side", "type": "nominal", "scale": sides},
    }
    tooltip = hover(("who", "model"), ("side", "on"), ("text", "mean and 95 % interval"))
    fill = {
        **category("side", None, scale={**sides, "range": [INK, "var(--paper)"]}),
        "legend": {"symbolStrokeColor": INK, "symbolStrokeWidth": 1.5},
    }
    return [
        {
            "data": finite(rows),
            "mark": {"type": "rule", "color": INK2, "strokeWidth": 1.4},
            "encoding": {**at, "x": quantity("low", _axis(objective)), "x2": {"field": "high"}},
        },
        {
            "data": finite(rows),
            "mark": {"type": "point", "size": 60, "stroke": INK, "opacity": 1, "strokeWidth": 1.5},
            "encoding": {**at, "fill": fill, "tooltip": tooltip},
        },
    ]


def _dot(run: Run, candidate: int, side: str, score: Score) -> dict[str, Any]:
    half = Z95 * score.stderr
    return {
        "who": run.name_of(candidate),
        "side": side,
        "mean": score.mean,
        "low": score.mean - half,
        "high": score.mean + half,
        "text": f"{shown(score.mean)} ± {shown(half)} ({score.items:,} items)",
    }


# --- the table ---------------------------------------------------------------------------------


def _table(run: Run, picked: dict[int, str]) -> Table:
    several = len(run.objectives) > 1
    headers = ["model", "why it is here", "value"]
    for objective in run.objectives:
        headers += [f"{objective.name}, search", f"{objective.name}, held out"]
    best = [c for c in _best(run) if c not in picked]
    rows: list[list[object]] = []
    strong = []
    for candidate in [*picked, *best, *(row.id for row in run.baselines)]:
        if candidate in {r[0] for r in rows}:
            continue
        row = run.row(candidate)
        why = picked.get(candidate, "baseline" if row.origin == "baseline" else "the best found")
        if row.violation:
            why = f"{why}, misses a constraint".strip(", ")
        cells: list[object] = [candidate, why or "front", shown(row.value)]
        for objective in run.objectives:
            cells.append(_interval(run.search[candidate].get(objective.name)))
            failed = run.final_failures.get(candidate)
            held = _interval(run.heldout.get(candidate, {}).get(objective.name))
            cells.append(f"failed: {failed}" if failed else held)
        if candidate == run.best_found:
            strong.append(len(rows))
        rows.append(cells)
    named = [[run.name_of(int(str(r[0]))), *r[1:]] for r in rows]
    caption = (
        "The front, thinned, and the baselines: means with 95 % intervals; value is what the"
        f" search maximizes (0: the worst baseline{' on each objective' if several else ''}, 1: the"
        " best)"
    )
    return Table(headers, named, caption, numeric=range(2, len(headers)), strong=strong)


def _interval(score: Score | None) -> str:
    return "–" if score is None else f"{shown(score.mean)} ± {shown(Z95 * score.stderr)}"
