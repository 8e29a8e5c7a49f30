"""What a judge's reply says, though it be wrapped in words, fences or thoughts."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

_NUMBER = r"(\d+(?:\.\d+)?)"
_SIDES = {"a": "A", "b": "B", "tie": "tie", "c": "tie", "equal": "tie", "both": "tie"}


def read_grade(reply: str) -> float | None:
    """Return the grade of a reply, from 0 to 10; None if there is none.

    The last JSON object with a `score` counts; without one a `score: 7`, a `7/10`, or a number
    alone.

    >>> read_grade('Well. ```json\\n{"reason": "good", "score": "7"}\\n```'), read_grade("7/10")
    (7.0, 7.0)
    >>> read_grade("11") is None, read_grade("It has 3 faults.") is None
    (True, True)
    """
    for data in _objects(reply):
        if "score" in data:
            return _grade(data["score"])
    for pattern in (rf"\bscore\W{{0,5}}{_NUMBER}", rf"{_NUMBER}\s*/\s*10\b"):
        if found := re.findall(pattern, reply, re.IGNORECASE):
            return _grade(found[-1])
    return _grade(reply.strip().rstrip("."))


def _grade(value: Any) -> float | None:
    if isinstance(value, str):
        value = value.strip().partition("/")[0]
    if isinstance(value, bool):
        return None
    try:
        grade = float(value)
    except (TypeError, ValueError):
        return None
    return grade if math.isfinite(grade) and 0.0 <= grade <= 10.0 else None


def read_better(reply: str) -> str | None:
    """Return which answer a reply calls better, "A", "B" or "tie"; None if it says none.

    The last JSON object with a `better` counts; without one `[[A]]`, or the letter alone.

    >>> read_better('{"better": "Answer B"}'), read_better("[[C]]"), read_better(" a. ")
    ('B', 'tie', 'A')
    >>> read_better("A good question!") is None
    True
    """
    for data in _objects(reply):
        if "better" in data:
            return _side(data["better"])
    if found := re.findall(r"\[\[(\w+)\]\]", reply):
        return _side(found[-1])
    return _side(reply)


def _side(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    word = value.strip(" \n\t.*\"'").lower().removeprefix("answer ").strip()
    return _SIDES.get(word)


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """Return the JSON objects within a reply, the last one first."""
    decoder = json.JSONDecoder()
    for start in reversed([found.start() for found in re.finditer(r"\{", reply)]):
        try:
            data, _ = decoder.raw_decode(reply[start:])
        except (ValueError, RecursionError):
            continue
        if isinstance(data, dict):
            yield data
