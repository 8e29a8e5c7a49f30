"""What the benchmarks share: the command line with its short form, and a campaign run in silence.

Every benchmark takes `--short`, which runs the same code on so little that it ends within
seconds. It shows that the command works; its figures say nothing else.
"""

import argparse
import atexit
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import yaml

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.summary import open_run
from evomerge.errors import EvomergeError, placed

Task, Result = TypeVar("Task"), TypeVar("Result")


@contextlib.contextmanager
def errors_as_lines(file: Path) -> Iterator[None]:
    """End the script in a line, not in a traceback, where the user or the campaign is at fault.

    Args:
        file: the file or directory of the user's in which a fault is.
    """
    try:
        with placed(file=str(file)):
            yield
    except EvomergeError as error:
        raise SystemExit(str(error)) from error


def command_line(doc: str) -> argparse.ArgumentParser:
    """Return a parser whose help is the script's own docstring."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=form)


def parsed(parser: argparse.ArgumentParser, **short: Any) -> argparse.Namespace:
    """Parse the command line.

    Args:
        parser: of `command_line`.
        short: the options that make the command long, with what `--short` makes of them, whatever
            else the command line says. `out` is a new folder, deleted at the end, unless it was
            given: a short run leaves nothing behind.
    """
    parser.add_argument("--short", action="store_true", help="a trial run that takes seconds")
    options = parser.parse_args()
    if options.short:
        vars(options).update(short)
        if "out" in options and options.out is None:
            options.out = Path(tempfile.mkdtemp(prefix="evomerge-short-"))
            atexit.register(shutil.rmtree, options.out, ignore_errors=True)
    return options


def with_out(parser: argparse.ArgumentParser, csv: Path, runs: Path) -> None:
    """Add the option `--out` to a benchmark that appends rows to a CSV and keeps its runs."""
    kept = f"{csv.name} and {runs} by default"
    parser.add_argument("--out", type=Path, help=f"folder of the rows and the runs; {kept}")


def fewer_items(file: Path, items: int) -> list[str]:
    """Return settings that score a campaign's candidates on so few items of each objective."""
    plan = yaml.safe_load(file.read_text(encoding="utf-8"))
    scored = [i for i, entry in enumerate(plan["fitness"]) if "cost" not in entry]
    return [f"fitness.{index}.items={items}" for index in scored]


def run_silently(file: Path, directory: Path, settings: Sequence[str]) -> ArchiveReader:
    """Run a campaign, or continue one that was stopped, and return its archive for reading.

    Raises:
        SystemExit: it was interrupted, or has failed.
    """
    from evomerge.campaign.observer import Silent
    from evomerge.campaign.run import run_campaign

    with errors_as_lines(file):
        finished = run_campaign(file, directory=directory, settings=settings, observer=Silent())
    if not finished:
        raise SystemExit("interrupted; the same command goes on")
    return open_run(directory)


def done_of(run: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """Yield what a function returns of each task, as it comes: so many processes at once, or this.

    Args:
        run: of a module, as processes must find it.
        tasks: each its one argument.
        jobs: processes; one task after the other in this one if it is 1.
    """
    if jobs == 1:
        yield from map(run, tasks)
        return
    # torch's threads do not outlive a fork
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, task) for task in tasks]):
            yield done.result()


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], formats: Sequence[str] = ()
) -> str:
    """Return a table in Markdown with its columns aligned.

    Args:
        headers: of the columns.
        rows: cells, None where there is none; a row may end early.
        formats: how each column's floats are written, e.g. ".2f".
    """
    lines = [list(headers)]
    for row in rows:
        cells = []
        for index in range(len(headers)):
            cell = row[index] if index < len(row) else None
            style = formats[index] if isinstance(cell, float) and formats else ""
            cells.append("" if cell is None else format(cell, style))
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines
    )


def hardware() -> str:
    """Say the cores there are and, where torch is in use, its threads."""
    cores = f"{os.cpu_count()} cores"
    torch = sys.modules.get("torch")
    return f"{cores}, {torch.get_num_threads()} threads" if torch else cores
