"""`evomerge widen REFERENCE MODEL OUT`: neurons that match merged, the others side by side."""

from pathlib import Path
from typing import Any

import click

from evomerge.cli.conventions import FILE, JSON, TRUST_CODE, errors_are_lines, print_json

_SHARE = click.FloatRange(0, 1)


@click.command()
@click.argument("reference")
@click.argument("model")
@click.argument("out", type=FILE)
@click.option("--apart", type=_SHARE, default=0.2, show_default=True, help="Neurons kept apart.")
@click.option("--weight", type=_SHARE, default=0.5, show_default=True, help="Of MODEL.")
@click.option("--texts", type=FILE, help="Texts, one a line, on which matrices are fitted.")
@click.option("--stream", is_flag=True, help="Match the residual stream as well.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@TRUST_CODE
@JSON
@errors_are_lines
def widen(
    reference: str, model: str, out: Path, trust_code: bool, as_json: bool, **given: Any
) -> None:
    """Merge two decoders that may have been trained apart into OUT, a wider one (PLeaS).

    MODEL's neurons and heads are matched with REFERENCE's. In each MLP the share --apart of the
    neurons, those that match worst, is kept of both models; all else is averaged. With --texts,
    matrices are then fitted by least squares to what both models compute there.

    \b
      evomerge widen models/a models/b wider/ --apart 0.3
    """
    from evomerge.aligning.widened import widen as write
    from evomerge.sources.trust import Trust
    from evomerge.text import printable

    found = write(reference, model, out, Trust(trust_code, trust_code), **given)
    if as_json:
        print_json(found._asdict())
        return
    text = f"{reference} and {model} -> {out} (weights {found.weights})\n"
    text += f"neurons of an MLP: {found.before} -> {found.width}; {found.parameters:,} parameters"
    click.echo(printable(text))
