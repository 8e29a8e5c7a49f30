"""`evomerge run FILE`: start a campaign, or continue it."""

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
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the result, and errors.")
@click.option("--json-lines", is_flag=True, help="Print events, one JSON object a line.")
@errors_are_lines
def run(
    file: Path,
    directory: Path | None,
    settings: tuple[str, ...],
    moved: tuple[str, ...],
    rebuild_controller: bool,
    quiet: bool,
    json_lines: bool,
) -> None:
    """Start the campaign in FILE, or continue it.

    Ctrl-C stops asking and waits for what is in flight; a second one leaves at once. The same
    command goes on from there.

    \b
      evomerge run search_spaces/crosslingual-maths.yaml
      evomerge run search_spaces/crosslingual-maths.yaml --set budget.evaluations=400
    """
    from evomerge.campaign.run import run_campaign
    from evomerge.cli.next_steps import continuing
    from evomerge.cli.observing import observer_of
    from evomerge.cli.stopping import StopSignals

    with observer_of(quiet, json_lines) as progress, StopSignals(progress.say) as stop:
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
        words = ["--quiet"] * quiet + ["--json-lines"] * json_lines
        progress.interrupted(continuing(file, directory, settings, moved, words))
        sys.exit(130)
