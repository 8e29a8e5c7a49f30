"""Kinds of fitness, one file each: a section, told apart by its key, and what opens it.

A new kind is one file here: a section (see `FitnessSection`) whose `key` is the one that an entry
of a campaign's `fitness` is known by, and a function, registered with `@fitness(section)`, that
makes a `Fitness` of it. A fitness that needs nothing but Python is no kind: `function` takes it.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from evomerge.registry import Registry
from evomerge.scoring.fitness import Fitness, FitnessSection

# (section, hold out the task's own test split) -> opened
Opener = Callable[..., Fitness]

_O = TypeVar("_O", bound=Opener)


class FitnessKind(NamedTuple):
    """A kind of fitness.

    Attributes:
        section: the class of its options.
        open: makes a fitness of a section, and whether the task's own test split is held out.

    >>> FITNESSES.get("cost").section.__name__
    'CostSection'
    """

    section: type[FitnessSection]
    open: Opener


FITNESSES: Registry[FitnessKind] = Registry(
    "evomerge.scoring.kinds", "kind of fitness", "evomerge.fitness"
)


def fitness(section: type[FitnessSection]) -> Callable[[_O], _O]:
    """Register what opens a fitness under its section's key.

    Args:
        section: the class of its options.

    >>> sorted(FITNESSES.all())[:2]
    ['agreement', 'cost']
    """

    def register(opener: _O) -> _O:
        FITNESSES.add(section.key, FitnessKind(section, opener))
        return opener

    return register
