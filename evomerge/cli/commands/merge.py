"""`evomerge merge RECIPE OUT`: a recipe as a Hugging Face model, without a campaign."""

from pathlib import Path

import click

from evomerge.cli.conventions import (
    AS_ADAPTER,
    FILE,
    TRUST_CODE,
    errors_are_lines,
    weights_of,
)


@click.command()
@click.argument("recipe", type=FILE)
@click.argument("out", type=FILE)
@AS_ADAPTER
@TRUST_CODE
@errors_are_lines
def merge(recipe: Path, out: Path, as_adapter: bool, trust_code: bool) -> None:
    """Materialize one RECIPE (JSON, or a mergekit YAML) into OUT, without a campaign.

    \b
      evomerge merge merged/recipe.json again/
      evomerge merge mergekit_config.yml merged/
    """
    from evomerge.export.nested_recipes import merge_file
    from evomerge.sources.trust import Trust

    checksum = merge_file(recipe, out, Trust(trust_code, trust_code), as_adapter)
    click.echo(f"{recipe} -> {out} ({weights_of(as_adapter)} {checksum})")
