"""The `evomerge` command: a thin skin over the library.

Exit codes: 0 done, 1 failed, 2 bad input (nothing loaded, nothing written), 130 interrupted.
"""

import functools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from evomerge import __version__
from evomerge.errors import BadInput, EvomergeError

FILE = click.Path(path_type=Path)

LISTED = ("methods", "spaces", "controllers", "fitness")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="evomerge")
def main() -> None:
    """Evolutionary search for merges of fine-tuned models.

    Describe sources, a search space and fitnesses in one YAML file, then:

    \b
      evomerge check  search_spaces/crosslingual-maths.yaml
      evomerge run    search_spaces/crosslingual-maths.yaml
      evomerge front  runs/crosslingual-maths
      evomerge export runs/crosslingual-maths merged/ --pick best
    """


def _errors_are_lines(command: Callable) -> Callable:
    """Turn the library's errors into lines on stderr and exit codes."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except BadInput as error:
            for fault in error.faults:
                click.echo(str(fault), err=True)
            sys.exit(2)
        except EvomergeError as error:
            click.echo(f"evomerge: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:  # `evomerge front | head`
            sys.stderr.close()
            sys.exit(0)

    return wrapped


def _sets(command: Callable) -> Callable:
    command = click.option(
        "--source", "moved", multiple=True, metavar="LABEL=PATH", help="A source that moved."
    )(command)
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=YAML", help="Override a key: a.b=value."
    )(command)


def _moved(pairs: tuple[str, ...]) -> dict[str, str]:
    from evomerge.errors import Fault

    found = {}
    for pair in pairs:
        label, equals, path = pair.partition("=")
        if not equals:
            raise BadInput(Fault("--source", pair, "is not label=path", "write e.g. ja=models/ja"))
        found[label] = path
    return found


@main.command()
@click.argument("file", type=FILE)
@_sets
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_errors_are_lines
def check(file: Path, settings: tuple, moved: tuple, as_json: bool) -> None:
    """Check a campaign FILE: every fault at once, and what the campaign will need.

    \b
      evomerge check search_spaces/crosslingual-maths.yaml
    """
    from evomerge.campaign.estimate import estimate
    from evomerge.campaign.run import checked

    campaigns = checked(file, settings, _moved(moved))
    found = [estimate(campaign) for campaign in campaigns]
    if as_json:
        click.echo(json.dumps(found[0] if len(found) == 1 else {"stages": found}, indent=1))
        return
    for number, stage in enumerate(found):
        if len(found) > 1:
            click.echo(f"{'' if not number else chr(10)}stage {number + 1}")
        for key, value in stage["summary"].items():
            click.echo(f"{key:12} {value}")
    for warning in dict.fromkeys(w for stage in found for w in stage["warnings"]):
        click.echo(f"warning: {warning}")


@main.command()
@click.argument("file", type=FILE)
@click.option("--run", "directory", type=FILE, help="The run's directory [runs/NAME].")
@_sets
@click.option("--adopt", is_flag=True, help="Go on although the controller proposes otherwise.")
@_errors_are_lines
def run(file: Path, directory: Path | None, settings: tuple, moved: tuple, adopt: bool) -> None:
    """Start the campaign in FILE, or continue it.

    Ctrl-C stops asking and waits for what is in flight; a second one leaves at once. The same
    command goes on from there.

    \b
      evomerge run search_spaces/crosslingual-maths.yaml
      evomerge run search_spaces/crosslingual-maths.yaml --set budget.evaluations=400
    """
    from evomerge.campaign.run import run_campaign
    from evomerge.cli.progress import Progress

    words = ["evomerge", "run", str(file), *(["--run", str(directory)] if directory else [])]
    words += [w for s in settings for w in ("--set", s)]
    words += [w for m in moved for w in ("--source", m)]
    finished = run_campaign(
        file,
        directory=directory,
        settings=settings,
        moved=_moved(moved),
        adopt=adopt,
        progress=Progress(),
    )
    if not finished:
        click.echo(f"interrupted; what is archived stays. To continue: {shlex.join(words)}")
        sys.exit(130)


@main.command()
@click.argument("directory", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_errors_are_lines
def status(directory: Path, as_json: bool) -> None:
    """Show how far the campaign in DIRECTORY is; also while it runs."""
    from evomerge.archive import summary
    from evomerge.cli import tables

    found = summary.status(directory)
    click.echo(json.dumps(found, indent=1) if as_json else tables.status(found))


@main.command()
@click.argument("directory", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_errors_are_lines
def front(directory: Path, as_json: bool) -> None:
    """Show the Pareto front in DIRECTORY and the baselines, with 95 % intervals."""
    from evomerge.archive import summary
    from evomerge.cli import tables

    found = summary.front(directory)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo(tables.front(found, summary.standing(directory)))


@main.command()
@click.argument("directory", type=FILE)
@click.argument("candidate")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_errors_are_lines
def show(directory: Path, candidate: str, as_json: bool) -> None:
    """Show one CANDIDATE of the campaign in DIRECTORY: recipe, parents, scores.

    CANDIDATE is a number, or what `export --pick` takes: best, knee, an objective, weights=...
    """
    from evomerge.archive import summary
    from evomerge.cli import tables

    found = summary.show(directory, candidate)
    click.echo(json.dumps(found, indent=1) if as_json else tables.show(found))


@main.command()
@click.argument("directory", type=FILE)
@click.argument("out", type=FILE)
@click.option(
    "--pick",
    default="best",
    help="best, knee, a candidate's number, an objective, or weights=NAME:NUMBER,... of the front.",
)
@click.option("--source", "moved", multiple=True, metavar="LABEL=PATH", help="A source that moved.")
@click.option("--unverified", is_flag=True, help="Do not compare with the scored weights.")
@_errors_are_lines
def export(directory: Path, out: Path, pick: str, moved: tuple, unverified: bool) -> None:
    """Write a candidate of DIRECTORY to OUT as a Hugging Face model, bit for bit as scored.

    A routed candidate's scales are folded into its weights, which are rounded once.

    \b
      evomerge export runs/crosslingual-maths merged/ --pick best
    """
    from evomerge.export.candidates import export_candidate

    candidate, checksum, how = export_candidate(directory, out, pick, _moved(moved), not unverified)
    click.echo(f"candidate {candidate} -> {out} (weights {checksum}, {how})")


@main.command()
@click.argument("recipe", type=FILE)
@click.argument("out", type=FILE)
@_errors_are_lines
def merge(recipe: Path, out: Path) -> None:
    """Materialize one RECIPE (JSON, or a mergekit YAML) into OUT, without a campaign.

    \b
      evomerge merge merged/recipe.json again/
      evomerge merge mergekit_config.yml merged/
    """
    from evomerge.export.nested_recipes import merge_file

    checksum = merge_file(recipe, out)
    click.echo(f"{recipe} -> {out} (weights {checksum})")


@main.command(name="list")
@click.argument("what", required=False, type=click.Choice(LISTED))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_errors_are_lines
def list_(what: str | None, as_json: bool) -> None:
    """List the merge methods, spaces, controllers and kinds of fitness, with their options."""
    from evomerge.cli import catalogue, tables

    found = catalogue.listing(what)
    click.echo(json.dumps(found, indent=1) if as_json else tables.listing(found))


if __name__ == "__main__":
    main()
