"""A campaign's mapping as YAML that people go on to edit: comments beside the keys, short lines."""

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import BadInput, Fault

_WIDE = 100  # columns
# What has a line for each of its entries, however short they are.
_IN_BLOCKS = ("sources", "space", "space.axes", "fitness")
# What has, too, if it is longer than a line.
_IN_BLOCKS_IF_LONG = ("sources.models",)


@dataclass
class Draft:
    """A campaign file that is to be written.

    Attributes:
        mapping: the campaign.
        comments: dotted key -> what is said beside it; entries of lists by their number.
        header: what is said at the top, a paragraph or an item ("- ...") each.

    >>> print(Draft({"name": "mine"}, {"name": "the run is runs/mine"}, ["By hand."]).text, end="")
    # By hand.
    name: mine # the run is runs/mine
    """

    mapping: dict[str, Any]
    comments: dict[str, str] = field(default_factory=dict)
    header: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The file's content."""
        lines = [line for said in self.header for line in _comment(said, 0)]
        lines += _entries(self.mapping, self.comments, "", 0)
        return "\n".join(lines) + "\n"

    def write(self, file: Path) -> None:
        """Write the file, which must not be there.

        Raises:
            BadInput: it is, or cannot be written.

        >>> Draft({"name": "mine"}).write(Path("nowhere/mine.yaml"))
        Traceback (most recent call last):
        evomerge.errors.BadInput: nowhere/mine.yaml: cannot be written (No such file or ...
        """
        try:
            with open(file, "x", encoding="utf-8") as stream:
                stream.write(self.text)
        except OSError as error:
            raise unwritable(file, error) from None


def unwritable(file: Path, error: OSError) -> BadInput:
    """Return why a campaign file cannot be written.

    >>> print(unwritable(Path("a.yaml"), FileExistsError()))
    a.yaml: is there already; write another name, or move it away
    """
    if isinstance(error, FileExistsError):
        wrong, mend = "is there already", "write another name, or move it away"
    else:
        wrong, mend = f"cannot be written ({error.strerror or error})", "write another name"
    return BadInput(Fault("", wrong, mend, str(file)))


def refuse_existing(file: Path) -> None:
    """Refuse a file that is there, before anything is asked or opened.

    Raises:
        BadInput: it is there.

    >>> refuse_existing(Path("nowhere.yaml"))
    """
    if os.path.lexists(file):
        raise unwritable(file, FileExistsError())


def _entries(
    mapping: Mapping[str, Any], comments: Mapping[str, str], under: str, depth: int
) -> Iterator[str]:
    indent = "  " * depth
    for key, value in mapping.items():
        path, line = f"{under}{key}", f"{indent}{_flow(key)}: {_flow(value)}"
        is_block = path in _IN_BLOCKS or (path in _IN_BLOCKS_IF_LONG and len(line) > _WIDE)
        if not is_block or not value:
            yield from _commented(line, comments.get(path), depth)
            continue
        yield from _commented(f"{indent}{_flow(key)}:", comments.get(path), depth)
        if isinstance(value, Mapping):
            yield from _entries(value, comments, f"{path}.", depth + 1)
            continue
        for number, entry in enumerate(value):
            yield from _listed(entry, comments.get(f"{path}.{number}"), depth + 1)


def _listed(entry: Any, said: str | None, depth: int) -> Iterator[str]:
    """Yield the lines of an entry of a list, one where it is short enough."""
    line = f"{'  ' * depth}- {_flow(entry)}"
    if len(line) <= _WIDE or not isinstance(entry, Mapping):
        yield from _commented(line, said, depth)
        return
    first, *rest = _entries(entry, {}, "", depth + 1)
    yield from _commented(f"{'  ' * depth}- {first.lstrip()}", said, depth)
    yield from rest


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _commented(line: str, said: str | None, depth: int) -> Iterator[str]:
    """Yield a line with what is said of it: behind it where there is room, else before it."""
    if said and len(line) + len(said) + 3 <= _WIDE and "\n" not in said:
        yield f"{line} # {said}"
        return
    if said:
        yield from _comment(said, depth)
    yield line


def _comment(said: str, depth: int) -> list[str]:
    first = "  " * depth + "# "
    rest = first + ("  " if said.startswith("- ") else "")
    # a path or a command is not to be broken
    return textwrap.wrap(
        said,
        _WIDE,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
