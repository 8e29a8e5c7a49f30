"""What lm-eval asks a transformers model to generate, as far as it does not depend on weights."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_REMEMBERED = 2**16  # ends of answers; some ten megabytes


class StopString:
    """A text that ends an answer, looked for in the text of its last tokens.

    Attributes:
        text: itself.

    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> _, tokenizer = example_live()
    >>> stop = StopString("w2", tokenizer)
    >>> stop.ends(tokenizer.encode("w1 w2 w3")), stop.ends(tokenizer.encode("w2 w1 w1 w1"))
    (True, False)
    """

    def __init__(self, text: str, tokenizer: Any):
        self.text = text
        # lm-eval looks two tokens further back, as a text may be of other tokens when generated
        self._window = len(tokenizer.encode(text, add_special_tokens=False)) + 2
        # candidates of a search say much the same
        self._is_in = functools.lru_cache(_REMEMBERED)(
            lambda tokens: text in tokenizer.decode(list(tokens))
        )

    def ends(self, tokens: Sequence[int]) -> bool:
        """Tell whether it is in the text of the last of some tokens."""
        return self._is_in(tuple(tokens[-self._window :]))


class AllStopped:
    """Tells, while a batch is generated, whether a stop string has come in each of its rows.

    It tells what lm-eval's `MultiTokenEOSCriteria` does, which decodes the end of every row at
    every step. A batch goes on until its last row has stopped, so one row that has not is enough
    to know of: a row is looked at once those before it have stopped, then at all its steps.

    >>> import torch
    >>> from evomerge.testing.lm_eval_tasks import example_live
    >>> _, tokenizer = example_live()
    >>> rows = torch.tensor(tokenizer(["w5 w1 w2", "w5 w2 w1"], add_special_tokens=False).input_ids)
    >>> stopped = AllStopped(StopString("w2", tokenizer), start=1)
    >>> stopped(rows[:, :2]), stopped(rows)
    (False, True)
    """

    def __init__(self, stop: StopString, start: int):
        """
        Args:
            stop: what is looked for.
            start: the column of the first token that is generated.
        """
        self._stop, self._start = stop, start
        self._row, self._seen = 0, 0  # the first that has not stopped; of how many of its tokens

    def __call__(self, tokens: "torch.Tensor", scores: Any = None, **_: Any) -> bool:
        if not self._stop.text:
            return True
        rows = tokens[self._row :, self._start :].tolist()
        for row in rows:
            if not self._stops(row):
                return False
            self._row, self._seen = self._row + 1, 0
        return True

    def _stops(self, row: Sequence[int]) -> bool:
        while self._seen < len(row):
            self._seen += 1
            if self._stop.ends(row[: self._seen]):
                return True
        return False


@dataclass(frozen=True)
class Batch:
    """Prompts that are answered together.

    Attributes:
        places: of its prompts among all that were asked.
        tokens: (prompts, tokens) int64 on the model's device, padded on the left.
        mask: (prompts, tokens) int64, 0 where it is padded.
        stops: what ends an answer.
        arguments: the others of `generate`.

    >>> import torch
    >>> once = torch.ones(1, 2, dtype=torch.int64)
    >>> Batch([0], once, once, [], {"max_length": 6}).width
    2
    """

    places: Sequence[int]
    tokens: "torch.Tensor"
    mask: "torch.Tensor"
    stops: Sequence[StopString]
    arguments: dict[str, Any]

    @property
    def width(self) -> int:
        """How many tokens the longest prompt has."""
        return self.tokens.shape[1]
