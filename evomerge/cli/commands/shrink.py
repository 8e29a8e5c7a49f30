"""`evomerge shrink MODEL OUT`: a mixture of experts with fewer of them."""

from pathlib import Path
from typing import Any

import click

from evomerge.cli.conventions import FILE, JSON, TRUST_CODE, errors_are_lines, print_json


@click.command()
@click.argument("model")
@click.argument("out", type=FILE)
@click.option("--experts", type=click.IntRange(1), required=True, help="That each layer keeps.")
@click.option("--per-token", type=click.IntRange(1), help="That answer for a token [as before].")
@click.option("--texts", type=FILE, help="Texts, one a line, that tell how experts are asked.")
@click.option("--usage", type=FILE, help="JSON: for each layer a list of the experts' usage.")
@click.option(
    "--router",
    type=click.Choice(["dominant", "mean"]),
    default="dominant",
    show_default=True,
    help="What a group of experts keeps of its rows.",
)
@TRUST_CODE
@JSON
@errors_are_lines
def shrink(model: str, out: Path, trust_code: bool, as_json: bool, **given: Any) -> None:
    """Merge the experts of a mixture MODEL that are asked alike, into OUT with fewer (M-SMoE).

    Each layer's experts are grouped around those used most, by the likeness of their routers'
    logits on --texts; without texts all count as used alike, and routers' rows are compared.

    \b
      evomerge shrink models/mixtral smaller/ --experts 4 --texts texts.txt
    """
    from evomerge.aligning.fewer_experts import shrink as write
    from evomerge.sources.trust import Trust
    from evomerge.text import printable

    found = write(model, out, Trust(trust_code, trust_code), **given)
    if as_json:
        print_json(found._asdict())
        return
    text = f"{model} -> {out} (weights {found.weights})\n"
    text += f"experts of a layer: {found.before} -> {found.experts}, {found.per_token} a token"
    if found.in_order is not None:
        text += f"\ncosine with the dominant expert: {found.before_order:.3f} as they stood,"
        text += f" {found.in_order:.3f} in its order"
    click.echo(printable(text))
