"""Who solves which held-out items: how alike models are, and where the merge wins and loses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.report.cases import wins_and_losses
from evomerge.report.charts import ON_HEAT, Palette, category, drawing, finite, hover, shown
from evomerge.report.figures import Panel, Part, Picture, Section, Spec, Table, Text
from evomerge.report.front_choice import chosen
from evomerge.report.run import Run
from evomerge.text import clean

_MOST_MODELS = 14
_MOST_PATTERNS = 12
_MOST_SOURCES = 8  # in a pattern, beside the best


def answers(run: Run, palette: Palette) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> answers(run, Palette(run)).parts[0].text
    'Fewer than two models have been scored on held-out items, so there is nothing to compare yet.'
    """
    title = "Who solves what"
    found = models(run)
    if len(found) < 2:
        text = (
            "Fewer than two models have been scored on held-out items, so there is nothing to"
            " compare yet."
        )
        return Section("answers", title, (Text(text),))
    parts: list[Part] = [_agreement(run, found)]
    if binary(run, found):
        parts.append(_counts(run, found))
        parts.append(_patterns(run, found))
    parts += wins_and_losses(run)
    return Section("answers", title, tuple(parts))


def models(run: Run) -> list[int]:
    """Return who is compared: baselines, the best, then the front, scored on all held-out items.

    >>> from evomerge.testing.reports import example_run
    >>> models(example_run())
    [3]
    """
    names = [o.name for o in run.heldout_objectives]
    best = [b for b in (run.best_found,) if b is not None]
    wanted = dict.fromkeys([*(row.id for row in run.baselines), *best, *chosen(run)])
    whole = [c for c in wanted if names and all(n in run.items.get(c, {}) for n in names)]
    return (
        whole[:_MOST_MODELS]
        if not best or best[0] in whole[:_MOST_MODELS]
        else [
            *whole[: _MOST_MODELS - 1],
            *(b for b in best if b in whole),
        ]
    )


def binary(run: Run, found: Sequence[int]) -> bool:
    """Tell whether every item is either solved or not.

    >>> from evomerge.testing.reports import example_run
    >>> binary(example_run(), [3])
    False
    """
    return all(
        bool(((scores == 0) | (scores == 1)).all())
        for c in found
        for scores in run.items[c].values()
    )


def solved(run: Run, candidate: int) -> np.ndarray:
    """Return a candidate's (items,) scores of all objectives, one after the other; more is better.

    >>> from evomerge.testing.reports import example_run
    >>> solved(example_run(), 3)[:4].tolist()
    [0.375, 0.875, 0.375, 0.875]
    """
    items = run.items[candidate]
    parts = []
    for objective in run.heldout_objectives:
        scores = items[objective.name].astype(float)
        if objective.sign < 0:
            scores = 1.0 - scores if ((scores == 0) | (scores == 1)).all() else -scores
        parts.append(scores)
    return np.concatenate(parts)


# --- how alike -------------------------------------------------------------------------------


def _agreement(run: Run, found: Sequence[int]) -> Picture:
    table = np.array([solved(run, candidate) for candidate in found])
    is_binary = binary(run, found)
    alike = _shares(table) if is_binary else _correlations(run, found)
    names = [clean(run.name_of(candidate)) for candidate in found]
    rows: list[dict[str, Any]] = []
    low = float(min(alike[i, j] for i in range(len(found)) for j in range(i))) if alike.size else 0
    middle = low + 0.6 * (1.0 - low)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            if j < i:
                value = float(alike[i, j])
                rows.append(
                    {
                        "one": one,
                        "other": other,
                        "value": value,
                        "text": f"{value:.0%}" if is_binary else shown(value, 2),
                        "pair": f"{one} and {other}",
                        "dark": value < middle,
                    }
                )
    what = (
        "share of items on which both are right or both are wrong"
        if is_binary
        else ("rank correlation of the items' scores")
    )
    title = "the same on" if is_binary else "correlation"
    at = {
        "x": category("other", None, sort=names, axis={"labelAngle": -40, "grid": False}),
        "y": category("one", None, sort=names, axis={"grid": False}),
    }
    size = {"expr": f"width / {max(1, len(names) - 1)} < 34 ? 0 : 11"}
    layer: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 1.5},
            "encoding": {
                **at,
                "color": {
                    "field": "value",
                    "type": "quantitative",
                    "title": title,
                    "scale": {"scheme": "viridis", "domain": [low, max(low + 1e-6, 1.0)]},
                    "legend": {
                        "format": ".0%" if is_binary else ".2f",
                        "gradientLength": 160,
                        "direction": "horizontal",
                    },
                },
                "tooltip": hover(("pair", "models"), ("text", title)),
            },
        },
        {
            "mark": {"type": "text", "fontSize": size},
            "encoding": {
                **at,
                "text": {"field": "text"},
                "color": ON_HEAT,
            },
        },
    ]
    alt = f"For each pair of models the {what}: " + "; ".join(
        f"{row['pair']} {row['text']}" for row in rows[:40]
    )
    reading = (
        f"Each cell is a pair of models, over {table.shape[1]:,} held-out items: the {what}. Two"
        " sources that agree little have the most to give each other; a merge that agrees with one"
        " source alone is little more than that source."
    )
    height = 27 * max(2, len(names) - 1)
    spec = drawing(height, alt, data=finite(rows), layer=layer)
    return Picture("How alike the models are", alt, reading, [Panel(spec, height + 150)])


def _shares(table: np.ndarray) -> np.ndarray:
    """Return the (models, models) shares of items on which two rows are equal."""
    return np.array([(table == row).mean(axis=1) for row in table])


def _correlations(run: Run, found: Sequence[int]) -> np.ndarray:
    """Return the (models, models) rank correlations, averaged over objectives by items."""
    total, weight = np.zeros((len(found), len(found))), 0.0
    for objective in run.heldout_objectives:
        scores = np.array([run.items[c][objective.name] for c in found], float)
        ranks = np.array([_ranks(row) for row in scores])
        centred = ranks - ranks.mean(axis=1, keepdims=True)
        norms = np.sqrt((centred**2).sum(axis=1))
        scale = np.where(np.outer(norms, norms) > 0, np.outer(norms, norms), np.inf)
        total += scores.shape[1] * (centred @ centred.T) / scale
        weight += scores.shape[1]
    return total / max(weight, 1.0)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values, equals with the mean of theirs (Spearman)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


# --- who solves what -------------------------------------------------------------------------


def _counts(run: Run, found: Sequence[int]) -> Table:
    """Return how many items each solves, alone among the sources, and against the best."""
    table = np.array([solved(run, c) for c in found]) == 1
    best = found.index(run.best_found) if run.best_found in found else None
    sources = {row.id for row in run.source_baselines}
    is_source = np.array([c in sources for c in found])
    by_sources = table[is_source].sum(axis=0)
    rows, total = [], table.shape[1]
    for index, candidate in enumerate(found):
        own = table[index]
        others = by_sources - (own if is_source[index] else 0)
        row = [run.name_of(candidate), f"{own.sum():,} ({own.mean():.1%})"]
        row.append(f"{int((own & (others == 0)).sum()):,}")
        if best is not None:
            row.append("" if index == best else f"{int((table[best] & ~own).sum()):,}")
            row.append("" if index == best else f"{int((own & ~table[best]).sum()):,}")
        rows.append(row)
    headers = ["model", f"solves, of {total:,}", "solves, and no (other) source does"]
    if best is not None:
        headers += ["the best solves, this does not", "this solves, the best does not"]
    caption = "Held-out items that each model solves"
    strong = [] if best is None else [best]
    return Table(headers, rows, caption, numeric=range(1, len(headers)), strong=strong)


def _patterns(run: Run, found: Sequence[int]) -> Table:
    """Return the commonest answers to the question which of the sources and the best solve it."""
    sources = [row.id for row in run.source_baselines if row.id in found][:_MOST_SOURCES]
    shown_models = [*sources, *(c for c in [run.best_found] if c in found)]
    table = np.array([solved(run, c) == 1 for c in shown_models if c is not None])
    patterns, counts = np.unique(table.T, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_PATTERNS]
    rows = [
        [
            *("●" if right else "○" for right in patterns[i]),
            f"{counts[i]:,}",
            f"{counts[i] / table.shape[1]:.1%}",
        ]
        for i in order
    ]
    headers = [*(run.name_of(c) for c in shown_models if c is not None), "items", "share"]
    more = len(counts) - len(order)
    rest = f" ({more} rarer patterns are left out)" if more > 0 else ""
    caption = f"Which of them solve an item (●), the commonest patterns first{rest}"
    return Table(headers, rows, caption, numeric=range(len(headers) - 2, len(headers)))
