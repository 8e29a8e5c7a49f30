"""`evomerge front RUN`: the Pareto front and the baselines."""

from pathlib import Path

import click

from evomerge.cli.conventions import FILE, JSON, errors_are_lines, print_json
from evomerge.errors import placed
from evomerge.text import printable


@click.command()
@click.argument("directory", type=FILE)
@JSON
@errors_are_lines
def front(directory: Path, as_json: bool) -> None:
    """Show the Pareto front in DIRECTORY and the baselines, with 95 % intervals.

    \b
      evomerge front runs/crosslingual-maths
    """
    from evomerge.archive import summary
    from evomerge.archive.scored_as import quantized
    from evomerge.cli import tables
    from evomerge.cli.console import terminal
    from evomerge.cli.next_steps import awaiting

    with placed(file=str(directory)):
        rows = summary.front(directory)
    if as_json:
        print_json(rows)
    else:
        click.echo(tables.front(printable(rows), summary.standing(directory), terminal()))
        for told in (
            tables.quantized(quantized(directory)),
            awaiting(summary.status(directory)),
            tables.gap(summary.gap(directory)),
            tables.agreement(summary.agreement(directory)),
        ):
            if told:
                click.echo(told)
