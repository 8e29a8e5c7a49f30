"""Groups of a parameter space by their names, which are those of their genes.

A name is about every value whose gene's name has its parts: `ja layers 0-3` is about one model in
four layers, `layers 0-3` about all models there.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from evomerge.errors import BadInput, Fault, Faults, nearest

OUTER = "outer"  # where the tensors outside the layers stand
_OUTSIDE, _ALL = "outside the layers", "all layers"  # as genes' names say it
_RANGE = re.compile(r"layers ([0-9]{1,6})-([0-9]{1,6})")

_Model = TypeVar("_Model")


class Spot(NamedTuple):
    """Where one value of an axis holds.

    Attributes:
        layer: its number, of a knot if the space is smooth; or `OUTER`.
        module: a substring of tensor names, None for the rest.
        model: its label; None of an axis with one value for all models.

    >>> Spot(3, "mlp", "ja").layer
    3
    """

    layer: int | str
    module: str | None
    model: str | None


@dataclass(frozen=True)
class GroupName:
    """What the name of an entry of `groups` says; None where it says nothing.

    Attributes:
        model: a label.
        where: (first, last + 1) of layers, or of knots if the space is smooth; or the words that
            genes' names have: `outside the layers`, `all layers`.
        module: a substring of tensor names.
        place: `where` as it was written, "" if it was not.
        text: the whole name as it was written.

    >>> name = read_names(["layers 0-3 mlp"], [], ["mlp"], None)["layers 0-3 mlp"]
    >>> name.holds(Spot(3, "mlp", "ja"), tied=()), name.holds(Spot(4, "mlp", "ja"), tied=())
    (True, False)
    """

    model: str | None
    where: tuple[int, int] | str | None
    module: str | None
    place: str
    text: str

    def holds(self, spot: Spot, tied: Sequence[str]) -> bool:
        """Tell whether the value at `spot` is meant, of an axis that is `tied` so."""
        if self.model not in (None, spot.model) or self.module not in (None, spot.module):
            return False
        if self.where is None:
            return True
        if self.where == _OUTSIDE:
            return spot.layer == OUTER
        if self.where == _ALL:  # a gene of this name is that of the parts outside as well
            return spot.layer != OUTER or "layers" in tied
        layer = 0 if spot.layer == OUTER and "outside" in tied else spot.layer
        if isinstance(self.where, str) or isinstance(layer, str):
            return False
        return self.where[0] <= layer < self.where[1]

    def within(self, other: "GroupName") -> bool:
        """Tell whether all that is meant is meant by `other` too."""
        if other.model not in (None, self.model) or other.module not in (None, self.module):
            return False
        if other.where is None or other.where == self.where:
            return True
        if isinstance(self.where, tuple) and isinstance(other.where, tuple):
            return other.where[0] <= self.where[0] and self.where[1] <= other.where[1]
        return self.where is not None and other.where == _ALL


def read_names(
    names: Iterable[str], labels: Sequence[str], modules: Sequence[str], knots: int | None
) -> dict[str, GroupName]:
    """Return what names of groups mean.

    Args:
        names: as they were written.
        labels: of the models.
        modules: the space's module groups.
        knots: how many there are, if the space is smooth.

    Raises:
        BadInput: some are no names; the key is the name.

    >>> read_names(["ja layers 0-3"], ["ja", "fr"], [], None)["ja layers 0-3"].where
    (0, 4)
    >>> read_names(["layers 0-3 mpl"], ["ja"], ["mlp"], None)
    Traceback (most recent call last):
    evomerge.errors.BadInput: layers 0-3 mpl: no gene is called so; did you mean 'layers 0-3 mlp'?
    """
    found, faults = {}, Faults()
    for name in names:
        readings = [
            GroupName(model, where, module, place, name)
            for model in (None, *labels)
            for module in (None, *modules)
            for place, where in _places(name, model, module, knots)
        ]
        if len(readings) == 1:
            found[name] = readings[0]
        elif readings:
            wrong = "is a model as well as a part of tensors' names"
            faults.add(name, wrong, "rename the model")
        else:
            faults.add(name, "no gene is called so", _mend(name, labels, modules, knots))
    if faults:
        raise BadInput(*faults.found)
    return found


def _places(
    name: str, model: str | None, module: str | None, knots: int | None
) -> Iterable[tuple[str, tuple[int, int] | str | None]]:
    """Yield what stands between model and module, and what it means, if that is a place."""
    words = f" {name} "
    begins, ends = f" {model} " if model else " ", f" {module} " if module else " "
    if not words.startswith(begins) or not words[len(begins) - 1 :].endswith(ends):
        return
    place = words[len(begins) - 1 : len(words) - len(ends) + 1].strip()
    if not place:
        if model or module:
            yield "", None
    elif place in (_OUTSIDE, _ALL):
        yield place, place
    elif knots is not None:
        if place in _knot_names(knots):
            number = _knot_names(knots).index(place)
            yield place, (number, number + 1)
    elif match := _RANGE.fullmatch(place):
        first, last = map(int, match.groups())
        if first <= last:
            yield place, (first, last + 1)


def _knot_names(knots: int) -> list[str]:
    return [f"knot {number}" for number in range(knots)]


def _mend(name: str, labels: Sequence[str], modules: Sequence[str], knots: int | None) -> str:
    """Name what comes closest to a name that is none, or the parts of names that there are."""
    if knots is None:
        pairs = [sorted(pair, key=int) for pair in re.findall(r"([0-9]{1,6})\D+([0-9]{1,6})", name)]
        near, places = [f"layers {first}-{last}" for first, last in pairs], ["layers FIRST-LAST"]
    else:
        near = places = _knot_names(knots)
    names = [
        " ".join(part for part in (model, place, module) if part)
        for model in (None, *labels)
        for place in (None, _OUTSIDE, _ALL, *near)
        for module in (None, *modules)
    ]
    # as `nearest`, but the whole list would be too long to be read
    if close := difflib.get_close_matches(name, names, n=1):
        return f"did you mean '{close[0]}'?"
    return nearest("", [*labels, *places, _OUTSIDE, _ALL, *modules])


def governing(names: Iterable[GroupName], spot: Spot, tied: Sequence[str]) -> list[GroupName]:
    """Return which of the entries hold at `spot`: those that no other one there is within.

    >>> names = read_names(["ja", "layers 0-3", "ja layers 0-3"], ["ja"], [], None).values()
    >>> [name.text for name in governing(names, Spot(0, None, "ja"), tied=())]
    ['ja layers 0-3']
    """
    holding = [name for name in names if name.holds(spot, tied)]
    return [
        name
        for name in holding
        if not any(other is not name and other.within(name) for other in holding)
    ]


def in_both(one: GroupName, other: GroupName) -> str:
    """Return the name of what is meant by both of two names that cross.

    >>> names = read_names(["ja", "layers 0-3"], ["ja"], [], None)
    >>> in_both(names["ja"], names["layers 0-3"])
    'ja layers 0-3'
    """
    if isinstance(one.where, tuple) and isinstance(other.where, tuple):
        (first, last), (low, high) = one.where, other.where
        place = f"layers {max(first, low)}-{min(last, high) - 1}"  # knots do not overlap
    else:
        inner = [name.place for name in (one, other) if name.place not in ("", _ALL)]
        place = inner[0] if inner else one.place or other.place
    parts = (one.model or other.model, place, one.module or other.module)
    return " ".join(part for part in parts if part)


def shared(
    layer: int | str | None, module: str | None, model: _Model, tied: Sequence[str]
) -> tuple[int | str | None, str | None, _Model | None]:
    """Return layer, module and model of the gene for a value there, None for what is tied.

    >>> shared(3, "mlp", "ja", tied=["layers"]), shared(OUTER, None, "ja", tied=["outside"])
    ((None, 'mlp', 'ja'), (0, None, 'ja'))
    """
    if layer == OUTER and "outside" in tied:
        layer = 0
    return (
        None if "layers" in tied else layer,
        None if "modules" in tied else module,
        None if "models" in tied else model,
    )


def layer_faults(names: Iterable[str], edges: Sequence[int]) -> Iterable[Fault]:
    """Return which names have layers that are no union of layer groups.

    Args:
        names: as they were written.
        edges: the first layer of each group, and the number of layers.

    >>> [str(fault) for fault in layer_faults(["ja layers 0-4"], [0, 4, 8])]
    ['ja layers 0-4: layers 0-4 are no whole groups; there are layers 0-3, layers 4-7']
    """
    groups = [f"layers {a}-{b - 1}" for a, b in itertools.pairwise(edges)]
    for name in names:
        match = _RANGE.search(name)
        if match is None or int(match[1]) > int(match[2]):
            continue  # no place of layers, or none at all
        if not {int(match[1]), int(match[2]) + 1} <= set(edges):
            yield Fault(name, f"{match[0]} are no whole groups", f"there are {', '.join(groups)}")
