"""Controllers, one file each: they propose genomes and learn from outcomes.

A controller is a class registered with `@controller(name)`, made as `cls(dimension=d, seed=s,
start=genome, objectives=m, **options)`; the options are its other keyword-only parameters, with
types and defaults. One that takes `levels` is told how many values each gene has, of those that
are no scale (0: continuous). The contract:

- `ask(n)` returns at most n `Proposal`s. It may return fewer; it returns none only while
  outcomes are outstanding, and then leaves itself unchanged.
- `tell(told)` may come in any order and with failures. Baselines are told before the first
  ask, with `ordinal` None.
- What it asks next depends only on seed, options and the sequence of these calls, so a
  campaign is resumed by replaying them.

Most search a box, [0, 1]^d. A controller that `breeds` proposes children: its genomes say how two
told candidates are crossed, in the terms of a space of individuals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from evomerge.registry import Registry

CONTROLLERS = Registry("evomerge.search.controllers", "controller")

RESERVED = ("dimension", "seed", "start", "objectives", "levels")


class Proposal(NamedTuple):
    """A genome, (dimension,) float64 in [0, 1], and the told candidates that it crosses."""

    genome: np.ndarray
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Told:
    """What a controller hears of one candidate.

    Attributes:
        ordinal: the how-manieth genome this controller proposed, from 0; None for a
            candidate that it did not propose.
        genome: (dimension,) float64, as decoded; None if the space cannot express it.
        value: the weighted mean of `objectives`, more is better; None for a failure.
        objectives: signed and scaled so that 0 is the worst baseline and 1 the best, more is
            better; None for a failure.
        violation: by how much constraints are missed, in units of the objectives' scale; 0 for
            a candidate that keeps them all. One that violates less is better, whatever it scores.
        candidate: its number, as `Proposal.parents` has it.
        items: (items,) float32 in [0, 1], more is better, of all objectives one after the other,
            where the controller reads them.
        breeds: whether it may be a parent.
    """

    ordinal: int | None
    genome: np.ndarray | None
    value: float | None
    objectives: tuple[float, ...] | None
    violation: float = 0.0
    candidate: int = 0
    items: np.ndarray | None = None
    breeds: bool = False


def controller(name: str, *, breeds: bool = False, items: bool = False) -> Callable:
    """Register a controller class under the name that campaign files write.

    Args:
        name: in `controller.kind`.
        breeds: whether it proposes children of told candidates.
        items: whether it reads item scores.
    """

    def decorate(cls: type) -> type:
        cls.breeds, cls.reads_items = breeds, items
        CONTROLLERS.add(name, cls)
        return cls

    return decorate
