"""Several models that are asked the same in turn, answered for all at once.

A search scores one candidate after the other, and each is asked the same questions. An engine that
holds several of them is asked once: what the later ones say is kept until it is their turn.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

Prompts = Sequence[Sequence[int]]
Options = Sequence[dict[str, Any]]

_Question = tuple[tuple[tuple[int, ...], ...], str]


class AskingAhead(Generic[T]):
    """Asks for the current model, and for those that are to come.

    >>> def generate(prompts, options, models):
    ...     print(len(prompts), "prompts")
    ...     return [f"{model} says {prompt}" for model, prompt in zip(models, prompts)]
    >>> asking = AskingAhead(generate)
    >>> asking.expect(["a", "b"])
    >>> asking.become("a")
    >>> greedy = {"temperature": 0.0}
    >>> asking.ask([[5], [6]], [greedy, greedy])
    4 prompts
    ['a says [5]', 'a says [6]']
    >>> asking.become("b")
    >>> asking.ask([[5], [6]], [greedy, greedy])
    ['b says [5]', 'b says [6]']
    """

    def __init__(self, generate: Callable[[Prompts, Options, Sequence[T]], list[Any]]):
        """
        Args:
            generate: (prompts, options, the model of each prompt) -> answers.
        """
        self._generate = generate
        self._current: T | None = None
        self._waiting: list[T] = []
        self._answers: dict[tuple[T, _Question], list[Any]] = {}

    def expect(self, models: Sequence[T]) -> None:
        """Hear which models come next; what was kept for others is forgotten."""
        self._waiting, self._answers = list(models), {}

    def become(self, model: T) -> None:
        """Go on to a model; questions are its own from now on."""
        self._current = model
        self._waiting = [one for one in self._waiting if one != model]
        alive = {model, *self._waiting}
        self._answers = {key: said for key, said in self._answers.items() if key[0] in alive}

    def ask(self, prompts: Prompts, options: Options) -> list[Any]:
        """Return the current model's answers.

        Args:
            prompts: tokens of each.
            options: arguments of `vllm.SamplingParams`, of each.
        """
        assert self._current is not None, "`become` comes first"
        if not prompts:
            return []
        question = tuple(map(tuple, prompts)), repr(list(options))
        said = self._answers.pop((self._current, question), None)
        if said is not None:
            return said
        # what is drawn at random would depend on who is asked beside it
        is_sampled = any(some.get("temperature") != 0.0 for some in options)
        models = [self._current] if is_sampled else [self._current, *self._waiting]
        try:
            answers = self._asked(prompts, options, models)
        except Exception:
            if len(models) == 1:
                raise
            self._waiting = []  # one of them may be to blame: each is asked by itself
            answers = self._asked(prompts, options, models[:1])
        for model, of_model in zip(models[1:], answers[1:], strict=False):
            self._answers[model, question] = of_model
        return answers[0]

    def _asked(self, prompts: Prompts, options: Options, models: Sequence[T]) -> list[list[Any]]:
        """Return the answers of each model."""
        count = len(prompts)
        whose = [model for model in models for _ in range(count)]
        said = self._generate([*prompts] * len(models), [*options] * len(models), whose)
        return [said[first : first + count] for first in range(0, len(said), count)]
