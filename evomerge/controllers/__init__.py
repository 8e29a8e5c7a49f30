"""Controllers, one file each: they propose genomes and learn from outcomes.

A controller is a class registered with `@controller(name)`, made as
`cls(dimension=d, seed=s, start=genome, **options)`; the options are its other keyword-only
parameters, with types and defaults. The contract:

- `ask(n)` returns at most n genomes. It may return fewer; it returns none only while
  outcomes are outstanding, and then leaves itself unchanged.
- `tell(told)` may come in any order and with failures. Baselines are told before the first
  ask, with `ordinal` None.
- What it asks next depends only on seed, options and the sequence of these calls, so a
  campaign is resumed by replaying them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evomerge.registry import Registry

CONTROLLERS = Registry("evomerge.controllers", "controller")
RESERVED = ("dimension", "seed", "start")


@dataclass(frozen=True)
class Told:
    """What a controller hears of one candidate.

    Attributes:
        ordinal: the how-manieth genome this controller proposed, from 0; None for a
            candidate that it did not propose.
        genome: (dimension,) float64, as decoded; None if the space cannot express it.
        value: the weighted mean of `objectives`, more is better; None for a failure.
        objectives: signed and scaled, more is better; None for a failure.
    """

    ordinal: int | None
    genome: np.ndarray | None
    value: float | None
    objectives: tuple[float, ...] | None


def controller(name: str) -> Callable:
    """Register a controller class under the name that campaign files write."""

    def decorate(cls: type) -> type:
        CONTROLLERS.add(name, cls)
        return cls

    return decorate
