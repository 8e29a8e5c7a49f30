"""`evomerge export RUN OUT`: a candidate as a Hugging Face model."""

from pathlib import Path

import click

from evomerge.cli.conventions import (
    AS_ADAPTER,
    FILE,
    PICK,
    SOURCE,
    TRUST_CODE,
    by_label,
    errors_are_lines,
    license_warning,
    weights_of,
)
from evomerge.errors import placed


@click.command()
@click.argument("directory", type=FILE)
@click.argument("out", type=FILE)
@PICK
@SOURCE
@click.option("--unverified", is_flag=True, help="Do not compare with the scored weights.")
@AS_ADAPTER
@TRUST_CODE
@errors_are_lines
def export(
    directory: Path,
    out: Path,
    pick: str,
    moved: tuple[str, ...],
    unverified: bool,
    as_adapter: bool,
    trust_code: bool,
) -> None:
    """Write a candidate of DIRECTORY to OUT as a Hugging Face model, bit for bit as scored.

    A routed candidate's scales are folded into its weights, which are rounded once. A weighted sum
    of LoRA adapters of one base is an adapter itself, and --as-adapter writes that alone.

    \b
      evomerge export runs/crosslingual-maths merged/ --pick best
    """
    from evomerge.export.candidates import export_candidate
    from evomerge.sources.trust import Trust

    with placed(file=str(directory)):
        done = export_candidate(
            directory,
            out,
            pick,
            by_label(moved),
            not unverified,
            Trust(trust_code, trust_code),
            as_adapter,
        )
    what = f"{weights_of(as_adapter)} {done.checksum}, {done.compared}"
    click.echo(f"candidate {done.candidate} -> {out} ({what})")
    if done.doubt:
        click.echo(license_warning(done.doubt), err=True)
