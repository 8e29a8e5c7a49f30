"""An axis of a search space: what a campaign file says of it, and its genes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from evomerge.errors import Fault
from evomerge.merging.methods import Axis
from evomerge.sections import Flag, Number, Section, option


class AxisSection(Section):
    """The range of a method's parameter, and how it is searched.

    >>> AxisSection(low=0.0, high=1.5).start is None
    True
    """

    low: Number = option("least value", example=0.0)
    high: Number = option("largest value", example=1.0)
    log: Flag = option("search on a logarithmic scale; low has to be above 0", False)
    integer: Flag = option("search whole numbers only", False)
    start: Number | None = option(
        "where the search begins; null: weights at 1/n of n models, all else in the middle", None
    )
    tied: list[Literal["layers", "modules", "models", "outside"]] = option(
        "what shares one value: all layers, all modules, all models; `outside`: what is outside the"
        " layers follows the first group",
        factory=list,
    )

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        low, high = fields.get("low"), fields.get("high")
        if low is None or high is None:
            return
        if low >= high:
            wrong = f"low {low} is not below high {high}"
            yield Fault("", wrong, "swap them, or write one number to fix the axis")
        elif fields.get("integer") and (fields.get("log") or low != int(low) or high != int(high)):
            mend = "write whole numbers for low and high, and no log"
            yield Fault("integer", "has a range that is none of integers", mend)
        elif fields.get("log") and low <= 0:
            yield Fault("log", "a log axis needs low above 0", "raise low")


def axis_faults(entry: AxisSection | float, axis: Axis) -> Iterable[Fault]:
    """Return where an entry of `axes` leaves the range in which its parameter makes sense.

    >>> [fault.key for fault in axis_faults(AxisSection(low=0.0, high=2.0), Axis(0.0, 1.0))]
    ['high']
    """
    bounded = math.isfinite(axis.low) and math.isfinite(axis.high)
    allowed = f"within {axis.low:g} to {axis.high:g}" if bounded else "that is finite"
    if not isinstance(entry, AxisSection):
        if not axis.low <= entry <= axis.high:
            yield Fault(
                "", f"{entry} is out of range", f"write {{low, high}}, or a number {allowed}"
            )
        return
    for key, value in (("low", entry.low), ("high", entry.high), ("start", entry.start)):
        if value is not None and not axis.low <= value <= axis.high:
            yield Fault(key, f"{value} is out of range", f"stay {allowed}")


class GeneRange(NamedTuple):
    """What a gene's position in [0, 1] means.

    Attributes:
        low, high: the range of its values; of a choice, 0 and 1.
        kind: how they are spread: float, log (geometrically), whole (numbers) or choice.
        labels: of a choice, one for each.

    >>> GeneRange(1.0, 100.0, "log").value(0.5)
    10.0
    >>> GeneRange(kind="choice", labels=("ties", "slerp")).value(0.7)
    'slerp'
    """

    low: float = 0.0
    high: float = 1.0
    kind: str = "float"
    labels: Sequence[str] = ()

    def value(self, unit: float) -> float | int | str:
        """Return the value at a position."""
        if self.kind == "choice":
            return self.labels[min(int(unit * len(self.labels)), len(self.labels) - 1)]
        is_whole = self.kind == "whole"
        gene = Gene("", None, None, None, self.low, self.high, self.kind == "log", is_whole)
        value = min(max(gene.value(unit), self.low), self.high)
        return int(value) if is_whole else value


@dataclass(frozen=True)
class Gene:
    """One coordinate of a genome: where an axis' value holds, and its range.

    Attributes:
        axis: the parameter's name.
        model: index of the model; None if all share the gene, or the axis has one value.
        layer: a layer group (a knot if smooth), "outer" for the parts outside, None if tied.
        module: a substring of tensor names; None for the rest, or if tied.
        low, high: the range.
        log, integer: how it is spread over [0, 1].

    >>> gene = Gene("weight", 0, None, None, 0.0, 2.0)
    >>> gene.value(0.25), gene.unit(0.5)
    (0.5, 0.25)
    """

    axis: str
    model: int | None
    layer: int | str | None
    module: str | None
    low: float
    high: float
    log: bool = False
    integer: bool = False

    @property
    def range(self) -> GeneRange:
        """The range alone, for whoever reads an archive."""
        kind = "whole" if self.integer else "log" if self.log else "float"
        return GeneRange(self.low, self.high, kind)

    @property
    def levels(self) -> int:
        """How many values it has; 0 if it is continuous."""
        return int(self.high - self.low) + 1 if self.integer else 0

    def value(self, unit: float) -> float:
        """Map [0, 1] to the axis' range, geometrically if `log`, evenly to whole numbers if so."""
        if self.integer:
            return float(self.low + min(int(unit * self.levels), self.levels - 1))
        if self.log:
            return float(self.low * (self.high / self.low) ** unit)
        return float(self.low + (self.high - self.low) * unit)

    def unit(self, value: float) -> float:
        """Invert `value`, clipped to [0, 1]; of a whole number, the middle of its share."""
        if self.integer:
            value = min(max(round(value), self.low), self.high)
            return (value - self.low + 0.5) / self.levels
        if self.log:
            # the logarithm of what is not positive stands far below the range
            position = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            position = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, position))
