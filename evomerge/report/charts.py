"""How pictures look: one palette for the models throughout, one manner for axes and marks.

Colours are CSS variables of the page, so that what is drawn follows the reader's colour scheme, and
print, without being drawn again. Every model has a shape beside its colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.report.figures import Key, Spec
from evomerge.report.run import UNIFORM, Run
from evomerge.text import clean

_SHAPES = ("square", "triangle-up", "diamond", "triangle-down", "triangle-right", "circle")
_COLOURS = 9  # of models, in the style sheet
STAR = (
    "M0,-1L0.235,-0.324L0.951,-0.309L0.38,0.124L0.588,0.809L0,0.4"
    "L-0.588,0.809L-0.38,0.124L-0.951,-0.309L-0.235,-0.324Z"
)
_PATHS = {
    "square": "M-.8,-.8H.8V.8H-.8Z",
    "triangle-up": "M0,-.9L1,.8H-1Z",
    "diamond": "M0,-1.1L.9,0L0,1.1L-.9,0Z",
    "triangle-down": "M0,.9L1,-.8H-1Z",
    "triangle-right": "M.9,0L-.8,1V-1Z",
    "circle": "M-.9,0A.9,.9 0 1,0 .9,0A.9,.9 0 1,0 -.9,0Z",
    "cross": "M-.3,-1H.3V-.3H1V.3H.3V1H-.3V.3H-1V-.3H-.3Z",
}
INK, INK2, FAINT = "var(--ink)", "var(--ink2)", "var(--faint)"

# Numbers on a heat map, whose low values are dark.
ON_HEAT: Spec = {"condition": {"test": "datum.dark", "value": "#ffffff"}, "value": "#101010"}

CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK2,
        "titleColor": INK2,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "domain": False,
        "tickColor": "var(--grid)",
        "gridColor": "var(--grid)",
        "labelLimit": 150,
        "titleLimit": 420,
    },
    "legend": {
        "labelColor": INK2,
        "titleColor": INK2,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "orient": "top",
        "symbolSize": 90,
        "labelLimit": 140,
    },
    "text": {"fill": INK2, "fontSize": 11},
}


class Palette:
    """The colour and the shape of every model of a run.

    >>> from evomerge.testing.reports import example_run
    >>> palette = Palette(example_run())
    >>> palette.colour("ja"), palette.shape("maths"), palette.colour("uniform average")
    ('var(--m0)', 'triangle-up', 'var(--ink2)')
    """

    def __init__(self, run: Run):
        base = run.plan["sources"].get("base")
        self._base = {s.label for s in run.sources if base is not None and s.label == "base"}
        labels = [s.label for s in run.sources if s.label not in self._base]
        labels += [row.label for row in run.baselines if row.label and row.label != UNIFORM]
        self._order = {label: n for n, label in enumerate(dict.fromkeys(labels))}

    def colour(self, label: str) -> str:
        """Return the colour of a model, or of what is none, as CSS has it."""
        if label in self._base:
            return "var(--base)"
        number = self._order.get(label)
        return INK2 if number is None else f"var(--m{number % _COLOURS})"

    def shape(self, label: str) -> str:
        """Return the shape of a model's marks, as Vega has it."""
        if label in self._base:
            return "circle"
        number = self._order.get(label)
        return "cross" if number is None else _SHAPES[number % len(_SHAPES)]

    def key(self, label: str) -> Key:
        """Return a model's entry in a legend."""
        return Key(label, self.colour(label), _PATHS[self.shape(label)])

    def scales(self, labels: Sequence[str]) -> tuple[Spec, Spec]:
        """Return the scales of colour and of shape for some models, in their order."""
        named = [clean(label) for label in labels]
        colours = [self.colour(label) for label in labels]
        shapes = [self.shape(label) for label in labels]
        return {"domain": named, "range": colours}, {"domain": named, "range": shapes}


def best_key(name: str = "the best") -> Key:
    """Return the entry of a star in a legend, or of a black circle for what else there is.

    >>> best_key("on the front").path == best_key().path
    False
    """
    return Key(name, INK, STAR if name == "the best" else _PATHS["circle"])


def square_key(name: str, colour: str) -> Key:
    """Return the entry of a surface in a legend.

    >>> square_key("merging", "var(--m4)").colour
    'var(--m4)'
    """
    return Key(name, colour, _PATHS["square"])


def drawing(height: int, alt: str, **rest: Any) -> Spec:
    """Return a specification that is as wide as its place, and has a text for who cannot see it.

    Args:
        height: of the plot without its axes, in pixels.
        alt: see `Picture`.
        rest: of Vega-Lite; layers whose own data are empty are left out.

    >>> drawing(200, "two points", mark="point")["width"]
    'container'
    """
    if "layer" in rest:  # one without data would have Vega warn of axes without an end
        rest["layer"] = [one for one in rest["layer"] if "data" not in one or one["data"]["values"]]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": clean(alt),
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
        **rest,
    }


def quantity(field: str, title: str | None, **rest: Any) -> Spec:
    """Return the encoding of a number, on an axis that need not begin at 0.

    >>> quantity("x", "items")["type"]
    'quantitative'
    """
    scale = {"zero": False, **rest.pop("scale", {})}
    axis = {"axis": rest.pop("axis")} if "axis" in rest else {}
    named = None if title is None else clean(title)
    return {"field": field, "type": "quantitative", "title": named, "scale": scale, **axis, **rest}


def category(field: str, title: str | None, **rest: Any) -> Spec:
    """Return the encoding of a name, in the order of the data unless it says another.

    >>> category("who", None)["sort"]
    """
    named = None if title is None else clean(title)
    return {"field": field, "type": "nominal", "title": named, "sort": None, **rest}


def hover(*fields: tuple[str, str]) -> list[Spec]:
    """Return what is told of a mark under the pointer: fields and what they are called.

    >>> hover(("who", "candidate"))
    [{'field': 'who', 'type': 'nominal', 'title': 'candidate'}]
    """
    return [{"field": field, "type": "nominal", "title": clean(title)} for field, title in fields]


def shown(value: float | None, digits: int = 3) -> str:
    """Return a number as a page has it.

    >>> shown(0.64549), shown(None), shown(1234567.0), shown(-0.0001)
    ('0.645', '–', '1,234,567', '−0.000')
    """
    if value is None or not np.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def sentence(text: str) -> str:
    """Return a text that begins a sentence.

    >>> sentence("candidate 3, stage Two")
    'Candidate 3, stage Two'
    """
    return text[:1].upper() + text[1:]


def thinned(count: int, most: int) -> np.ndarray:
    """Return at most so many of `count` positions, evenly, with the first and the last.

    >>> thinned(10, 4).tolist(), thinned(3, 4).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def finite(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Return rows as data of a specification, numbers that are none left out as null.

    >>> finite([{"x": float("nan"), "who": "a", "n": np.float64(1.5)}])
    {'values': [{'x': None, 'who': 'a', 'n': 1.5}]}
    """
    return {"values": [{key: _plain(value) for key, value in row.items()} for row in rows]}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
