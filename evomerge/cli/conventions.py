"""What commands have in common: options, how errors become lines and exit codes, and JSON."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from evomerge.cli.completing import NamedPath, Pick, complete_settings
from evomerge.errors import BadInput, EvomergeError, Fault
from evomerge.text import printable

Command = Callable[..., None]

FILE = NamedPath(path_type=Path)

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
SOURCE = click.option(
    "--source", "moved", multiple=True, metavar="LABEL=PATH", help="A source that moved."
)
TRUST_CODE = click.option(
    "--trust-code",
    is_flag=True,
    help="Run code that comes with the models, and Python functions that make them.",
)
SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=YAML",
    help="Override a key: a.b=value.",
    shell_complete=complete_settings,
)
PICK = click.option(
    "--pick",
    type=Pick(),
    default="best",
    help="best, knee, a candidate's number, an objective, or weights=NAME:NUMBER,... of the front.",
)
AS_ADAPTER = click.option(
    "--as-adapter",
    is_flag=True,
    help="Write a LoRA adapter of the models' base, where the merge is one, instead of weights.",
)
HEAD = click.option(
    "--head",
    metavar="LABEL",
    help="The model whose head it gets, where sources.heads is keep.",
)
GGUF = click.option(
    "--gguf",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Write a GGUF file too, by llama.cpp: q8_0, f16, q4_k_m, ...; may be repeated.",
)


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


def weights_of(as_adapter: bool) -> str:
    """Return what a digest of an export is of.

    >>> weights_of(as_adapter=False)
    'weights'
    """
    return "adapter, which merges to weights" if as_adapter else "weights"


def license_warning(doubt: str) -> str:
    """Return the line that says why a model's card names no licence.

    >>> license_warning("no licence is known of ja")
    'warning: no licence is known of ja; write `license:` into README.md once you know what holds'
    """
    mend = "write `license:` into README.md once you know what holds"
    return printable(f"warning: {doubt}; {mend}")
