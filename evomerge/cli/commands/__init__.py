"""The commands: one module each, found because it is there."""

import importlib
import pkgutil
from collections.abc import Iterator

import click


def commands() -> Iterator[click.Command]:
    """Return the command of every module here; a module imports what its command needs as it runs.

    >>> "run" in {command.name for command in commands()}
    True
    """
    for module in pkgutil.iter_modules(__path__):
        found = importlib.import_module(f"{__name__}.{module.name}")
        yield from (thing for thing in vars(found).values() if isinstance(thing, click.Command))
