"""Learners, one file each: how coefficients of task arithmetic are found by gradients.

A new learner is one file here: a section with its options (see `LearnerSection`), and a function
registered with `@learner(section)` that takes a `LearningProblem` and the options and returns what
it `Learned`, or raises `Unlearnable`. It imports torch, and what needs it, when it is called:
campaign files are read without.
"""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

import numpy as np

from evomerge.learning.parting import By, Parting
from evomerge.registry import Registry
from evomerge.sections import Section, Text, Whole, option
from evomerge.sources.texts import Passage

if TYPE_CHECKING:
    from evomerge.learning.live_merge import LiveMerge


class LearnerSection(Section):
    """The options of a learner in a campaign file; `kind` is its name.

    Attributes:
        needs_answers: whether it learns from texts with their answers alone.

    >>> from evomerge.learning.learners.adamerging import AdaMergingSection
    >>> AdaMergingSection().label
    'adamerging'
    """

    needs_answers: ClassVar[bool] = False

    kind: str
    name: Text | None = option(
        "of the baseline that is learned; null: the kind", None, example="entropy-per-layer"
    )
    texts: Text | None = option(
        "a JSONL file of what to learn on, {text: ...} or {text: ..., answer: ...} in each line;"
        " null: the search items of the fitnesses",
        None,
        example="prompts.jsonl",
    )
    count: Whole = option("texts that are taken, at most", 64, unit="texts", ge=1)
    batch: Whole = option("texts that are run at once", 16, unit="texts", ge=1)
    max_tokens: Whole = option("that are kept of a text, the last ones", 256, unit="tokens", ge=2)
    by: By = option(
        "what has coefficients of its own: the model, each layer, each module of a layer, or each"
        " tensor of a layer",
        "layer",
    )

    @property
    def label(self) -> str:
        """The name of what is learned, a baseline."""
        return self.name or self.kind

    @property
    def effort(self) -> str:
        """How long it goes on, for people to read."""
        return ""

    @property
    def experts_texts(self) -> Mapping[str, str]:
        """Label of a model -> the fitness or the file whose texts are its own."""
        return {}

    def wants_answers(self) -> bool:
        """Tell whether texts without answers will not do."""
        return self.needs_answers


class Learned(NamedTuple):
    """What a learner found.

    Attributes:
        parting: of the tensors into cells.
        coefficients: (cells, models) float64.
        losses: of each step, on that step's texts.

    >>> from evomerge.learning.parting import parted
    >>> Learned(parted(["h.0.w"], "model"), np.array([[0.3, 0.3]]), [1.5]).losses
    [1.5]
    """

    parting: Parting
    coefficients: np.ndarray
    losses: list[float]


def _unheard(step: int, loss: float) -> None:
    """Hear of a step, and say nothing."""


@dataclass
class LearningProblem:
    """What a learner is given.

    Attributes:
        merge: runs the merged model and differentiates it by its coefficients.
        texts: to learn on.
        seed: of all that is drawn.
        own: index of a model -> texts of its own; empty where they have none.
        step: hears of each step's number, from 0, and its loss; it may raise, to stop.

    >>> LearningProblem(None, [Passage("3 + 4 =")], seed=7).own
    {}
    """

    merge: "LiveMerge"
    texts: Sequence[Passage]
    seed: int
    own: Mapping[int, Sequence[Passage]] = field(default_factory=dict)
    step: Callable[[int, float], None] = _unheard


class LearnerKind(NamedTuple):
    """A registered learner.

    Attributes:
        section: the class of its options.
        learn: finds the coefficients.

    >>> LEARNERS.get("adamerging").section.__name__
    'AdaMergingSection'
    """

    section: type[LearnerSection]
    learn: Callable[..., Learned]  # (problem, options)


LEARNERS: Registry[LearnerKind] = Registry("evomerge.learning.learners", "learner")

_L = TypeVar("_L", bound=Callable[..., Learned])


def learner(section: type[LearnerSection]) -> Callable[[_L], _L]:
    """Register a function that learns, under its section's kind.

    Args:
        section: the class of its options; its `kind` is what campaign files write.

    >>> sorted(LEARNERS.all())
    ['adamerging', 'expert_merging', 'fw_merging', 'self_positioning']
    """

    def register(learn: _L) -> _L:
        (kind,) = typing.get_args(section.model_fields["kind"].annotation)
        LEARNERS.add(kind, LearnerKind(section, learn))
        return learn

    return register
