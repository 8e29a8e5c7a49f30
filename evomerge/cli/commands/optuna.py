"""`evomerge optuna RUN`: a run as a study of Optuna's."""

from pathlib import Path

import click

from evomerge.cli.conventions import FILE, errors_are_lines
from evomerge.errors import EvomergeError, placed


@click.command()
@click.argument("directory", type=FILE)
@click.option("--out", type=FILE, help="The file to write [optuna.db in DIRECTORY].")
@errors_are_lines
def optuna(directory: Path, out: Path | None) -> None:
    """Write the run in DIRECTORY as a study of Optuna's, which optuna-dashboard opens.

    Each candidate that has genes is a trial, with its genes as parameters by name and range. Those
    that were scored on a part of the items are marked, and never the best: their values are
    estimates. A study that is there is replaced.

    \b
      evomerge optuna runs/crosslingual-maths
    """
    import contextlib

    from evomerge.archive.summary import as_written, open_run
    from evomerge.archive.trials import studies_of
    from evomerge.search.optuna_study import write_studies

    with placed(file=str(directory)):
        with contextlib.closing(open_run(directory)) as archive, as_written():
            studies = studies_of(archive)
        path = out or directory / "optuna.db"
        try:
            write_studies(studies, path)
        except OSError as error:
            raise EvomergeError(f"{path} cannot be written: {error.strerror}") from None
    count = sum(len(study.trials) for study in studies)
    click.echo(f"wrote {path}: {count} trials; optuna-dashboard sqlite:///{path}")
