"""`evomerge push RUN ORG/NAME`: a candidate as a repository of the hub."""

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
)
from evomerge.cli.push_text import push_text
from evomerge.errors import BadInput, Fault, placed


@click.command()
@click.argument("directory", type=FILE)
@click.argument("repository")
@PICK
@SOURCE
@AS_ADAPTER
@click.option("--private", is_flag=True, help="To be seen by its owner alone.")
@click.option("--branch", help="Of the repository; it is made if it is not there.")
@click.option("--folder", type=FILE, help="Keep the model in this folder, which is not there yet.")
@click.option("--dry-run/--no-dry-run", "dry", default=None, help="Send nothing, but say what.")
@TRUST_CODE
@errors_are_lines
def push(
    directory: Path,
    repository: str,
    pick: str,
    moved: tuple[str, ...],
    as_adapter: bool,
    private: bool,
    branch: str | None,
    folder: Path | None,
    dry: bool | None,
    trust_code: bool,
) -> None:
    """Put a candidate of DIRECTORY on the hub, with its card, as the repository ORG/NAME.

    It comes there by one commit. Without a token nothing is sent, and what would be is said.

    \b
      evomerge push runs/crosslingual-maths ORG/NAME --pick best --dry-run
    """
    from evomerge.export.hub_push import push_candidate
    from evomerge.sources.hub_upload import LOG_IN, Target, check_id, known_tokens
    from evomerge.sources.trust import Trust

    with placed(file="ORG/NAME"):
        check_id(repository)
    if dry is False and not known_tokens():
        raise BadInput(Fault("", "no token is known here", LOG_IN, file="--no-dry-run"))
    target, trust = Target(repository, branch, private), Trust(trust_code, trust_code)
    is_dry = not known_tokens() if dry is None else dry
    with placed(file=str(directory)):
        done = push_candidate(
            directory, pick, target, is_dry, folder, by_label(moved), trust, as_adapter
        )
    click.echo(push_text(done, target, as_adapter))
