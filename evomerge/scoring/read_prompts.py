"""Prompts that a live model reads, or answers and reads: nobody has to know a good answer."""

from collections.abc import Sequence
from typing import Any, Literal

from evomerge.scoring.fitness import Scorable
from evomerge.scoring.lm_eval_model import DEFAULT_BATCH, LoadedModel, answer
from evomerge.scoring.prompts import PromptsFitness, PromptsSection
from evomerge.scoring.reading import Reader, Row
from evomerge.sections import Whole, option

Over = Literal["prompt", "answer"]


class ReadSection(PromptsSection):
    """Prompts without answers, that a decoder of transformers reads token by token.

    >>> ReadSection(name="x", prompts="prompts.jsonl").max_tokens
    16
    """

    max_tokens: Whole = option("of an answer, where answers are read", 16, unit="tokens", ge=1)

    @property
    def over(self) -> Over:
        """Which positions count: those of the prompt, or those of an answer to it."""
        return "prompt"

    @property
    def needs_model(self) -> bool:
        return True

    @property
    def needs_decoder(self) -> bool:
        return True


class ReadPrompts(PromptsFitness):
    """Reads the prompts of a file, or what the live model answers to them.

    What scores what was read is a subclass.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> from evomerge.testing.prompts import example_prompts
    >>> fitness = ReadPrompts(ReadSection(name="x", prompts=str(example_prompts())))
    >>> fitness.prepare(example_live(), [0, 1])
    >>> fitness.rows([1])  # that count from the first token on
    [Row(tokens=[6, 7], first=0)]
    """

    def __init__(self, section: ReadSection):
        """
        Raises:
            BadInput: the file of prompts will not do.
        """
        super().__init__(section)
        self._over: Over = section.over
        self._answers = section.max_tokens if self._over == "answer" else 0
        self._batch = section.batch_size or DEFAULT_BATCH
        self._prompts: dict[int, list[int]] = {}

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        if live.model is None:  # an engine that is tried for what others ask: nothing is read
            return
        super().prepare(LoadedModel(live.model, live.tokenizer), ordinals)
        self._reader = Reader(live.model, self._batch)
        for ordinal in ordinals:
            context, _ = self._requests[ordinal].args
            self._prompts[ordinal] = self._lm.encoded(context, self._answers)

    def rows(self, ordinals: Sequence[int]) -> list[Row]:
        """Return what is to be read; answers are those of the model as it is now."""
        if self._over == "prompt":
            return [Row(self._prompts[ordinal], 0) for ordinal in ordinals]
        requests = [self._requests[ordinal] for ordinal in ordinals]
        answer(self._lm, requests)
        found = []
        for ordinal, request in zip(ordinals, requests, strict=True):
            prompt, (said,) = self._prompts[ordinal], request.said
            spoken = self._lm.spoken(said)
            # the last token of an answer ends it: what would come after it does not count
            found.append(Row([*prompt, *spoken[:-1]], len(prompt) - 1))
        return found

    def questions(self, ordinals: Sequence[int]) -> tuple[Any, list[Any]] | None:  # type: ignore[override]
        """Return None: its answers are asked for by itself, of transformers' own model."""
        return None

    def answers(self, ordinals: Sequence[int]) -> list[str] | None:  # type: ignore[override]
        """Return None: nothing is said, unless a subclass knows better."""
        return None

    def spoken(self) -> Sequence[int]:
        """Return nothing: answers that are cut short are no measure of a length."""
        return ()
