"""What can go wrong, as values that read well.

EvomergeError           the command or the campaign failed (exit code 1)
├── BadInput            the user's input is at fault; nothing was loaded or written (exit code 2)
├── SourceChanged       a model's files are no longer those that were hashed
└── CandidateFailure    one candidate could not be merged or scored; becomes its outcome
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One fault of the user's input: where it is, what is wrong, what to write instead."""

    file: str
    key: str
    wrong: str
    mend: str = ""

    def __str__(self) -> str:
        place = f"{self.file}: {self.key}" if self.key else self.file
        return f"{place}: {self.wrong}" + (f"; {self.mend}" if self.mend else "")


class EvomergeError(Exception):
    """The command or the campaign failed; the message is one line for the user."""


class BadInput(EvomergeError):
    """The user's input is at fault; holds every fault that was found, one line each."""

    def __init__(self, *faults: Fault):
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


class SourceChanged(EvomergeError):
    """A model's files are no longer those that were hashed: no candidate's fault."""


class CandidateFailure(EvomergeError):
    """One candidate cannot be merged or scored; the message becomes its outcome's reason."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a mend naming the entry of `known` closest to `word`, or all of them."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(known) if known else "none is known here"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception as one line, `Type: message`, cut to `limit` characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:limit] if text else type(error).__name__


class Checks:
    """Gathers what is wrong with a mapping: unknown keys at once, the rest as it is asked.

    Attributes:
        faults: those found so far.
    """

    def __init__(self, data: Mapping[str, Any], known: Iterable[str], file: str, prefix: str = ""):
        self._data, self._file, self._prefix = data, file, prefix
        self.faults = [
            Fault(file, f"{prefix}{k}", f"unknown key '{k}'", nearest(str(k), known))
            for k in data
            if k not in known
        ]

    def need(self, key: str, good: bool, mend: str) -> None:
        """Note that the value of `key` will not do, unless it is good."""
        if not good:
            given = repr(self._data[key])[:80] if key in self._data else ""
            wrong = f"{given} will not do" if given else "is missing"
            self.faults.append(Fault(self._file, f"{self._prefix}{key}", wrong, mend))
