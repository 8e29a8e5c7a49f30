"""The `evomerge` command: a thin skin over the library.

Exit codes: 0 done, 1 failed, 2 bad input (nothing loaded, nothing written), 130 interrupted.

Each command imports what it needs when it runs, so that `--help` is there at once.
"""

import shlex
import sys
from pathlib import Path

import click

from evomerge import __version__
from evomerge.cache import KINDS
from evomerge.cli.conventions import by_label, errors_are_lines, print_json
from evomerge.errors import placed
from evomerge.text import printable

FILE = click.Path(path_type=Path)

CACHED = tuple(KINDS)

LISTED = ("methods", "spaces", "controllers", "fitness")

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SOURCE = click.option(
    "--source", "moved", multiple=True, metavar="LABEL=PATH", help="A source that moved."
)
_TRUST_CODE = click.option(
    "--trust-code",
    is_flag=True,
    help="Run code that comes with the models, and Python functions that make them.",
)
_SET = click.option(
    "--set", "settings", multiple=True, metavar="KEY=YAML", help="Override a key: a.b=value."
)
_AS_ADAPTER = click.option(
    "--as-adapter",
    is_flag=True,
    help="Write a LoRA adapter of the models' base, where the merge is one, instead of weights.",
)


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


def _weights(as_adapter: bool) -> str:
    return "adapter, which merges to weights" if as_adapter else "weights"


@main.command()
@click.argument("file", type=FILE)
@_SET
@_SOURCE
@_JSON
@errors_are_lines
def check(file: Path, settings: tuple[str, ...], moved: tuple[str, ...], as_json: bool) -> None:
    """Check a campaign FILE: every fault at once, and what the campaign will need.

    \b
      evomerge check search_spaces/crosslingual-maths.yaml
    """
    from evomerge.campaign.build import checked_campaigns, read_and_check
    from evomerge.campaign.estimate import estimate
    from evomerge.cli import tables

    paths = by_label(moved)
    plan = read_and_check(file, settings, paths)
    with placed(file=str(file)):
        stages = [estimate(campaign) for campaign in checked_campaigns(plan, paths)]
    if as_json:
        print_json(stages[0] if len(stages) == 1 else {"stages": stages})
    else:
        click.echo(tables.check(stages))


@main.command()
@click.argument("file", type=FILE)
@click.option("--run", "directory", type=FILE, help="The run's directory [runs/NAME].")
@_SET
@_SOURCE
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


@main.command()
@click.argument("directory", type=FILE)
@_JSON
@errors_are_lines
def status(directory: Path, as_json: bool) -> None:
    """Show how far the campaign in DIRECTORY is; also while it runs.

    \b
      evomerge status runs/crosslingual-maths
    """
    from evomerge.archive import summary
    from evomerge.cli import tables
    from evomerge.cli.console import terminal

    with placed(file=str(directory)):
        found = summary.status(directory)
    if as_json:
        print_json(found)
    else:
        click.echo(tables.status(printable(found), terminal()))


@main.command()
@click.argument("directory", type=FILE)
@_JSON
@errors_are_lines
def front(directory: Path, as_json: bool) -> None:
    """Show the Pareto front in DIRECTORY and the baselines, with 95 % intervals.

    \b
      evomerge front runs/crosslingual-maths
    """
    from evomerge.archive import summary
    from evomerge.cli import tables
    from evomerge.cli.console import terminal

    with placed(file=str(directory)):
        rows = summary.front(directory)
    if as_json:
        print_json(rows)
    else:
        click.echo(tables.front(printable(rows), summary.standing(directory), terminal()))
        for told in (
            tables.gap(summary.gap(directory)),
            tables.agreement(summary.agreement(directory)),
        ):
            if told:
                click.echo(told)


@main.command()
@click.argument("directory", type=FILE)
@click.argument("candidate")
@_JSON
@errors_are_lines
def show(directory: Path, candidate: str, as_json: bool) -> None:
    """Show one CANDIDATE of the campaign in DIRECTORY: recipe, parents, scores.

    CANDIDATE is a number, or what `export --pick` takes: best, knee, an objective, weights=...

    \b
      evomerge show runs/crosslingual-maths best
    """
    from evomerge.archive import summary
    from evomerge.cli import tables
    from evomerge.cli.console import terminal

    with placed(file=str(directory)):
        found = summary.show(directory, candidate)
    if as_json:
        print_json(found)
    else:
        click.echo(tables.show(printable(found), terminal()))


@main.command()
@click.argument("directory", type=FILE)
@click.argument("out", type=FILE)
@click.option(
    "--pick",
    default="best",
    help="best, knee, a candidate's number, an objective, or weights=NAME:NUMBER,... of the front.",
)
@_SOURCE
@click.option("--unverified", is_flag=True, help="Do not compare with the scored weights.")
@_AS_ADAPTER
@_TRUST_CODE
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
        candidate, checksum, compared = export_candidate(
            directory,
            out,
            pick,
            by_label(moved),
            not unverified,
            Trust(trust_code, trust_code),
            as_adapter,
        )
    click.echo(f"candidate {candidate} -> {out} ({_weights(as_adapter)} {checksum}, {compared})")


@main.command()
@click.argument("recipe", type=FILE)
@click.argument("out", type=FILE)
@_AS_ADAPTER
@_TRUST_CODE
@errors_are_lines
def merge(recipe: Path, out: Path, as_adapter: bool, trust_code: bool) -> None:
    """Materialize one RECIPE (JSON, or a mergekit YAML) into OUT, without a campaign.

    \b
      evomerge merge merged/recipe.json again/
      evomerge merge mergekit_config.yml merged/
    """
    from evomerge.export.nested_recipes import merge_file
    from evomerge.sources.trust import Trust

    checksum = merge_file(recipe, out, Trust(trust_code, trust_code), as_adapter)
    click.echo(f"{recipe} -> {out} ({_weights(as_adapter)} {checksum})")


@main.command(name="list")
@click.argument("what", required=False, type=click.Choice(LISTED))
@_JSON
@errors_are_lines
def list_(what: str | None, as_json: bool) -> None:
    """List the merge methods, spaces, controllers and kinds of fitness, with their options.

    \b
      evomerge list controllers
    """
    from evomerge.cli import catalogue, tables

    listed = catalogue.listing(what)
    if as_json:
        print_json(listed)
    else:
        click.echo(tables.listing(listed))


@main.command()
@errors_are_lines
def schema() -> None:
    """Print the JSON Schema of the campaign file, by which an editor completes and checks it.

    \b
      evomerge schema > campaign.schema.json
    """
    from evomerge.config.schema import json_schema

    print_json(json_schema())


@main.command()
@click.argument("kind", required=False, type=click.Choice(CACHED))
@click.option("--empty", is_flag=True, help="Remove what no live process uses.")
@_JSON
@errors_are_lines
def cache(kind: str | None, empty: bool, as_json: bool) -> None:
    """Show what is kept to be used again, of all kinds or of one; or remove it.

    \b
      evomerge cache
      evomerge cache candidates --empty
    """
    from evomerge.cache import eviction
    from evomerge.cache.summary import summary
    from evomerge.cli import tables
    from evomerge.cli.console import terminal

    kinds = (kind,) if kind else CACHED
    removed = eviction.empty(kinds) if empty else None
    if as_json:
        print_json({**summary(kinds), **({"removed": removed._asdict()} if removed else {})})
        return
    if removed is not None:
        click.echo(printable(tables.removed(removed)))
    else:
        click.echo(tables.cache(printable(summary(kinds)), terminal()))


if __name__ == "__main__":
    main()
