"""The report of a run: its sections in their order, as one page, and that page as a file."""

import time
from collections.abc import Callable
from pathlib import Path

from evomerge.archive.summary import as_written
from evomerge.errors import EvomergeError, one_line, placed
from evomerge.report.answers import answers
from evomerge.report.charts import Palette
from evomerge.report.convergence import convergence
from evomerge.report.effort import effort
from evomerge.report.failures import failures
from evomerge.report.figures import Section, Text
from evomerge.report.front import front
from evomerge.report.genes import genes
from evomerge.report.lineage import lineage
from evomerge.report.page import installed, page
from evomerge.report.provenance import provenance
from evomerge.report.run import Run, read_run
from evomerge.report.state import state
from evomerge.report.verdict import verdict
from evomerge.report.weights import weights
from evomerge.whole_files import written_beside

FILE = "report.html"  # in the run's directory, unless another is named


def sections(run: Run, beside: Run | None = None) -> list[Section]:
    """Return the sections of the page, in their order.

    Args:
        run: that it is about.
        beside: another search on the same items, for the verdict.

    >>> from evomerge.testing.reports import example_run
    >>> [section.key for section in sections(example_run())]
    ['verdict', 'state', 'front', 'convergence', 'weights', 'genes', 'answers', 'lineage', \
'failures', 'time', 'provenance']
    """
    palette = Palette(run)
    return [
        verdict(run, beside),
        state(run),
        front(run, palette),
        convergence(run, palette),
        weights(run, palette),
        genes(run, palette),
        answers(run, palette),
        lineage(run, palette),
        failures(run),
        effort(run, palette),
        provenance(run),
    ]


def report(directory: Path, beside: Path | None = None, refresh: int = 0) -> tuple[str, str]:
    """Return the page of a run, and the state that the run is in.

    Args:
        directory: of the run.
        beside: of another run on the same items.
        refresh: seconds after which the page is to be read again, while the search runs.

    Raises:
        BadInput: a directory holds no archive; or what draws the page is not installed.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     text, state = report(Path(run))
    >>> text[:15], state
    ('<!DOCTYPE html>', 'interrupted')
    """
    with placed(file=str(directory)):
        run = read_run(directory)
    with placed(file=str(beside)):
        other = None if beside is None else read_run(beside)
    if run is None:
        text = "The campaign has not begun: its archive is there and holds nothing yet."
        nothing = [Section("verdict", "Verdict", (Text(text, "lead"),))]
        with installed():
            return page(directory.name, "not begun", "", nothing, refresh), "not begun"
    again = refresh if run.state == "running" else 0
    with installed():
        with placed(file=str(directory)), as_written():
            found, about = sections(run, other), _about(run)
        return page(run.name, run.state, about, found, again), run.state


def write_report(directory: Path, out: Path, beside: Path | None = None, refresh: int = 0) -> str:
    """Write the page of a run to a file, whole or not at all; return the run's state.

    Args:
        directory, beside, refresh: see `report`.
        out: the file.

    Raises:
        BadInput: see `report`.
        EvomergeError: the file cannot be written.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     write_report(Path(run), Path(run) / "report.html")
    'interrupted'
    """
    text, state = report(directory, beside, refresh)
    try:
        with written_beside(out) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise EvomergeError(f"{out} cannot be written: {one_line(error)}") from error
    return state


def watch(
    directory: Path,
    out: Path,
    beside: Path | None = None,
    seconds: int = 10,
    said: Callable[[str], None] = lambda state: None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Write the page again and again until the search no longer runs; return the state then.

    Args:
        directory, out, beside: see `write_report`.
        seconds: between one writing and the next.
        said: is told the state after each writing.
        sleep: waits.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     watch(Path(run), Path(run) / "report.html")
    'interrupted'
    """
    while True:
        state = write_report(directory, out, beside, seconds)
        said(state)
        if state not in ("running", "not begun"):
            return state
        sleep(seconds)


def _about(run: Run) -> str:
    sources = ", ".join(source.label for source in run.sources if not source.own)
    controllers = ", then ".join(run.controllers)
    names = ", ".join(o.name for o in run.objectives)
    return f"{sources} merged for {names}; searched by {controllers}, seed {run.plan['seed']}."
