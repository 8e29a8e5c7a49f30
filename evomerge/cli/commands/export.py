"""`evomerge export RUN OUT`: a candidate as a Hugging Face model."""

from pathlib import Path

import click

from evomerge.cli.conventions import (
    AS_ADAPTER,
    FILE,
    GGUF,
    HEAD,
    PICK,
    SOURCE,
    TRUST_CODE,
    by_label,
    errors_are_lines,
    license_warning,
    weights_of,
)
from evomerge.errors import placed
from evomerge.text import byte_size, printable


@click.command()
@click.argument("directory", type=FILE)
@click.argument("out", type=FILE)
@PICK
@SOURCE
@click.option("--unverified", is_flag=True, help="Do not compare with the scored weights.")
@AS_ADAPTER
@HEAD
@GGUF
@TRUST_CODE
@errors_are_lines
def export(
    directory: Path,
    out: Path,
    pick: str,
    moved: tuple[str, ...],
    unverified: bool,
    as_adapter: bool,
    head: str | None,
    types: tuple[str, ...],
    trust_code: bool,
) -> None:
    """Write a candidate of DIRECTORY to OUT as a Hugging Face model, bit for bit as scored.

    A routed candidate's scales are folded into its weights, which are rounded once. A weighted sum
    of LoRA adapters of one base is an adapter itself, and --as-adapter writes that alone.

    \b
      evomerge export runs/crosslingual-maths merged/ --pick best
    """
    from evomerge.cli.next_steps import loading
    from evomerge.export.candidates import export_candidate
    from evomerge.export.gguf import find_programs, write_gguf
    from evomerge.sources.trust import Trust

    types, trust = tuple(map(str.lower, types)), Trust(trust_code, trust_code)
    programs = find_programs(types, as_adapter)
    with placed(file=str(directory)):
        done = export_candidate(
            directory, out, pick, by_label(moved), not unverified, trust, as_adapter, head
        )
    what = f"{weights_of(as_adapter)} {done.checksum}, {done.compared}"
    click.echo(f"candidate {done.candidate} -> {out} ({what})")
    if done.doubt:
        click.echo(license_warning(done.doubt), err=True)
    for kind, file in write_gguf(out, types, programs).items():
        click.echo(f"{kind} -> {file} ({byte_size(file.stat().st_size)})")
    if not as_adapter:
        click.echo(printable(loading(out)))
