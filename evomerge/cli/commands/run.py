"""`evomerge run FILE`: start a campaign, or continue it."""

import shlex
import sys
from pathlib import Path

import click

from evomerge.cli.conventions import FILE, SET, SOURCE, by_label, errors_are_lines


@click.command()
@click.argument("file", type=FILE)
@click.option("--run", "directory", type=FILE, help="The run's directory [runs/NAME].")
@SET
@SOURCE
@click.option(
    "--rebuild-controller",
    is_flag=True,
    help="Go on although the controller proposes otherwise, with one built from the outcomes.",
)
@errors_are_lines
def run(
    file: Path,
    directory: Path | None,
    settings: tuple[str, ...],
    moved: tuple[str, ...],
    rebuild_controller: bool,
) -> None:
    """Start the campaign in FILE, or continue it.

    Ctrl-C stops asking and waits for what is in flight; a second one leaves at once. The same
    command goes on from there.

    \b
      evomerge run search_spaces/crosslingual-maths.yaml
      evomerge run search_spaces/crosslingual-maths.yaml --set budget.evaluations=400
    """
    from evomerge.campaign.run import run_campaign
    from evomerge.cli.progress import Progress
    from evomerge.cli.stopping import StopSignals

    with Progress() as progress, StopSignals(progress.say) as stop:
        finished = run_campaign(
            file,
            directory=directory,
            settings=settings,
            moved=by_label(moved),
            rebuild_controller=rebuild_controller,
            observer=progress,
            stop=stop,
        )
    if not finished:
        words = ["evomerge", "run", str(file)]
        words += ["--run", str(directory)] if directory else []
        for setting in settings:
            words += ["--set", setting]
        for pair in moved:
            words += ["--source", pair]
        click.echo(f"interrupted; what is archived stays. To continue: {shlex.join(words)}")
        sys.exit(130)
