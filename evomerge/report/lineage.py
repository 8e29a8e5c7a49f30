"""Who descends from whom, for what was bred: the ancestors of the best, and the best parents."""

from collections import Counter
from typing import Any

from evomerge.report.charts import INK, INK2, STAR, Palette, drawing, finite, hover, shown
from evomerge.report.figures import Panel, Part, Picture, Section, Spec, Table, Text
from evomerge.report.run import Run
from evomerge.text import clean

_MOST = 60  # ancestors in the picture
_MOST_PARENTS = 8


def lineage(run: Run, palette: Palette) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> lineage(run, Palette(run)).parts[0].text
    'Nothing was bred in this search: its candidates are points of a space and have no parents.'
    """
    title = "Lineage"
    children = [row for row in run.rows if row.parents]
    if not children:
        text = (
            "Nothing was bred in this search: its candidates are points of a space and have no"
            " parents."
        )
        return Section("lineage", title, (Text(text),))
    parts: list[Part] = []
    bred = [b for b in run.bests if b is not None and _parents(run, b)]
    for best in bred:
        parts.append(_tree(run, palette, best))
    if not bred:
        parts.append(Text("The best has no parents."))
    parts.append(_families(run))
    return Section("lineage", title, tuple(parts))


def _parents(run: Run, candidate: int) -> list[int]:
    """Return a candidate's parents; of one that was scored before, those of the first of it."""
    row = run.row(candidate)
    if not row.parents:
        first = run.first_of(row.recipe_id)
        row = run.row(first)
    known = [p for p in row.parents if p != candidate]
    return list(dict.fromkeys(known))


def generations(run: Run, candidate: int) -> dict[int, int]:
    """Return the ancestors of a candidate, nearest first, each with its generation back from it.

    >>> from evomerge.testing.reports import example_run
    >>> generations(example_run(), 3)
    {3: 0}
    """
    found, front = {candidate: 0}, [candidate]
    while front and len(found) < _MOST:
        back = []
        for child in front:
            for parent in _parents(run, child):
                if parent not in found and len(found) < _MOST:
                    found[parent] = found[child] + 1
                    back.append(parent)
        front = back
    return found


def _tree(run: Run, palette: Palette, best: int) -> Picture:
    found = generations(run, best)
    columns: dict[int, list[int]] = {}
    for candidate, back in found.items():
        columns.setdefault(back, []).append(candidate)
    deepest = max(columns)
    at: dict[int, tuple[float, float]] = {}
    for back, members in columns.items():
        for rank, candidate in enumerate(members):
            at[candidate] = (float(deepest - back), (rank + 1.0) / (len(members) + 1.0))
    edges: list[dict[str, Any]] = []
    for child in found:
        for parent in _parents(run, child):
            if parent in at and at[parent][0] < at[child][0]:
                (x, y), (x2, y2) = at[parent], at[child]
                edges.append({"x": x, "y": y, "x2": x2, "y2": y2})
    nodes = [_node(run, palette, c, *at[c], best) for c in found]
    widest = max(map(len, columns.values()))
    height = max(160, min(560, 34 * widest))
    name = run.name_of(best)
    seeds = [n["who"] for n in nodes if n["kind"] == "source"]
    cut = " Older ancestors are left out." if len(found) >= _MOST else ""
    alt = (
        f"The ancestors of {name}, {deepest} generations back: {len(found) - 1} candidates."
        f" Sources among them: {', '.join(seeds) or 'none'}.{cut}"
    )
    reading = (
        f"From left to right, from the eldest to {name}; a line leads from a parent to its child."
        f" Coloured marks and crosses are what the search began with.{cut}"
    )
    spec = drawing(height, alt, layer=_layers(edges, nodes, deepest))
    return Picture(f"The ancestors of {name}", alt, reading, [Panel(spec, height + 60)])


def _node(
    run: Run, palette: Palette, candidate: int, x: float, y: float, best: int
) -> dict[str, Any]:
    row = run.row(candidate)
    label = row.label if row.origin in ("baseline", "seed") else None
    who = run.name_of(candidate) if label is None else label
    value = row.best
    return {
        "x": x,
        "y": y,
        "who": who,
        "short": clean(label)[:14] if label else str(candidate),
        "kind": "source" if label else "bred",
        "colour": palette.colour(label) if label else INK2,
        "shape": STAR if candidate == best else palette.shape(label) if label else "circle",
        "text": "not scored yet" if value is None else shown(value),
        "size": 220 if candidate == best else 90,
    }


def _layers(edges: list[dict[str, Any]], nodes: list[dict[str, Any]], deepest: int) -> list[Spec]:
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [-0.4, deepest + 0.6]},
    }
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [0, 1]},
    }
    raw = {"type": "nominal", "scale": None, "legend": None}
    return [
        {
            "data": finite(edges),
            "mark": {"type": "rule", "color": INK2, "opacity": 0.45, "strokeWidth": 1},
            "encoding": {"x": x, "y": y, "x2": {"field": "x2"}, "y2": {"field": "y2"}},
        },
        {
            "data": finite(nodes),
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": {"field": "colour", **raw},
                "shape": {"field": "shape", **raw},
                "size": {"field": "size", "type": "quantitative", "scale": None, "legend": None},
                "tooltip": hover(("who", "model"), ("text", "value")),
            },
        },
        {
            "data": finite(nodes),
            "mark": {"type": "text", "dy": -10, "color": INK, "fontSize": 10},
            "encoding": {"x": x, "y": y, "text": {"field": "short"}},
        },
    ]


def _families(run: Run) -> Table:
    """Return who has the most children, and how these did."""
    counts: Counter[int] = Counter()
    best: dict[int, float] = {}
    for row in run.rows:
        for parent in set(row.parents):
            counts[parent] += 1
            if row.best is not None:
                best[parent] = max(best.get(parent, row.best), row.best)
    rows: list[tuple[str, ...]] = []
    for parent, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        if len(rows) < _MOST_PARENTS and parent in run.known:
            own = run.row(parent)
            who = own.label if own.origin in ("baseline", "seed") and own.label else None
            name = who or run.name_of(parent)
            rows.append((name, f"{count:,}", shown(own.best), shown(best.get(parent))))
    caption = "Who has the most children; values are estimates where a part of the items was scored"
    headers = ("parent", "children", "its value", "its best child's")
    return Table(headers, rows, caption, numeric=(1, 2, 3))
