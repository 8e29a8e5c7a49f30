"""`evomerge init [OUT]`: a first campaign file, from a few answers."""

from pathlib import Path
from typing import Any

import click

from evomerge.cli.conventions import FILE, errors_are_lines


@click.command()
@click.argument("out", type=FILE, default="campaign.yaml")
@click.option(
    "--model", "-m", "models", multiple=True, help="A directory, of one or several, or a hub id."
)
@click.option("--base", help="The models' common ancestor, or none.")
@click.option(
    "--task",
    "-t",
    "tasks",
    multiple=True,
    metavar="TASK[:METRIC]",
    help="Of lm-eval, by name or file; or a Python file.",
)
@click.option("--heldout", help="The share of the items that the search never sees.")
@click.option("--method", help="Of merging.")
@click.option(
    "--front", is_flag=True, default=None, help="Several merges to choose from, and not one best."
)
@click.option("--workers", type=click.IntRange(0), help="GPUs to be used; 0 for none.")
@click.option("--budget", help="Items to score in all, or hours as in 8h.")
@click.option("--name", help="Of the campaign; its run is runs/NAME.")
@click.option("--yes", "-y", is_flag=True, help="Ask nothing; take what is recommended.")
@errors_are_lines
def init(out: Path, yes: bool, **given: Any) -> None:
    """Write a first campaign file OUT [campaign.yaml]: asks what it needs, or takes options.

    Models and tasks are opened as they are named, so that a fault is told at once. OUT must not be
    there yet; what is written passes `evomerge check`.

    \b
      evomerge init
      evomerge init campaign.yaml -m models/ -t gsm8k:exact_match,strict-match --budget 8h --yes
    """
    from evomerge.campaign.estimate import estimate
    from evomerge.cli import tables
    from evomerge.cli.first_campaign import asked
    from evomerge.cli.next_steps import next_steps
    from evomerge.drafts.campaign_text import refuse_existing
    from evomerge.text import printable

    refuse_existing(out)
    first, campaign = asked(given, takes_defaults=yes)
    first.draft().write(out)
    said = [f"\nwritten: {out}. `evomerge check` says of it:\n", tables.check([estimate(campaign)])]
    click.echo(printable("\n".join([*said, "", next_steps(out, first.name)])))
