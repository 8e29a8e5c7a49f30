"""Make the pictures of docs/report.md from a run: parts of its report, as Chromium shows them.

    python docs/pictures.py runs/crosslingual-maths --beside runs/crosslingual-maths-random

Needs Chromium and Playwright. Writes docs/pictures/*.png, each at the size at which it is shown.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from evomerge.report.report import write_report

FOLDER = Path(__file__).parent / "pictures"
# file -> what it shows: the first element of this selector
PARTS = {
    "verdict": "#verdict",
    "front": "#front figure",
    "weights": "#weights figure",
    "genes": "#genes figure",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--beside", type=Path, help="see evomerge report --help")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    # Chromium refuses its sandbox to root
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        file = Path(folder) / "report.html"
        write_report(options.run, file, options.beside)
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        page = browser.new_page(viewport={"width": 820, "height": 900})
        page.goto(file.as_uri())
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        while page.locator(".chart:not([data-drawn])").count():
            time.sleep(0.05)
        for name, selector in PARTS.items():
            page.locator(selector).first.screenshot(path=FOLDER / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
