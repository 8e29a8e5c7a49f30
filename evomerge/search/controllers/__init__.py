"""Controllers, one file each: they propose genomes and learn from outcomes.

A new controller is one file here: a section with its options (see `evomerge.sections`), and a
class registered with `@controller(section)`.

- `ask(n)` returns at most n proposals. It may return fewer; it returns none only while outcomes
  are outstanding, and then leaves itself unchanged.
- `tell(feedback)` may come in any order and with failures. Baselines are told before the first
  ask, with `ordinal` None.
- What it asks next depends only on the problem, its options and the sequence of these calls, so
  that a campaign is resumed by replaying them.

Most search a box, [0, 1]^d. A controller that `breeds` proposes children: its genomes say how two
told candidates are crossed, in the terms of a space of individuals.

Candidates may be scored in parts (`Problem.parts` above 1): on a few of the items each. Which part
is the controller's say: candidates of one part share their items, so that they can be compared by
what they scored there alone. What is told of any is an estimate of its mean over all items,
unbiased, with its standard error. Some candidates are then scored in full by the campaign, which
asks the controller whom it would recommend; it is told nothing of these.
"""

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from evomerge.errors import Fault
from evomerge.registry import Registry
from evomerge.search.ingredients import Ingredients
from evomerge.sections import Section

# Of a part, where a controller compares across parts anyway: enough that the items' difficulties,
# as far as they are not foretold, are the same for those that follow one another.
CANDIDATES_A_PART = 16


class ControllerSection(Section):
    """The options of a controller in a campaign file; `kind` is its name.

    >>> from evomerge.search.controllers.random import RandomSection
    >>> RandomSection().kind
    'random'
    """

    kind: str

    def faults(self, objectives: int) -> Iterable[Fault]:
        """Return why these options do not serve for so many objectives."""
        return ()


@dataclass(frozen=True)
class Problem:
    """What a controller searches, whatever its options are.

    Attributes:
        dimension: genes, d.
        seed: of everything that the controller draws.
        start: (d,) float64 in [0, 1], where the search may begin.
        objectives: how many there are.
        levels: how many values each gene has, 0 for one that is continuous; empty if all are.
        steps: (d,) float64, how far a first step should go along each gene, on average 1; None:
            alike along all.
        parts: how many candidates' items make up all items; 1 where each is scored on all.
        ingredients: where single models stand; None where a space has no weights of its models.

    >>> Problem(dimension=3, seed=1, start=np.full(3, 0.5)).objectives
    1
    """

    dimension: int
    seed: int
    start: np.ndarray
    objectives: int = 1
    levels: tuple[int, ...] = ()
    steps: np.ndarray | None = None
    parts: int = 1
    ingredients: Ingredients | None = None


class Proposal(NamedTuple):
    """A candidate to score.

    Attributes:
        genome: (dimension,) float64 in [0, 1].
        parents: numbers of the told candidates that it crosses.
        part: the number, from 0, of the part of the items on which it is scored; without a
            meaning where candidates are scored on all items. Parts of different numbers have
            different items, as far as there are enough.
        again: the number of a told candidate that is to be scored once more, on this part; its
            genome and parents are then those of this one, whatever is written here.

    >>> Proposal(np.array([0.25, 0.75])).parents
    ()
    """

    genome: np.ndarray
    parents: tuple[int, ...] = ()
    part: int = 0
    again: int | None = None


class Recommendation(NamedTuple):
    """A candidate that a controller takes for its best, to be scored in full.

    Attributes:
        genome: (dimension,) float64 in [0, 1]; a point that need not have been proposed.
        label: what it is, for people.

    >>> Recommendation(np.array([0.5]), "mean").label
    'mean'
    """

    genome: np.ndarray
    label: str


@dataclass(frozen=True)
class Feedback:
    """What a controller hears of one candidate.

    Attributes:
        ordinal: n for the n-th genome that this controller proposed, from 0; None for a
            candidate that it did not propose.
        genome: (dimension,) float64, as decoded; None if the space cannot express it.
        value: the weighted mean of `objectives`, more is better; None for a failure.
        objectives: signed and scaled so that 0 is the worst baseline and 1 the best, more is
            better; None for a failure.
        violation: by how much constraints are missed, in units of the objectives' scale; 0 for
            a candidate that keeps them all. One that violates less is better, whatever it scores.
        candidate: its number, as `Proposal.parents` has it.
        items: (items,) float32 in [0, 1], more is better, of all objectives one after the other,
            where the controller reads them; those of its part.
        breeds: whether it may be a parent.
        errors: the standard errors of `objectives`, on their scale; 0 where all items are scored.
            None for a failure.

    >>> Feedback(0, np.array([0.5]), None, None).value is None  # a failure
    True
    """

    ordinal: int | None
    genome: np.ndarray | None
    value: float | None
    objectives: tuple[float, ...] | None
    violation: float = 0.0
    candidate: int = 0
    items: np.ndarray | None = None
    breeds: bool = False
    errors: tuple[float, ...] | None = None


class Controller(ABC):
    """A search: asked for genomes, told what became of them. See the module's docstring.

    Attributes:
        section: the class of its options.
        breeds: whether it proposes children of told candidates.
        reads_items: whether it reads item scores.
        minds_steps: whether it reads `Problem.steps`.
        is_for_few: whether it is meant for some tens of candidates: it takes long to choose one.
        learns: whether it minds what it is told.
        seeks_front: whether it spreads over the Pareto front, where there are several objectives,
            and does not seek the highest value.

    >>> from evomerge.search.controllers.random import RandomSearch, RandomSection
    >>> search = RandomSearch(Problem(dimension=2, seed=1, start=np.full(2, 0.5)), RandomSection())
    >>> [proposal.genome.shape for proposal in search.ask(2)]
    [(2,), (2,)]
    """

    section: ClassVar[type[ControllerSection]]
    breeds: ClassVar[bool] = False
    reads_items: ClassVar[bool] = False
    minds_steps: ClassVar[bool] = False
    is_for_few: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    seeks_front: ClassVar[bool] = False

    @abstractmethod
    def ask(self, n: int) -> list[Proposal]:
        """Return at most n proposals."""

    @abstractmethod
    def tell(self, feedback: Feedback) -> None:
        """Learn what became of a candidate."""

    def recommend(self) -> list[Recommendation]:
        """Return whom it would score in full, the most promising first.

        None by default: then the campaign takes the told candidates of the best estimates. It may
        be called at any time, and leaves the controller unchanged.
        """
        return []


CONTROLLERS: Registry[type[Controller]] = Registry("evomerge.search.controllers", "controller")

_C = TypeVar("_C", bound=Controller)


def controller(section: type[ControllerSection]) -> Callable[[type[_C]], type[_C]]:
    """Register a controller class, made as `cls(problem, options)`, under its section's kind.

    Args:
        section: the class of its options; its `kind` is what campaign files write.

    >>> CONTROLLERS.get("cmaes").section.__name__
    'CmaEsSection'
    """

    def register(cls: type[_C]) -> type[_C]:
        cls.section = section
        (name,) = typing.get_args(section.model_fields["kind"].annotation)
        CONTROLLERS.add(name, cls)
        return cls

    return register


def make_controller(problem: Problem, options: ControllerSection) -> Controller:
    """Return a fresh controller with these options.

    >>> from evomerge.search.controllers.cmaes import CmaEsSection
    >>> problem = Problem(dimension=2, seed=1, start=np.full(2, 0.5))
    >>> len(make_controller(problem, CmaEsSection(population=4)).ask(3))
    3
    """
    maker: Callable[[Problem, ControllerSection], Controller] = CONTROLLERS.get(options.kind)
    return maker(problem, options)
