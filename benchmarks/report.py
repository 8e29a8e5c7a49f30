"""How long a report takes: to be made, and to be drawn by a browser; and how large it is.

    python benchmarks/report.py --candidates 160 10000

Outcomes are drawn; the archive, the report and the browser are the real ones. "making" is of a new
process, with its imports; "again" of the same process, as `--watch` does it. "drawn" is the time
until what the window shows first is drawn, "all" until all pictures are.

Prints seconds and bytes. Without Chromium the browser's columns are empty.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
from models import seconds_of

from evomerge.report.report import write_report
from evomerge.testing.searches import searched_archive

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOW = {"width": 1280, "height": 900}
MAKE = "import sys; from evomerge.cli.main import main; main(['report', *sys.argv[1:]])"


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Enter a Chromium that is installed; None where none is, or nothing drives it."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        path = None
    if path is None:
        yield None
        return
    # Chromium refuses its sandbox to root
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()


def draw_all(page: Any) -> None:
    """Draw what is further down as well, as for print, and wait until it is there."""
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    while page.locator(".chart:not([data-drawn])").count():
        time.sleep(0.01)


def seconds_drawn(found: Any, file: Path) -> tuple[float, float]:
    """Return the seconds until the window is drawn, and until all pictures are."""
    page = found.new_page(viewport=WINDOW)
    began = time.perf_counter()
    page.goto(file.as_uri())
    # pictures that come near the window draw themselves before the next frame but one
    page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    first = time.perf_counter() - began
    draw_all(page)
    whole = time.perf_counter() - began
    page.close()
    return first, whole


def measure(candidates: int, found: Any, folder: Path) -> dict[str, object]:
    """Return a table's row for a search of so many candidates."""
    run = folder / f"run-{candidates}"
    run.mkdir()
    searched_archive(run / "archive.db", candidates=candidates, finals=16, items=200)
    file = run / "report.html"
    command = [sys.executable, "-c", MAKE, str(run)]
    making = seconds_of(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    write_report(run, file)  # with which what is made once a process is made
    again = seconds_of(lambda: write_report(run, file))
    first, whole = seconds_drawn(found, file) if found else (None, None)
    return {
        "candidates": candidates,
        "making (s)": f"{making:.2f}",
        "again (s)": f"{again:.2f}",
        "MB": f"{file.stat().st_size / 1e6:.2f}",
        "drawn (s)": "" if first is None else f"{first:.2f}",
        "all (s)": "" if whole is None else f"{whole:.2f}",
    }


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--candidates", type=int, nargs="+", default=[160, 10_000])
    options = common.parsed(parser, candidates=[60])
    with browser() as found, tempfile.TemporaryDirectory() as folder:
        rows = [measure(count, found, Path(folder)) for count in options.candidates]
    print(common.hardware())
    print(common.table([*rows[0]], [[*row.values()] for row in rows]))


if __name__ == "__main__":
    main()
