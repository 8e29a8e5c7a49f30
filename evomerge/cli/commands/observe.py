"""`evomerge observe MODEL TEXTS OUT`: what a model's layers take in, without the texts."""

from pathlib import Path

import click

from evomerge.cli.conventions import FILE, TRUST_CODE, errors_are_lines


@click.command()
@click.argument("model")
@click.argument("texts", type=FILE)
@click.argument("out", type=FILE)
@click.option("--base", help="The model's base, in whose shape and by whose tokenizer it reads.")
@TRUST_CODE
@errors_are_lines
def observe(model: str, texts: Path, out: Path, base: str | None, trust_code: bool) -> None:
    """Let MODEL read TEXTS; write what its layers take in of them into OUT.

    OUT holds a Gram matrix of each linear layer's inputs, which `regmean` reads in the place of the
    texts, where these cannot be shared: {model: MODEL, inputs: OUT}.

    \b
      evomerge observe models/ja texts/ja.jsonl ja-inputs.safetensors --base models/base
    """
    from evomerge.merging.shared_inputs import write_inputs
    from evomerge.sources.trust import Trust

    count = write_inputs(model, texts, out, base, Trust(trust_code, trust_code))
    click.echo(f"{model} read {texts} -> {out} ({count} matrices)")
