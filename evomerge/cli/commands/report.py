"""`evomerge report RUN`: a run as one HTML page with pictures."""

from pathlib import Path

import click

from evomerge.cli.conventions import FILE, errors_are_lines


@click.command()
@click.argument("directory", type=FILE)
@click.option("--out", type=FILE, help="The file to write; by default DIRECTORY/report.html.")
@click.option(
    "--beside",
    type=FILE,
    metavar="DIRECTORY",
    help="Another run on the same items, as by random search, to compare the best with.",
)
@click.option("--watch", is_flag=True, help="Write the page again and again until the search ends.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="Between one writing and the next, with --watch.",
)
@errors_are_lines
def report(directory: Path, out: Path | None, beside: Path | None, watch: bool, every: int) -> None:
    """Write a run as one HTML page: the verdict, the front, what the best is made of, answers.

    The page is one file that asks the network for nothing. It is read from the archive alone, also
    while the search runs. It needs `pip install "evomerge[report]"`.

    \b
      evomerge report runs/crosslingual-maths --watch
    """
    from evomerge.report.report import FILE as NAME
    from evomerge.report.report import watch as watch_run
    from evomerge.report.report import write_report
    from evomerge.text import byte_size

    path = out or directory / NAME
    if watch:
        click.echo(f"writing {path} every {every} s until the search ends; Ctrl-C stops this")
        state = watch_run(directory, path, beside, every)
    else:
        state = write_report(directory, path, beside)
    click.echo(f"{path} ({byte_size(path.stat().st_size)}, {state})")
