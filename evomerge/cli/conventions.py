"""What all commands have in common: how errors become lines and exit codes, and JSON is printed."""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from evomerge.errors import BadInput, EvomergeError, Fault
from evomerge.text import printable

Command = Callable[..., None]


def errors_are_lines(command: Command) -> Command:
    """Turn the library's errors into lines on stderr and exit codes.

    >>> errors_are_lines(lambda: None)()
    """

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except BadInput as error:
            for fault in error.faults:
                click.echo(printable(str(fault)), err=True)
            sys.exit(2)
        except EvomergeError as error:
            click.echo(printable(f"evomerge: {error}"), err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:  # `evomerge front | head`
            sys.stderr.close()
            sys.exit(0)

    return wrapped


def by_label(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the paths of `--source LABEL=PATH` by label.

    Raises:
        BadInput: one is no such pair.

    >>> by_label(("ja=models/ja",))
    {'ja': 'models/ja'}
    """
    paths = {}
    for pair in pairs:
        label, equals, path = pair.partition("=")
        if not equals:
            mend = "write e.g. ja=models/ja"
            raise BadInput(Fault(pair, "is not label=path", mend, file="--source"))
        paths[label] = path
    return paths


def print_json(data: object) -> None:
    """Print what a command found, for other programs.

    >>> print_json({"id": 7})
    {
     "id": 7
    }
    """
    click.echo(json.dumps(data, indent=1))
