"""`evomerge cache`: what is kept to be used again."""

import click

from evomerge.cache import KINDS
from evomerge.cli.conventions import JSON, errors_are_lines, print_json
from evomerge.text import printable

CACHED = tuple(KINDS)


@click.command()
@click.argument("kind", required=False, type=click.Choice(CACHED))
@click.option("--empty", is_flag=True, help="Remove what no live process uses.")
@JSON
@errors_are_lines
def cache(kind: str | None, empty: bool, as_json: bool) -> None:
    """Show what is kept to be used again, of all kinds or of one; or remove it.

    \b
      evomerge cache
      evomerge cache candidates --empty
    """
    from evomerge.cache import eviction
    from evomerge.cache.summary import summary
    from evomerge.cli import tables
    from evomerge.cli.console import terminal

    kinds = (kind,) if kind else CACHED
    removed = eviction.empty(kinds) if empty else None
    if as_json:
        print_json({**summary(kinds), **({"removed": removed._asdict()} if removed else {})})
        return
    if removed is not None:
        click.echo(printable(tables.removed(removed)))
    else:
        click.echo(tables.cache(printable(summary(kinds)), terminal()))
