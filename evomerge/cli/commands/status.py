"""`evomerge status RUN`: how far a campaign is."""

from pathlib import Path

import click

from evomerge.cli.conventions import FILE, JSON, errors_are_lines, print_json
from evomerge.errors import placed
from evomerge.text import printable


@click.command()
@click.argument("directory", type=FILE)
@JSON
@errors_are_lines
def status(directory: Path, as_json: bool) -> None:
    """Show how far the campaign in DIRECTORY is; also while it runs.

    \b
      evomerge status runs/crosslingual-maths
    """
    from evomerge.archive import summary
    from evomerge.cli import tables
    from evomerge.cli.console import terminal

    with placed(file=str(directory)):
        found = summary.status(directory)
    if as_json:
        print_json(found)
    else:
        click.echo(tables.status(printable(found), terminal()))
