"""Texts as batches of token ids, and in which order they come."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from evomerge.sources.texts import Passage


class Tokens(NamedTuple):
    """A text's ids, of which the first `prompt` are what is asked.

    >>> Tokens([4, 5, 6], prompt=2).ids[2:]
    [6]
    """

    ids: list[int]
    prompt: int


class Batch(NamedTuple):
    """Texts of equal length by padding on the right.

    Attributes:
        ids: (texts, longest) int64.
        mask: the same, 1 where there is a token.
        ends: (texts,) int64, where a prompt's last token stands.
        answers: (texts, longest - 1) bool: where the next token is one of the answer.

    >>> batch_of([Tokens([4, 5, 6], 2), Tokens([7], 1)], pad=0).answers.tolist()
    [[False, True], [False, False]]
    """

    ids: torch.Tensor
    mask: torch.Tensor
    ends: torch.Tensor
    answers: torch.Tensor


def tokenized(
    tokenizer: Any, texts: Sequence[Passage], most: int, *, answers: bool = False
) -> list[Tokens]:
    """Return the ids of texts; of long prompts the last ones.

    A prompt and its answer are joined by a space, as lm-eval joins them.

    Args:
        tokenizer: of the models.
        texts: to learn on.
        most: ids of a text.
        answers: whether answers are taken too; texts without one are left out then.

    >>> from evomerge.testing.tiny import tiny_tokenizer
    >>> tokenized(tiny_tokenizer(), [Passage("w0 w1", "w2")], most=2, answers=True)
    [Tokens(ids=[5, 6], prompt=1)]
    """
    found = []
    for text in texts:
        prompt = list(tokenizer(text.prompt)["input_ids"])
        rest: list[int] = []
        if answers:
            rest = list(tokenizer(f"{text.prompt} {text.answer}")["input_ids"])[len(prompt) :]
            rest = rest[: most - 1]
            if not text.answer or not rest:
                continue
        prompt = prompt[-(most - len(rest)) :]
        if prompt:
            found.append(Tokens(prompt + rest, len(prompt)))
    return found


def batch_of(rows: Sequence[Tokens], pad: int, device: str = "cpu") -> Batch:
    """Return texts as one batch.

    Args:
        rows: at least one.
        pad: the id that fills what is short; it is masked.
        device: of the tensors.

    >>> batch_of([Tokens([4, 5], 2), Tokens([7], 1)], pad=0).ids.tolist()
    [[4, 5], [7, 0]]
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    answers = torch.zeros((len(rows), longest - 1), dtype=torch.bool)
    for n, row in enumerate(rows):
        ids[n, : len(row.ids)] = torch.tensor(row.ids)
        mask[n, : len(row.ids)] = 1
        answers[n, row.prompt - 1 : len(row.ids) - 1] = True
    ends = torch.tensor([row.prompt - 1 for row in rows])
    return Batch(ids.to(device), mask.to(device), ends.to(device), answers.to(device))


def drawn(rows: Sequence[Tokens], size: int, seed: int) -> Iterator[list[Tokens]]:
    """Yield so many rows again and again: all of them in a drawn order, then in another one.

    >>> endless = drawn([Tokens([n], 1) for n in range(3)], 2, seed=0)
    >>> sorted({row.ids[0] for row in next(endless) + next(endless)})
    [0, 1, 2]
    """
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, len(rows)):
            waiting += list(rng.permutation(len(rows)))
        taken, waiting = waiting[:size], waiting[size:]
        yield [rows[n] for n in taken]
