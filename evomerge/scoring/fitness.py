"""What scores a model, and the sections of the three common kinds.

An entry of a campaign's `fitness` is of one kind, told by its key: a `task` of lm-eval, a
`function` in Python, a `cost`, or one of the other `kinds`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from pydantic import PrivateAttr

from evomerge.errors import Fault
from evomerge.scoring.items import ItemText
from evomerge.sections import Flag, Number, Section, Text, Whole, option


class FitnessSection(Section):
    """What every entry of `fitness` has.

    Attributes:
        key: by which the kind is known, one of its own fields.
        is_for_text: whether it scores language models alone, and no other modules.

    >>> CostSection(name="size", cost="parameters").weight
    1.0
    """

    key: ClassVar[str]
    is_for_text: ClassVar[bool] = True

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

    _place: str = PrivateAttr("")

    @property
    def place(self) -> str:
        """Its key in the campaign file, where it is not the entry that it seems to be."""
        return self._place

    def put(self, place: str, **changes: Any) -> Self:
        """Return a copy with other fields, which stands for the entry of a key.

        >>> CostSection(name="size", cost="hops").put("fitness.1", name="depth").place
        'fitness.1'
        """
        section = self.model_copy(update=changes)
        section._place = place
        return section

    @property
    def taken(self) -> int | None:
        """How many items to take before the split; None for all."""
        return None

    @property
    def file_key(self) -> str:
        """The field that names what its `definition` is of."""
        return self.key

    @property
    def baseline(self) -> str | None:
        """The label of a baseline that it compares with; None if it compares with none."""
        return None

    @property
    def expert(self) -> str | None:
        """The label of a source that shows it what is good; None if it needs none."""
        return None

    @property
    def compared_layers(self) -> Sequence[int]:
        """The layers of the candidate that it compares with its expert's: 0 is the embeddings."""
        return ()

    @property
    def needs_model(self) -> bool:
        """Whether it is given transformers' model, which not every engine has."""
        return True

    def resolved(self) -> "FitnessSection":
        """Return the section with its file's path from the root: workers may start elsewhere."""
        return self


class AskedSection(FitnessSection):
    """What a model is asked and answers, by whatever engine runs it.

    Attributes:
        asks: what it is, in a fault.

    >>> TaskSection(name="x", task="x.yaml", metric="acc").needs_model
    False
    """

    asks: ClassVar[str]

    batch_size: Whole | None = option("prompts at once; null: 64", None, ge=1)

    @property
    def needs_model(self) -> bool:
        return False

    @property
    def wants_chat_template(self) -> bool:
        """Whether the tokenizer has to have a chat template."""
        return False

    @property
    def needs_decoder(self) -> bool:
        """Whether the model has to predict each token of a text from those before it."""
        return False


class LmEvalSection(AskedSection):
    """How tasks of lm-eval are asked, and which of their metrics is taken.

    >>> TaskSection(name="maths", task="gsm8k", metric="exact_match,strict-match").fewshot is None
    True
    """

    asks = "a task"

    metric: Text = option(
        "one that lm-eval averages over items, or bits_per_byte; of several filters METRIC,FILTER",
        example="exact_match",
    )
    items: Whole | None = option("items to take before the split; null: all", None, ge=1)
    fewshot: Whole | None = option("worked examples in each prompt; null: the task's", None, ge=0)
    generation: dict[str, Any] | None = option(
        "generation arguments that replace the task's", None, example={"max_gen_toks": 64}
    )
    chat_template: Flag = option("put prompts into the tokenizer's chat template", False)
    system: Text | None = option("system message of the chat template", None)
    allow_code: Flag = option(
        "run the programs that models write, in a sandbox, where the task scores them so", False
    )

    @property
    def taken(self) -> int | None:
        return self.items

    @property
    def wants_chat_template(self) -> bool:
        return self.chat_template


class TaskSection(LmEvalSection):
    """An lm-eval task, or a group of them, scored item by item.

    >>> TaskSection(name="maths", task="gsm8k", metric="exact_match,strict-match").taken is None
    True
    """

    key = "task"

    task: Text = option(
        "the name of an lm-eval task or group, or the path of its YAML", example="gsm8k"
    )
    aggregate: Literal["mean", "objectives"] | None = option(
        "how a group of tasks is taken; mean: as one objective, over the items of all of them"
        " together, so that every item counts once and a larger task weighs more; objectives: each"
        " task as an objective of its own, called NAME.TASK, which share the weight",
        None,
    )

    def resolved(self) -> FitnessSection:
        return self.model_copy(update={"task": from_root(self.task)})


class FunctionSection(FitnessSection):
    """A Python file with `items()` and `score(model, tokenizer, items)`, one float for each item.

    >>> FunctionSection(name="brevity", function="fitness/brevity.py").items is None
    True
    """

    key = "function"
    is_for_text = False

    function: Text = option("path of the Python file", example="fitness/brevity.py")
    items: Whole | None = option("items to take before the split; null: all", None, ge=1)

    @property
    def taken(self) -> int | None:
        return self.items

    def resolved(self) -> FitnessSection:
        return self.model_copy(update={"function": from_root(self.function)})


class CostSection(FitnessSection):
    """What a model costs to run.

    >>> CostSection(name="depth", cost="hops").direction is None
    True
    """

    key = "cost"

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

    @property
    def needs_model(self) -> bool:
        return self.cost != "tokens"

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        cost = fields.get("cost", "tokens")
        if fields.get("of") and cost != "tokens":
            yield Fault("of", f"belongs to cost: tokens, not to {cost}", "leave it out")


def from_root(path: str) -> str:
    """Return a file's path from the root; what is no file stays as it is.

    >>> from_root("gsm8k")
    'gsm8k'
    """
    return str(Path(path).resolve()) if Path(path).is_file() else path


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

    def language_model(self, section: AskedSection) -> Any:
        """Return what answers requests of lm-eval, as an entry wants it."""


class Fitness(ABC):
    """What scores a model on items known by their ordinal, 0 to len(hashes) - 1.

    Attributes:
        direction: "maximize" or "minimize".
        definition: hash of what scores, a module's or a task's file; "" where there is none.
        hashes: one for each item; they tell whether the items are still the same.
        test_from: the first ordinal of the task's own held-out items, where asked for.
        is_judged: whether it gives answers alone, which are scored where the campaign runs.
        bytes: of memory that it takes in each worker, beside the model that it scores.
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
    is_judged: bool = False
    bytes: int = 0
    is_cost: bool = False
    follows: Sequence[str] = ()
    notes: Sequence[str] = ()

    @abstractmethod
    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        """Get ready to score a model, whose weights will change, on any of `ordinals`."""

    @abstractmethod
    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        """Return the (len(ordinals),) float32 scores of the model as it is now."""

    def learn(self, content: str, become: Callable[[], object]) -> None:
        """Get to know what its expert says, before the first candidate.

        Args:
            content: what the expert is, in full: equal for equal answers.
            become: lets the live model be the expert; not called where that is known already.

        Raises:
            BadInput: the expert says nothing that can be compared with.
        """
        raise TypeError(f"{type(self).__name__} has no expert")

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
