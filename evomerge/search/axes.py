"""An axis of a search space: its range and its genes, and what a campaign file may say of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import Fault, nearest
from evomerge.merging.methods import Operator
from evomerge.registry import fits

_AXIS_KEYS = {"low", "high", "log", "integer", "start", "tied"}

_TIES = ("layers", "modules", "models", "outside")


@dataclass(frozen=True)
class Gene:
    """One coordinate of a genome: where an axis' value holds, and its range."""

    axis: str
    model: int | None
    layer: (
        int | str | None
    )  # a layer group (a knot if smooth), "outer" for the parts outside, None if tied
    module: str | None
    low: float
    high: float
    log: bool
    integer: bool

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
            position = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            position = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, position))


def axis_faults(name: str, entry: Any, operator: Operator, file: str) -> list[Fault]:
    """Return what is wrong with an entry of `space.axes`."""
    key = f"space.axes.{name}"
    if name not in operator.parameter:
        wrong = f"{operator.name} has no parameter '{name}'"
        return [Fault(file, key, wrong, nearest(name, operator.parameter))]
    axis = operator.parameter[name].axis
    bounded = math.isfinite(axis.low) and math.isfinite(axis.high)
    allowed = f"within {axis.low:g} to {axis.high:g}" if bounded else "that is finite"
    if not isinstance(entry, Mapping):
        mend = f"write {{low, high}}, or a number {allowed}"
        if not fits(entry, float) or not axis.low <= entry <= axis.high:
            return [Fault(file, key, f"{entry!r} is no axis", mend)]
        return []
    faults = [
        Fault(file, f"{key}.{k}", f"unknown key '{k}'", nearest(str(k), _AXIS_KEYS))
        for k in entry
        if k not in _AXIS_KEYS
    ]
    for k in ("low", "high", *(("start",) if entry.get("start") is not None else ())):
        if not fits(entry.get(k), float):
            wrong = "is missing" if k not in entry else f"{entry[k]!r} is not a finite number"
            faults.append(Fault(file, f"{key}.{k}", wrong, f"write a number {allowed}"))
        elif not axis.low <= entry[k] <= axis.high:
            faults.append(
                Fault(file, f"{key}.{k}", f"{entry[k]} is out of range", f"stay {allowed}")
            )
    for k in ("log", "integer"):
        if not isinstance(entry.get(k, False), bool):
            faults.append(Fault(file, f"{key}.{k}", f"{entry[k]!r} is not true or false"))
    tied = entry.get("tied", [])
    if not isinstance(tied, list) or not set(map(str, tied)) <= set(_TIES):
        faults.append(
            Fault(file, f"{key}.tied", f"{tied!r} will not do", f"list some of {', '.join(_TIES)}")
        )
    if faults:
        return faults
    if entry["low"] >= entry["high"]:
        wrong = f"low {entry['low']} is not below high {entry['high']}"
        faults.append(Fault(file, key, wrong, "swap them, or write one number to fix the axis"))
    elif entry.get("integer") and (
        entry.get("log") or entry["low"] != int(entry["low"]) or entry["high"] != int(entry["high"])
    ):
        mend = "write whole numbers for low and high, and no log"
        faults.append(Fault(file, f"{key}.integer", "has a range that is none of integers", mend))
    elif entry.get("log") and entry["low"] <= 0:
        faults.append(Fault(file, f"{key}.log", "a log axis needs low above 0", "raise low"))
    return faults
