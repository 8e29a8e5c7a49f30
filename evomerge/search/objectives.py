"""Objectives made comparable: direction, scale, constraints."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Objective:
    """One mean that the search improves. `weight` counts in the weighted mean.

    `constraint` is what a mean has to keep, see `Constraints`; empty for none. A `cost` is no
    score of items.

    >>> Objective("length", "minimize").sign
    -1.0
    """

    name: str
    direction: str = "maximize"  # or "minimize"
    weight: float = 1.0
    constraint: str = ""
    cost: bool = False

    @property
    def sign(self) -> float:
        return 1.0 if self.direction == "maximize" else -1.0


class Scale:
    """Objectives made comparable: signed so that more is better, divided by the baselines' range.

    An objective on which the baselines do not differ keeps its own unit. A cost is in units of the
    dearest baseline's: sources of one architecture cost the same but for noise.

    >>> scale = Scale([Objective("acc")], [{"acc": 0.25}, {"acc": 0.75}])
    >>> scale.vector({"acc": 1.0})
    (1.5,)
    """

    def __init__(self, objectives: Sequence[Objective], baselines: Sequence[Mapping[str, float]]):
        """
        Args:
            objectives: in the campaign's order.
            baselines: the mean scores of each baseline that was scored, by objective name.
        """
        self.objectives = tuple(objectives)
        self._weights = np.array([o.weight for o in self.objectives])
        self.low, self.range = [], []
        for objective in self.objectives:
            values = [objective.sign * b[objective.name] for b in baselines]
            low, high = (min(values), max(values)) if values else (0.0, 1.0)
            self.low.append(low)
            span = max(map(abs, values), default=1.0) if objective.cost else high - low
            self.range.append(span if span > 1e-9 else 1.0)

    def vector(self, means: Mapping[str, float]) -> tuple[float, ...]:
        """Return the signed and scaled objectives, one float each: 0 is the worst baseline."""
        return tuple(
            (o.sign * means[o.name] - low) / span
            for o, low, span in zip(self.objectives, self.low, self.range, strict=True)
        )

    def value(self, means: Mapping[str, float]) -> float:
        """Return the weighted mean of `vector`: what a controller of one objective gets."""
        return float(np.dot(self._weights, self.vector(means)) / self._weights.sum())


class Bound(NamedTuple):
    """A constraint's parts: at least or at most a baseline's mean (none: 0) plus an offset.

    >>> Bound(1.0, "base", -0.01).baseline
    'base'
    """

    sign: float  # 1: at least, -1: at most
    baseline: str | None
    offset: float


_BOUND = re.compile(
    r"(?P<sign>>=|<=)\s*(?:(?P<alone>[-+]?[\d.]+(?:e[-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_][\w.-]*)(?:\s*(?P<way>[-+])\s*(?P<offset>[\d.]+(?:e[-+]?\d+)?))?)"
)


def parse_bound(text: str) -> Bound:
    """Read a constraint: `>= 0.4`, `<= 12`, `>= base - 0.01`.

    Raises:
        ValueError: it is none.

    >>> parse_bound(">= base - 0.01")
    Bound(sign=1.0, baseline='base', offset=-0.01)
    """
    found = _BOUND.fullmatch(text.strip())
    if not found:
        raise ValueError(f"'{text}' is no constraint")
    if not np.isfinite([float(found[k] or 0.0) for k in ("alone", "offset")]).all():
        raise ValueError(f"'{text}' has a number that is not finite")
    sign = 1.0 if found["sign"] == ">=" else -1.0
    if found["alone"]:
        return Bound(sign, None, float(found["alone"]))
    offset = float(found["offset"] or 0.0)
    return Bound(sign, found["name"], -offset if found["way"] == "-" else offset)


class Constraints:
    """What candidates have to keep, and by how much they miss it.

    `baseline` in a constraint is the best source's mean; a label is that baseline's.

    >>> objective = Objective("acc", constraint=">= base - 0.25")
    >>> scale = Scale([objective], [{"acc": 0.5}, {"acc": 1.0}])
    >>> limits = Constraints(scale, {"base": {"acc": 0.5}, "ja": {"acc": 1.0}}, ["base", "ja"])
    >>> limits.violation({"acc": 0.25}), limits.violation({"acc": 0.0})
    (0.0, 0.5)
    """

    def __init__(
        self, scale: "Scale", baselines: Mapping[str, Mapping[str, float]], sources: Sequence[str]
    ):
        """
        Args:
            scale: of the objectives.
            baselines: the mean scores of each baseline that was scored, by label.
            sources: the labels of those that are sources.

        Raises:
            ValueError: a constraint names a baseline that could not be scored.
        """
        self._bounds: list[tuple[str, float, float, float]] = []
        for objective, span in zip(scale.objectives, scale.range, strict=True):
            if not objective.constraint:
                continue
            sign, name, offset = parse_bound(objective.constraint)
            means = {label: m[objective.name] for label, m in baselines.items()}
            if name == "baseline":
                means[name] = objective.sign * max(
                    (objective.sign * means[label] for label in sources if label in means),
                    default=-np.inf,
                )
            if name is not None and name not in means:
                raise ValueError(
                    f"{objective.name} has to be {objective.constraint}, and baseline '{name}'"
                    " could not be scored"
                )
            least = offset + (means[name] if name is not None else 0.0)
            self._bounds.append((objective.name, sign, least, span))

    def violation(self, means: Mapping[str, float]) -> float:
        """Return the sum of what is missed, each in units of its objective's scale."""
        missed = 0.0
        for name, sign, least, span in self._bounds:
            missed += max(0.0, sign * (least - means[name])) / span
        return missed


class ItemScale:
    """Item scores made comparable: in [0, 1], more is better.

    Scores that are within [0, 1] stay (or are one minus themselves, where less is better); those
    of other objectives are spread between the baselines' least and largest, and clipped.

    >>> items = {"length": np.array([10.0, 20.0, 30.0])}
    >>> ItemScale([Objective("length", "minimize")], [items]).vector(items).tolist()
    [1.0, 0.5, 0.0]
    """

    def __init__(
        self, objectives: Sequence[Objective], baselines: Sequence[Mapping[str, np.ndarray]]
    ):
        """
        Args:
            objectives: in the campaign's order.
            baselines: the item scores of each baseline that was scored, by objective name.
        """
        self._spans: list[tuple[str, float, float, float]] = []
        for objective in objectives:
            every = np.concatenate([b[objective.name] for b in baselines])
            low, high = float(every.min()), float(every.max())
            if low >= 0.0 and high <= 1.0:
                low, high = 0.0, 1.0
            self._spans.append((objective.name, objective.sign, low, (high - low) or 1.0))

    def vector(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return (items,) float32 of all objectives, one after the other."""
        parts = []
        for name, sign, low, span in self._spans:
            part = (np.asarray(scores[name], np.float32) - low) / span  # as an archive gives them
            parts.append(np.clip(part if sign > 0 else 1.0 - part, 0.0, 1.0))
        return np.concatenate(parts).astype(np.float32)
