"""`evomerge check FILE`: every fault of a campaign file at once, and what it will need."""

from pathlib import Path

import click

from evomerge.cli.conventions import FILE, JSON, SET, SOURCE, by_label, errors_are_lines, print_json
from evomerge.errors import placed


@click.command()
@click.argument("file", type=FILE)
@SET
@SOURCE
@JSON
@errors_are_lines
def check(file: Path, settings: tuple[str, ...], moved: tuple[str, ...], as_json: bool) -> None:
    """Check a campaign FILE: every fault at once, and what the campaign will need.

    \b
      evomerge check search_spaces/crosslingual-maths.yaml
    """
    from evomerge.campaign.build import checked_campaigns, read_and_check
    from evomerge.campaign.estimate import estimate
    from evomerge.cli import tables

    paths = by_label(moved)
    plan = read_and_check(file, settings, paths)
    with placed(file=str(file)):
        stages = [estimate(campaign) for campaign in checked_campaigns(plan, paths)]
    if as_json:
        print_json(stages[0] if len(stages) == 1 else {"stages": stages})
    else:
        click.echo(tables.check(stages))
