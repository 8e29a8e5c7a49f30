"""`evomerge convert CONFIG [OUT]`: a configuration of mergekit-evolve as a campaign file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from evomerge.cli.conventions import FILE, errors_are_lines
from evomerge.text import printable

# mergekit-evolve's options that say nothing of what is searched; each is answered in a line.
_FLAGS = (
    *("in-memory", "no-in-memory", "merge-cuda", "no-merge-cuda", "reshard", "no-reshard"),
    *("save-final-model", "no-save-final-model", "allow-crimes", "wandb"),
    *("load-in-8bit", "load-in-4bit"),
)
_VALUES = ("strategy", "storage-path", "wandb-project", "wandb-entity")


def _with_others(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take what mergekit-evolve's takes besides, hidden from its help."""
    for name in _FLAGS:
        command = click.option(f"--{name}", is_flag=True, hidden=True)(command)
    for name in _VALUES:
        command = click.option(f"--{name}", hidden=True)(command)
    return command


@click.command()
@click.argument("config", type=FILE)
@click.argument("out", type=FILE, default="campaign.yaml")
@click.option("--name", help="Of the campaign [CONFIG's].")
@click.option("--max-fevals", type=click.IntRange(1), default=100, show_default=True)
@click.option("--task-search-path", multiple=True, metavar="FOLDER", help="With tasks' files.")
@click.option("--batch-size", type=click.IntRange(1), help="Prompts at once.")
@click.option("--sigma0", type=float, default=1 / 6, help="CMA-ES's first step [1/6].")
@click.option("--force-population-size", "population", type=click.IntRange(3), help="Of CMA-ES.")
@click.option("--random-seed", "seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--num-gpus", type=click.IntRange(1), help="Workers, each with a GPU.")
@click.option("--vllm", is_flag=True, help="Let vLLM answer.")
@click.option("--timeout", "seconds", type=float, help="Seconds, after which the search ends.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the models.")
@click.option(
    "--i-understand-the-depths-of-the-evils-i-am-unleashing",
    "allow_benchmarks",
    is_flag=True,
    help="Search on a public benchmark.",
)
@_with_others
@errors_are_lines
def convert(config: Path, out: Path, name: str | None, **given: Any) -> None:
    """Write mergekit-evolve's CONFIG as a campaign file OUT [campaign.yaml] over the same space.

    Takes the options that mergekit-evolve was called with, and says line by line what is not as
    there. OUT must not be there yet. Models and tasks are opened: what is written passes
    `evomerge check`.

    \b
      evomerge convert mergekit-evolve.yml campaign.yaml --max-fevals 200 --task-search-path tasks/
    """
    from evomerge.cli.next_steps import next_steps
    from evomerge.drafts.campaign_text import refuse_existing
    from evomerge.drafts.command_line import CommandLine
    from evomerge.drafts.from_evolve import from_evolve

    refuse_existing(out)
    others = {name: given.pop(name.replace("-", "_")) for name in (*_FLAGS, *_VALUES)}
    answered = tuple(name for name, value in others.items() if value)
    found = from_evolve(config, CommandLine(**given, others=answered), name)
    found.draft.write(out)
    click.echo(printable(f"{config} -> {out} ({found.genes} genes). Not as in mergekit-evolve:"))
    for line in found.differs:
        click.echo(printable(f"- {line}"))
    click.echo(printable(f"\n{next_steps(out, found.draft.mapping['name'])}"))
