"""Texts to learn on: prompts, with or without their answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from evomerge.errors import BadInput, Fault

_T = TypeVar("_T")


class LearningText(NamedTuple):
    """A prompt, and what is right; "" where that is not known.

    >>> LearningText("3 + 4 =", "7").answer
    '7'
    """

    prompt: str
    answer: str = ""


def read_texts(file: Path | str) -> list[LearningText]:
    """Return the texts of a file with one JSON object in each line.

    An object has `text` (or `prompt`), and may have `answer` (or `target`).

    Raises:
        BadInput: the file cannot be read, or a line is something else.

    >>> read_texts("no-such.jsonl")
    Traceback (most recent call last):
    evomerge.errors.BadInput: no-such.jsonl cannot be read; write the path of a JSONL file
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        mend = "write the path of a JSONL file"
        raise BadInput(Fault("", f"{file} cannot be read", mend)) from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found.append(_text_of(line, f"line {number} of {file}"))
    if not found:
        raise BadInput(Fault("", f"{file} has no texts", 'write lines such as {"text": "3 + 4 ="}'))
    return found


def _text_of(line: str, said: str) -> LearningText:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    row = row if isinstance(row, dict) else {}
    prompt, answer = row.get("text", row.get("prompt")), row.get("answer", row.get("target", ""))
    if not isinstance(prompt, str) or not prompt or not isinstance(answer, str | int | float):
        mend = 'write e.g. {"text": "3 + 4 =", "answer": "7"}, the answer only if it is known'
        raise BadInput(Fault("", f"{said} is no text", mend))
    return LearningText(prompt, str(answer))


def chosen(lists: Sequence[Sequence[_T]], count: int, seed: int) -> list[_T]:
    """Return `count` entries, as equally as can be from each list, drawn with a seed.

    >>> sorted(chosen([[1, 2, 3, 4], [10]], 3, seed=0))[2]
    10
    """
    rng = np.random.default_rng(seed)
    waiting = [list(rng.permutation(len(entries))) for entries in lists]
    found: list[_T] = []
    while len(found) < count and any(waiting):
        for entries, left in zip(lists, waiting, strict=True):
            if left and len(found) < count:
                found.append(entries[left.pop(0)])
    return found
