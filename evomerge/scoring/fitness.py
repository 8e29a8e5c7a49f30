"""What scores a model: an lm-eval task, a Python module, or what the model costs to run.

An entry of a campaign's `fitness` is one of three sections, told apart by their key: `task`,
`function` or `cost`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BeforeValidator

from evomerge.errors import Fault, Faults
from evomerge.scoring.items import ItemText
from evomerge.sections import Flag, Number, Section, Text, Whole, one_of, option, refuse


class FitnessSection(Section):
    """What every entry of `fitness` has.

    >>> CostSection(name="size", cost="parameters").weight
    1.0
    """

    name: Text = option("the objective's name", pattern=r"^[A-Za-z0-9_.-]+$", example="maths")
    weight: Number = option("in the weighted mean of the objectives", 1.0, gt=0)
    direction: Literal["maximize", "minimize"] | None = option(
        "what is better; null: what the task says, maximize for a function, minimize for a cost",
        None,
    )
    constraint: Text | None = option(
        'what the mean has to keep, e.g. ">= 0.4", "<= 12" or ">= base - 0.01"; a baseline is'
        " written by its label, `baseline` means the best source",
        None,
        example=">= base - 0.01",
    )

    @property
    def taken(self) -> int | None:
        """How many items to take before the split; None for all."""
        return None

    def resolved(self) -> "FitnessSection":
        """Return the section with its file's path from the root: workers may start elsewhere."""
        return self


class TaskSection(FitnessSection):
    """An lm-eval task, scored item by item.

    >>> TaskSection(name="maths", task="gsm8k", metric="exact_match,strict-match").fewshot is None
    True
    """

    task: Text = option(
        "the name of an lm-eval task or group, or the path of its YAML", example="gsm8k"
    )
    metric: Text = option(
        "one that lm-eval averages over items, or bits_per_byte; of several filters METRIC,FILTER",
        example="exact_match",
    )
    aggregate: Literal["mean"] | None = option(
        "takes a group of tasks as one objective, over the items of all of them together: every"
        " item counts once, so that a larger task weighs more",
        None,
    )
    items: Whole | None = option("items to take before the split; null: all", None, ge=1)
    fewshot: Whole | None = option("worked examples in each prompt; null: the task's", None, ge=0)
    generation: dict[str, Any] | None = option(
        "generation arguments that replace the task's", None, example={"max_gen_toks": 64}
    )
    chat_template: Flag = option("put prompts into the tokenizer's chat template", False)
    system: Text | None = option("system message of the chat template", None)
    batch_size: Whole | None = option("prompts at once; null: 64", None, ge=1)

    @property
    def taken(self) -> int | None:
        return self.items

    def resolved(self) -> FitnessSection:
        return self.model_copy(update={"task": _from_root(self.task)})


class FunctionSection(FitnessSection):
    """A Python file with `items()` and `score(model, tokenizer, items)`, one float for each item.

    >>> FunctionSection(name="brevity", function="fitness/brevity.py").items is None
    True
    """

    function: Text = option("path of the Python file", example="fitness/brevity.py")
    items: Whole | None = option("items to take before the split; null: all", None, ge=1)

    @property
    def taken(self) -> int | None:
        return self.items

    def resolved(self) -> FitnessSection:
        return self.model_copy(update={"function": _from_root(self.function)})


class CostSection(FitnessSection):
    """What a model costs to run.

    >>> CostSection(name="depth", cost="hops").direction is None
    True
    """

    cost: Literal["hops", "parameters", "seconds_per_token", "tokens"] = option(
        "hops: layers that a token passes; parameters: of the exported model; seconds_per_token:"
        " measured, greedy, at batch 1; tokens: the length of the answers to tasks by generation",
        example="hops",
    )
    of: list[Text] = option(
        "of tokens: the objectives whose answers count; none: all that are answered in words",
        factory=list,
        example=["maths"],
    )

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        cost = fields.get("cost", "tokens")
        if fields.get("of") and cost != "tokens":
            yield Fault("of", f"belongs to cost: tokens, not to {cost}", "leave it out")


def _from_root(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).is_file() else path


_KINDS: dict[str, type[FitnessSection]] = {
    "task": TaskSection,
    "function": FunctionSection,
    "cost": CostSection,
}


def _which(value: Any) -> str:
    given = value if isinstance(value, Mapping) else {}
    return next((kind for kind in _KINDS if given.get(kind) is not None), "task")


def _one_kind(value: Any) -> Any:
    """Refuse an entry of no kind or of several, and keys that belong to another kind."""
    if not isinstance(value, Mapping):
        return value
    entry = {key: given for key, given in value.items() if given is not None}
    kinds = [kind for kind in _KINDS if kind in entry]
    if len(kinds) != 1:
        wrong = f"has {' and '.join(kinds)}" if kinds else "needs a task, a function or a cost"
        refuse([Fault("", wrong, "write one of them")])
    own = _KINDS[kinds[0]].model_fields
    known = {key for section in _KINDS.values() for key in section.model_fields}
    faults = Faults()
    for key in [key for key in entry if key in known and key not in own]:
        if entry[key] is not False:
            owner = next(kind for kind, section in _KINDS.items() if key in section.model_fields)
            faults.add(key, f"belongs to {owner}s, not to a {kinds[0]}", "leave it out")
        entry.pop(key)
    refuse(faults.found)
    return entry


if TYPE_CHECKING:
    AnyFitness = FitnessSection
else:
    AnyFitness = Annotated[one_of(_KINDS, _which), BeforeValidator(_one_kind)]


class Scorable(Protocol):
    """A live model as fitnesses see it; an engine is one, and so is a `LoadedModel`.

    Attributes:
        model: of transformers or of a factory; None where what runs it has none.
        tokenizer: its own; None if it has none.
    """

    @property
    def model(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    def language_model(self, section: TaskSection) -> Any:
        """Return what answers requests of lm-eval, as a task's entry wants it."""


class Fitness(ABC):
    """What scores a model on items known by their ordinal, 0 to len(hashes) - 1.

    Attributes:
        direction: "maximize" or "minimize".
        definition: hash of what scores, a module's or a task's file; "" where there is none.
        hashes: one for each item; they tell whether the items are still the same.
        test_from: the first ordinal of the task's own held-out items, where asked for.
        is_cost: whether its one item is the model itself, measured on both sides.
        follows: the objectives whose answers it measures, if it has no items of its own: it is
            scored after them, see `items_of`.
        notes: what the user should know of its items, one line each.

    >>> from evomerge.scoring.costs import CostFitness
    >>> CostFitness(CostSection(name="size", cost="parameters")).direction
    'minimize'
    """

    direction: Literal["maximize", "minimize"]
    definition: str = ""
    hashes: list[str]
    test_from: int | None = None
    is_cost: bool = False
    follows: Sequence[str] = ()
    notes: Sequence[str] = ()

    @abstractmethod
    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        """Get ready to score a model, whose weights will change, on any of `ordinals`."""

    @abstractmethod
    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        """Return the (len(ordinals),) float32 scores of the model as it is now."""

    def questions(self, ordinals: Sequence[int]) -> tuple[Any, list[Any]] | None:
        """Return what answers lm-eval's requests, and those of some items; None if it has none.

        Whoever has them answered finds the scores by `scores`. So several fitnesses can be asked
        at once, in batches that are fuller.
        """
        return None

    def scores(self, ordinals: Sequence[int]) -> np.ndarray:
        """Return the (len(ordinals),) float32 scores of the answers to its questions."""
        raise TypeError(f"{type(self).__name__} asks no questions")

    def is_public_test_split(self) -> bool:
        """Tell whether the items are the test split of a data set that others report on."""
        return False

    def answers(self, ordinals: Sequence[int]) -> list[str] | None:
        """Return what the model said when it was last scored; None if it does not speak."""
        return None

    def text(self, ordinal: int) -> ItemText | None:
        """Return what an item asks and what is right, for people to read; None without words."""
        return None

    def spoken(self) -> Sequence[int]:
        """Return the ordinals of the items that the model answers in words."""
        return ()

    def lengths(self, ordinals: Sequence[int]) -> np.ndarray:
        """Return the (len(ordinals),) float32 lengths, in tokens, of what was answered last.

        Raises:
            ValueError: an item was not among those that were scored last.
        """
        raise NotImplementedError("it has no answers")

    def follow(self, others: Mapping[str, "Fitness"]) -> None:
        """Get to know the fitnesses of the campaign by objective, itself among them.

        Raises:
            BadInput: it needs others that are not there.
        """
        self.follows = ()

    def items_of(self, ordinals: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """Return the ordinals of the items that it has in common with objectives that it follows.

        Args:
            ordinals: objective -> ordinals there.

        Returns:
            Sorted; none if it follows nothing.
        """
        return ()

    def characters(self) -> float | None:
        """Return the mean length of what is read to score an item; None if it is unknown."""
        return None
