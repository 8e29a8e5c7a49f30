"""`evomerge align REFERENCE MODEL OUT`: a model's units in the order of another's."""

from pathlib import Path
from typing import Any

import click

from evomerge.cli.conventions import FILE, JSON, TRUST_CODE, errors_are_lines, print_json


@click.command()
@click.argument("reference")
@click.argument("model")
@click.argument("out", type=FILE)
@click.option("--stream", is_flag=True, help="Match a decoder's residual stream as well.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--texts", type=FILE, help="Texts, one a line: the loss between the two models.")
@click.option("--fitness", type=FILE, help="A Python fitness: its score between the two models.")
@click.option("--minimize", is_flag=True, help="The fitness is a loss.")
@TRUST_CODE
@JSON
@errors_are_lines
def align(out: Path, trust_code: bool, as_json: bool, **given: Any) -> None:
    """Write MODEL into OUT with its neurons and heads in the order of REFERENCE's.

    OUT computes what MODEL does. The two must be of one shape and vocabulary; they may have been
    trained apart. Modules that a Python function makes are taken too (--trust-code); of these OUT
    is a safetensors file.

    \b
      evomerge align models/a models/b aligned/b --texts texts.txt
      evomerge align net.py:net@a.safetensors net.py:net@b.safetensors b2.safetensors --trust-code
    """
    from evomerge.aligning.command import run
    from evomerge.cli.aligned_text import aligned_text
    from evomerge.sources.trust import Trust
    from evomerge.text import printable

    found = run(out, Trust(trust_code, trust_code), **given)
    if as_json:
        print_json(found)
    else:
        click.echo(printable(f"{given['model']} -> {out} (weights {found['weights']})\n"))
        click.echo(printable(aligned_text(found)))
