"""`evomerge show RUN CANDIDATE`: one candidate."""

from pathlib import Path

import click

from evomerge.cli.completing import Pick
from evomerge.cli.conventions import FILE, JSON, errors_are_lines, print_json
from evomerge.errors import placed
from evomerge.text import printable


@click.command()
@click.argument("directory", type=FILE)
@click.argument("candidate", type=Pick())
@JSON
@errors_are_lines
def show(directory: Path, candidate: str, as_json: bool) -> None:
    """Show one CANDIDATE of the campaign in DIRECTORY: recipe, parents, scores.

    CANDIDATE is a number, or what `export --pick` takes: best, knee, an objective, weights=...

    \b
      evomerge show runs/crosslingual-maths best
    """
    from evomerge.archive import summary
    from evomerge.cli import tables
    from evomerge.cli.console import terminal

    with placed(file=str(directory)):
        found = summary.show(directory, candidate)
    if as_json:
        print_json(found)
    else:
        click.echo(tables.show(printable(found), terminal()))
