"""Questions on the command line: asked again after a wrong answer, or answered by options."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import click

from evomerge.errors import BadInput, Fault
from evomerge.text import printable

_T = TypeVar("_T")


class Interview:
    """Asks what was not given, or takes its defaults.

    >>> asking = Interview(takes_defaults=True)
    >>> asking.one("How many?", None, "--count", "3", int)
    3
    >>> asking.one("How many?", "4", "--count", "3", int)
    4
    """

    def __init__(self, *, takes_defaults: bool):
        """
        Args:
            takes_defaults: ask nothing.
        """
        self.takes_defaults = takes_defaults

    def one(
        self,
        question: str,
        given: str | None,
        flag: str,
        default: str | None,
        read: Callable[[str], _T],
    ) -> _T:
        """Return the answer to a question.

        Args:
            question: as it is asked.
            given: the option's value, if there is one: it is not asked then.
            flag: the option.
            default: None where there is none.
            read: makes something of an answer, or raises `BadInput`.

        Raises:
            BadInput: what was given is wrong, or nothing was and nobody can be asked.
        """
        if given is not None:
            return _read_given(given, flag, read)
        if self.takes_defaults:
            if default is None:
                raise BadInput(Fault("", "is missing", "give it", file=flag))
            return _read_given(default, flag, read)
        while True:
            answer = _asked(question, default, flag)
            try:
                return read(answer)
            except BadInput as error:
                _tell(error)

    def several(
        self, question: str, given: tuple[str, ...], flag: str, read: Callable[[str], None]
    ) -> None:
        """Read answers until an empty one.

        Raises:
            BadInput: what was given is wrong, or nothing was and nobody can be asked.
        """
        for answer in given:
            _read_given(answer, flag, read)
        if given:
            return
        if self.takes_defaults:
            raise BadInput(Fault("", "is missing", "give it, once for each", file=flag))
        for answer in self._until_empty(question, flag):
            try:
                read(answer)
            except BadInput as error:
                _tell(error)

    def _until_empty(self, question: str, flag: str) -> Iterator[str]:
        while answer := _asked(question, "", flag):
            yield answer


def _asked(question: str, default: str | None, flag: str) -> str:
    """Ask, once, and return the answer without spaces around it.

    Raises:
        BadInput: there is nobody to be asked.
    """
    try:
        shown = bool(default)
        answer: str = click.prompt(question, default=default, show_default=shown, type=str)
    except click.Abort as abort:
        if isinstance(abort.__context__, EOFError):
            click.echo()
            mend = "give it, or --yes for what is recommended"
            raise BadInput(Fault("", "there is no more answer on stdin", mend, flag)) from None
        raise KeyboardInterrupt from None
    return answer.strip()


def _read_given(given: str, flag: str, read: Callable[[str], _T]) -> _T:
    try:
        return read(given)
    except BadInput as error:
        raise BadInput(*(fault.in_file(flag) for fault in error.faults)) from None


def _tell(error: BadInput) -> None:
    for fault in error.faults:
        click.echo(printable(f"  {fault}"))
