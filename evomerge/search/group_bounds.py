"""Axes that are fixed, or have a range of their own, in single groups of a parameter space.

Where one group is within another, the inner one's entry holds. Where two cross they have to agree,
or an entry within both says what holds: the order of a mapping means nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

from evomerge.errors import Fault
from evomerge.merging.methods import Axis
from evomerge.search.axes import AxisSection, axis_faults
from evomerge.search.group_names import GroupName, Spot, governing, in_both, shared
from evomerge.sections import Number, Section, option


class BoundSection(Section):
    """The range of an axis in one group; what is left out is as in the axis.

    >>> BoundSection(high=0.5).low is None
    True
    """

    low: Number | None = option("least value; null: the axis' own", None)
    high: Number | None = option("largest value; null: the axis' own", None)
    start: Number | None = option("where the search begins; null: as in the axis", None)


Entry = AxisSection | float  # of `axes`
Bound = BoundSection | float  # of a group in `groups`


def narrowed(entry: Entry, bound: Bound) -> Entry:
    """Return what an entry of `axes` becomes in a group: a number where it is fixed there.

    >>> narrowed(AxisSection(low=0.0, high=1.0), BoundSection(high=0.5)).high
    0.5
    """
    if not isinstance(bound, BoundSection):
        return bound
    given = {key: value for key, value in bound.model_dump().items() if value is not None}
    if isinstance(entry, AxisSection):
        return entry.model_copy(update=given)
    return AxisSection(**given)


def bound_faults(entry: Entry, bound: Bound, sense: Axis) -> Iterable[Fault]:
    """Return why an axis cannot be fixed or bounded so in a group.

    Args:
        entry: of `axes`.
        bound: of the group.
        sense: the range in which the parameter makes sense.

    >>> whole = AxisSection(low=0.0, high=1.0)
    >>> [str(fault) for fault in bound_faults(whole, BoundSection(low=1.0), Axis(0.0, 1.0))]
    ['low 1.0 is not below high 1.0; swap them, or write one number to fix the axis']
    """
    if not isinstance(bound, BoundSection):
        yield from axis_faults(bound, sense)
        if isinstance(entry, AxisSection) and entry.integer and bound != int(bound):
            yield Fault("", f"{bound} is not a whole number, as the axis asks", "write one")
        return
    own = {key: value for key, value in bound.model_dump().items() if value is not None}
    fields = entry.model_dump() | own if isinstance(entry, AxisSection) else own
    if not {"low", "high"} <= fields.keys():
        wrong = "needs low and high: the axis is a number elsewhere"
        yield Fault("", wrong, "write {low: ..., high: ...}")
        return
    faults = [Fault("", fault.wrong, fault.mend) for fault in AxisSection.cross_faults(fields)]
    yield from faults
    if not faults:  # what the axis itself has wrong is told there
        yield from (f for f in axis_faults(AxisSection(**fields), sense) if f.key in own)


def overlap_faults(
    axis: str, entry: Entry, bounds: Mapping[GroupName, Bound], spots: Sequence[Spot]
) -> Iterable[Fault]:
    """Return where groups contradict one another, or bound a part of what is tied.

    Args:
        axis: its name.
        entry: of `axes`.
        bounds: of this axis, by group.
        spots: where it has values.

    >>> from evomerge.search.group_names import read_names
    >>> names = read_names(["ja", "layers 0-3"], ["ja", "fr"], [], None)
    >>> bounds = {names["ja"]: 0.2, names["layers 0-3"]: 0.0}
    >>> whole = AxisSection(low=0.0, high=1.0)
    >>> [f.key for f in overlap_faults("weight", whole, bounds, [Spot(0, None, "ja")])]
    ['ja.weight']
    """
    tied = entry.tied if isinstance(entry, AxisSection) else []
    for name in bounds:
        if not any(name.holds(spot, tied) for spot in spots):
            yield _empty(axis, name, spots)
    crossed: dict[frozenset[GroupName], Fault] = {}
    for spot in spots:
        names = governing(bounds, spot, tied)
        for other in names[1:]:
            if narrowed(entry, bounds[other]) != narrowed(entry, bounds[names[0]]):
                wrong = f"crosses '{other.text}', and they differ"
                both = in_both(names[0], other)
                mend = f"write what holds in both, as an entry '{both}'"
                if both in (names[0].text, other.text):  # by a tie
                    mend = "leave one of them out"
                fault = Fault(f"{names[0].text}.{axis}", wrong, mend)
                crossed.setdefault(frozenset({names[0], other}), fault)
    yield from crossed.values()
    if not crossed:
        yield from _tie_faults(axis, entry, bounds, spots, tied)


def _tie_faults(
    axis: str,
    entry: Entry,
    bounds: Mapping[GroupName, Bound],
    spots: Sequence[Spot],
    tied: Sequence[str],
) -> Iterable[Fault]:
    """Return which groups bound a part of what is one gene, and not the rest alike."""
    settings: dict[tuple, Entry] = {}
    torn: set[tuple] = set()
    for spot in spots:
        names, gene = governing(bounds, spot, tied), shared(*spot, tied)
        setting = narrowed(entry, bounds[names[0]]) if names else entry
        if settings.setdefault(gene, setting) != setting:
            torn.add(gene)
    for name in bounds:
        if any(name.holds(spot, tied) and shared(*spot, tied) in torn for spot in spots):
            wrong = f"bounds a part of one value: axes.{axis} is tied over {', '.join(tied)}"
            mend = "bound all that is tied alike, or untie it"
            yield Fault(f"{name.text}.{axis}", wrong, mend)


def _empty(axis: str, name: GroupName, spots: Sequence[Spot]) -> Fault:
    """Return the fault of a group in which an axis has no value."""
    if name.model is not None and all(spot.model is None for spot in spots):
        wrong = f"{axis} has one value for all models"
        return Fault(f"{name.text}.{axis}", wrong, f"leave '{name.model}' out of the name")
    wrong = f"no value of {axis} is called so"
    mend = "what is outside the layers has no modules" if name.module else "leave it out"
    return Fault(f"{name.text}.{axis}", wrong, mend)
