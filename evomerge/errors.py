"""What can go wrong, as values that read well.

EvomergeError           the command or the campaign failed (exit code 1)
├── BadInput            the user's input is at fault; nothing was loaded or written (exit code 2)
├── SourceChanged       a model's files are no longer those that were hashed
└── CandidateFailure    one candidate could not be merged or scored; becomes its outcome

A fault is found deep in the code, where nobody knows in which file of the user's it stands. So its
key is relative to what was looked at, and each caller that knows more places it: `under` a key,
and at last in a `file`.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Fault:
    """One fault of the user's input: where it is, what is wrong, what to write instead.

    Attributes:
        key: dotted, relative to what was looked at; "" for all of it.
        wrong: what is wrong, as the end of a sentence about the key.
        mend: what to write instead.
        file: of the user's; once it is known, the fault keeps its place.

    >>> fault = Fault("sigma", "7 is above 1", "write e.g. 0.2")
    >>> print(fault.under("controller").in_file("a.yaml"))
    a.yaml: controller.sigma: 7 is above 1; write e.g. 0.2
    """

    key: str
    wrong: str
    mend: str = ""
    file: str = ""

    def under(self, key: str | int) -> Self:
        """Return the fault with its key below another."""
        if self.file or key == "":
            return self
        return replace(self, key=f"{key}.{self.key}" if self.key else str(key))

    def in_file(self, file: str) -> Self:
        """Return the fault as one of a file, unless it has one."""
        return self if self.file else replace(self, file=file)

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.key) if part)
        said = f"{self.wrong}; {self.mend}" if self.mend else self.wrong
        text = f"{place}: {said}" if place else said
        return " ".join(text.splitlines())  # a name of a stranger's may have several


class EvomergeError(Exception):
    """The command or the campaign failed; the message is one line for the user.

    >>> raise EvomergeError("the disk is full")
    Traceback (most recent call last):
    evomerge.errors.EvomergeError: the disk is full
    """


class BadInput(EvomergeError):
    """The user's input is at fault; holds every fault that was found, each once.

    >>> BadInput(Fault("seed", "is missing"), Fault("seed", "is missing")).faults
    (Fault(key='seed', wrong='is missing', mend='', file=''),)
    """

    def __init__(self, *faults: Fault):
        self.faults = tuple(dict.fromkeys(faults))
        super().__init__("\n".join(map(str, self.faults)))

    def __reduce__(self) -> tuple:
        return type(self), self.faults  # exceptions travel between processes by their arguments


class SourceChanged(EvomergeError):
    """A model's files are no longer those that were hashed: no candidate's fault.

    >>> issubclass(SourceChanged, EvomergeError)
    True
    """


class CandidateFailure(EvomergeError):
    """One candidate cannot be merged or scored; the message becomes its outcome's reason.

    >>> str(CandidateFailure("merged tensor lm_head.weight is not finite"))
    'merged tensor lm_head.weight is not finite'
    """


class Faults:
    """Gathers faults, so that a user hears of all at once.

    >>> faults = Faults()
    >>> faults.add("seed", "is missing", "write a whole number")
    >>> with faults.gather(under="sources.base"):
    ...     raise BadInput(Fault("", "there is no directory 'x'"))
    >>> [fault.key for fault in faults.found]
    ['seed', 'sources.base']
    """

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, key: str, wrong: str, mend: str = "") -> None:
        """Note one fault."""
        self.found.append(Fault(key, wrong, mend))

    def extend(self, faults: Iterable[Fault], under: str | int = "") -> None:
        """Note faults that were found below a key."""
        self.found += [fault.under(under) for fault in faults]

    @contextlib.contextmanager
    def gather(self, under: str | int = "") -> Iterator[None]:
        """Note the faults of a `BadInput` that is raised within, and go on after it."""
        try:
            yield
        except BadInput as error:
            self.extend(error.faults, under)

    def check(self) -> None:
        """Raise `BadInput` with all that was noted, if anything was."""
        if self.found:
            raise BadInput(*self.found)


@contextlib.contextmanager
def placed(under: str | int = "", *, file: str = "") -> Iterator[None]:
    """Place the faults of a `BadInput` that is raised within below a key, or in a file.

    >>> with placed("sources.base", file="campaign.yaml"):
    ...     raise BadInput(Fault("", "there is no directory 'x'"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: campaign.yaml: sources.base: there is no directory 'x'
    """
    try:
        yield
    except BadInput as error:
        found = [fault.under(under) for fault in error.faults]
        raise BadInput(*(f.in_file(file) if file else f for f in found)) from error.__cause__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a mend that names the entry of `known` closest to `word`, or all of them.

    >>> nearest("tise", ["ties", "slerp"]), nearest("x", ["ties", "slerp"])
    ("did you mean 'ties'?", 'known: slerp, ties')
    """
    known = sorted(map(str, known))
    # 0.6, difflib's own default, takes one wrong letter in three
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(known) if known else "none is known here"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception as one line, `Type: message`, cut to `limit` characters.

    >>> one_line(ValueError("of two\\nlines"))
    'ValueError: of two lines'
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:limit] if text else type(error).__name__
