"""`evomerge list`: what there is to choose from."""

import click

from evomerge.cli.conventions import JSON, errors_are_lines, print_json

LISTED = ("methods", "spaces", "controllers", "fitness", "learners", "trackers")


@click.command(name="list")
@click.argument("kind", required=False, type=click.Choice(LISTED))
@JSON
@errors_are_lines
def listing(kind: str | None, as_json: bool) -> None:
    """List merge methods, spaces, controllers, fitness, learners and trackers, with options.

    \b
      evomerge list controllers
    """
    from evomerge.cli import catalogue, tables

    listed = catalogue.listing(kind)
    if as_json:
        print_json(listed)
    else:
        click.echo(tables.listing(listed))
