"""The genes: where the best tenth lies on each, and which of them matter."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.archive.history import Row
from evomerge.report.charts import (
    FAINT,
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
from evomerge.report.figures import Panel, Part, Picture, Section, Spec, Text
from evomerge.report.importance import ROUNDS, Importance, enough, importances
from evomerge.report.run import Run
from evomerge.text import clean

_MOST_GENES = 40
_MOST_MARKS = 2400
_LEAST = 20  # candidates, of whom a tenth is two
_LEAST_EXPLAINED = 0.05  # of the values' variance, below which importances are noise
_BEST = "var(--accent)"


def genes(run: Run, palette: Palette) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> genes(run, Palette(run)).parts[0].text
    'Too few candidates have been scored to compare their genes (2; it takes 20).'
    """
    parts: list[Part] = []
    for stage in range(len(run.stages)):
        said = f" (stage {run.stages[stage]})" if len(run.stages) > 1 else ""
        parts += _of_stage(run, stage, said)
    return Section("genes", "Genes", tuple(parts))


def _of_stage(run: Run, stage: int, said: str) -> list[Part]:
    rows = [r for r in run.scored if r.stage == stage and r.genome is not None]
    rows = [r for r in rows if r.origin in ("search", "seed")]
    if len(rows) < _LEAST:
        text = (
            f"Too few candidates{said} have been scored to compare their genes"
            f" ({len(rows)}; it takes {_LEAST})."
        )
        return [Text(text)]
    width = len(rows[0].genome if rows[0].genome is not None else ())
    genomes = np.array([r.genome for r in rows if r.genome is not None and len(r.genome) == width])
    values = np.array([r.best for r in rows if r.genome is not None and len(r.genome) == width])
    names = _names(run, width)
    best = np.argsort(-values, kind="stable")[: max(2, len(values) // 10)]
    needed = enough(len(values), width)
    found, explained = ([], 0.0) if needed else importances(genomes, values)
    order = np.argsort([-f.middle for f in found], kind="stable") if found else np.arange(width)
    order = order[:_MOST_GENES]
    strips = _strips(names, genomes, values, best, order, rows, said)
    if needed:
        text = (
            f"Too few candidates{said} to say which of {width} genes matter ({len(values)}; it"
            f" takes {needed})."
        )
        return [strips, Text(text, "note")]
    if explained < _LEAST_EXPLAINED:
        text = (
            f"Which genes matter{said} cannot be said: of the value of candidates that they have"
            f" not seen, forests explain {max(explained, 0.0):.0%} of the variance by the genes"
            f" ({len(values):,} candidates)."
        )
        return [strips, Text(text, "note")]
    return [strips, _bars(names, found, order, explained, len(values), said)]


def _names(run: Run, width: int) -> list[str]:
    """Return the genes' names where the archive has those of this stage, else their numbers."""
    named = [str(name) for name in run.provenance.get("genes", ())]
    return named if len(named) == width else [f"gene {n + 1}" for n in range(width)]


def _strips(
    names: Sequence[str],
    genomes: np.ndarray,
    values: np.ndarray,
    best: np.ndarray,
    order: np.ndarray,
    rows: Sequence[Row],
    said: str,
) -> Picture:
    rest = np.setdiff1d(np.arange(len(values)), best)
    each = max(8, _MOST_MARKS // (2 * len(order)))
    few_best, few_rest = (part[thinned(len(part), each)] for part in (best, rest))
    marks: list[dict[str, Any]] = []
    for kind, chosen in (("others", few_rest), ("the best tenth", few_best)):
        for gene in order:
            for i in chosen:
                marks.append(
                    {
                        "gene": names[gene],
                        "x": genomes[i, gene],
                        "kind": kind,
                        "who": f"candidate {rows[i].id}",
                        "text": shown(values[i]),
                    }
                )
    kinds = ["others", "the best tenth"]
    named = [clean(names[gene]) for gene in order]
    height = (20 if len(order) > 4 else 32) * len(order)
    encoding = {
        "x": quantity("x", "share of the gene's range", scale={"domain": [0, 1]}),
        "y": category("gene", None, sort=named, axis={"labelLimit": 190, "grid": True}),
        "yOffset": {"field": "kind", "type": "nominal", "scale": {"domain": kinds}},
        "color": category("kind", None, scale={"domain": kinds, "range": [FAINT, _BEST]}),
        "tooltip": hover(("who", "model"), ("gene", "gene"), ("x", "at"), ("text", "value")),
    }
    mark = {"type": "tick", "thickness": 1.6, "height": 8, "bandSize": 9, "opacity": 0.75}
    alt = _alt(names, genomes, best, order, len(values))
    spec = drawing(height, alt, data=finite(marks), mark=mark, encoding=encoding)
    drawn = len(few_best) + len(few_rest)
    thin = "" if drawn == len(values) else f" {drawn:,} of them are drawn."
    reading = (
        f"A row for each gene; a tick is one of {len(values):,} candidates.{thin} Coloured, in the"
        " lower half of a row: the tenth of highest value. Where they huddle, the gene matters or"
        " the search has settled; where they lie as the grey ones do, it does not."
    )
    return Picture(f"Where the best tenth lies{said}", alt, reading, [Panel(spec, height + 90)])


def _alt(
    names: Sequence[str], genomes: np.ndarray, best: np.ndarray, order: np.ndarray, count: int
) -> str:
    told = [f"The genes of {count:,} candidates; the middle half of the best tenth, and of all."]
    for gene in order[:16]:
        low, high = np.quantile(genomes[best, gene], [0.25, 0.75])
        every = np.quantile(genomes[:, gene], [0.25, 0.75])
        told.append(
            f"{names[gene]}: {shown(low, 2)} to {shown(high, 2)}, all {shown(every[0], 2)} to"
            f" {shown(every[1], 2)}."
        )
    return " ".join(told)


def _bars(
    names: Sequence[str],
    found: Sequence[Importance],
    order: np.ndarray,
    explained: float,
    count: int,
    said: str,
) -> Picture:
    rows = []
    for gene in order:
        one = found[gene]
        text = f"{shown(one.middle)} ({shown(one.low)} to {shown(one.high)})"
        rows.append({"gene": names[gene], **one._asdict(), "text": text})
    height = 20 * len(order)
    named = [clean(names[gene]) for gene in order]
    title = "added error (share of variance)"
    y = category("gene", None, sort=named, axis={"labelLimit": 190, "grid": False})
    layer: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 1.6, "color": INK2},
            "encoding": {"y": y, "x": quantity("low", title), "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 60, "color": _BEST, "opacity": 1},
            "encoding": {
                "y": y,
                "x": quantity("middle", title, scale={"zero": True}),
                "tooltip": hover(("gene", "gene"), ("text", "importance (90 % interval)")),
            },
        },
    ]
    told = "; ".join(f"{r['gene']} {r['text']}" for r in rows[:12])
    alt = f"Importance of genes for the value, of {count:,} candidates, the largest first: {told}."
    reading = (
        f"Forests predict the value from the genes of {count:,} candidates; on those that they have"
        f" not seen they explain {explained:.0%} of its variance. A point is the"
        f" error that they add when a gene is shuffled, the median over {ROUNDS} bootstrap samples;"
        " a bar is the middle 90 %, and one that reaches 0 says nothing."
        " It holds for where the search has been, not for all of the space."
    )
    spec = drawing(height, alt, data=finite(rows), layer=layer)
    return Picture(f"Which genes matter{said}", alt, reading, [Panel(spec, height + 70)])
