"""`evomerge datasette RUN`: what Datasette shows beside a run's archive."""

from pathlib import Path

import click

from evomerge.cli.conventions import FILE, errors_are_lines
from evomerge.errors import EvomergeError, placed


@click.command()
@click.argument("directory", type=FILE)
@click.option("--out", type=FILE, help="The file to write [metadata.json in DIRECTORY].")
@errors_are_lines
def datasette(directory: Path, out: Path | None) -> None:
    """Write metadata for Datasette, which shows the archive in DIRECTORY in a browser.

    It says what each table and column holds, and has the questions of docs/archive.md as pages: the
    front, the best, item by item, failures, where the time went.

    \b
      evomerge datasette runs/crosslingual-maths
    """
    import contextlib
    import json

    from evomerge.archive.described import datasette_metadata
    from evomerge.archive.summary import open_run
    from evomerge.whole_files import written_beside

    with placed(file=str(directory)), contextlib.closing(open_run(directory)) as archive:
        metadata = datasette_metadata(archive.campaign["name"])
    path = out or directory / "metadata.json"
    try:
        with written_beside(path) as temporary:
            temporary.write_text(json.dumps(metadata, indent=1), encoding="utf-8")
    except OSError as error:
        raise EvomergeError(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {path}; datasette {directory / 'archive.db'} --metadata {path}")
