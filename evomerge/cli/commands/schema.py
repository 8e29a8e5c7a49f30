"""`evomerge schema`: the JSON Schema of the campaign file."""

import click

from evomerge.cli.conventions import errors_are_lines, print_json


@click.command()
@errors_are_lines
def schema() -> None:
    """Print the JSON Schema of the campaign file, by which an editor completes and checks it.

    \b
      evomerge schema > campaign.schema.json
    """
    from evomerge.config.schema import json_schema

    print_json(json_schema())
