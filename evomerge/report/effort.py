"""Where the time went: merging, scoring, and the rest, of each worker."""

from typing import Any

from evomerge.report.charts import Palette, category, drawing, finite, hover, quantity, square_key
from evomerge.report.figures import Panel, Part, Picture, Section, Table, Text
from evomerge.report.run import Run
from evomerge.text import clean, duration

_MOST = 12  # workers in the picture
_KINDS = ("merging", "scoring search items", "scoring held-out items", "the rest")
_COLOURS = ("var(--m4)", "var(--m0)", "var(--m5)", "var(--faint)")


def effort(run: Run, palette: Palette) -> Section:
    """Return the section.

    >>> from evomerge.testing.reports import example_run
    >>> run = example_run()
    >>> effort(run, Palette(run)).parts[1].rows
    [('node/1/cpu', '4', '0 s', '8 s', '2 s')]
    """
    title = "Where the time went"
    if not run.work:
        return Section("time", title, (Text("No worker has finished anything yet."),))
    rows = [
        (w.worker, f"{w.candidates:,}", *map(duration, (w.merge, w.score, w.heldout)))
        for w in run.work[:_MOST]
    ]
    left = len(run.work) - len(rows)
    headers = ("worker", "candidates", "merging", "search items", "held-out items")
    caption = "Workers (HOST/PROCESS/DEVICE)" + (f", {left} more" if left else "")
    parts: list[Part] = [_picture(run), Table(headers, rows, caption, numeric=range(1, 5))]
    return Section("time", title, tuple(parts))


def _picture(run: Run) -> Picture:
    merge = sum(w.merge for w in run.work)
    score, heldout = sum(w.score for w in run.work), sum(w.heldout for w in run.work)
    wall = sum(seconds for _, seconds in run.starts)
    count = int(run.plan.get("workers", {}).get("count") or 1)
    rest = max(0.0, count * wall - merge - score - heldout)
    whole = merge + score + heldout + rest
    bars: list[dict[str, Any]] = []

    def add(who: str, seconds: tuple[float, ...], total: float) -> None:
        for n, (kind, part) in enumerate(zip(_KINDS, seconds, strict=False)):
            text = f"{duration(part)}, {part / total:.1%} of its time" if total else duration(part)
            bars.append({"who": who, "kind": kind, "seconds": part, "text": text, "order": n})

    several = len(run.work) > 1
    add("all workers" if several else run.work[0].worker, (merge, score, heldout, rest), whole)
    if several:
        for w in run.work[:_MOST]:
            add(w.worker, (w.merge, w.score, w.heldout), w.seconds)
    told = ", ".join(
        f"{kind} {duration(part)} ({part / whole:.0%})"
        for kind, part in zip(_KINDS, (merge, score, heldout, rest), strict=True)
        if whole
    )
    names = list(dict.fromkeys(clean(bar["who"]) for bar in bars))
    encoding = {
        "y": category("who", None, sort=names, axis={"grid": False}),
        "x": quantity("seconds", "seconds of workers", scale={"zero": True}, axis={"format": "~s"}),
        "color": category("kind", None, scale={"domain": _KINDS, "range": _COLOURS}, legend=None),
        "order": {"field": "order", "type": "quantitative"},
        "tooltip": hover(("who", "worker"), ("kind", "doing"), ("text", "time")),
    }
    height = 30 * len(names)
    alt = f"{count} {'worker' if count == 1 else 'workers'} for {duration(wall)}: {told}."
    mark = {"type": "bar", "stroke": "var(--paper)", "strokeWidth": 1}
    spec = drawing(height, alt, data=finite(bars), mark=mark, encoding=encoding)
    reading = (
        f"{count} {'worker' if count == 1 else 'workers'} for {duration(wall)}. The rest is what"
        " neither merges nor scores: starting, reading sources, waiting for the controller or for"
        " other workers, and the controller itself."
    )
    legend = [square_key(kind, of) for kind, of in zip(_KINDS, _COLOURS, strict=True)]
    panels = [Panel(spec, height + 60)]
    return Picture("Time by what it was spent on", alt, reading, panels, legend=legend)
