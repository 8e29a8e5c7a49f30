"""A report in a real browser: it draws itself, asks for nothing, and fits every window.

Chromium has to be installed (`apt-get install chromium`); without it these tests are skipped.
"""

import contextlib
import os
import shutil
import time

import pytest

from evomerge.archive.archive import Archive
from evomerge.report.report import write_report
from evomerge.testing.archives import PLAN, PROVENANCE
from evomerge.testing.searches import searched_archive

playwright = pytest.importorskip("playwright.sync_api", reason='needs pip install ".[dev]"')
pytest.importorskip("vl_convert", reason='needs pip install ".[report]"')

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
CHROMIUM = CHROMIUM or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]

SECTIONS = ["verdict", "state", "front", "convergence", "weights", "genes", "answers", "lineage"]
SECTIONS += ["failures", "time", "provenance"]
MEBIBYTE = 1 << 20
HOSTILE = '</script><img src="http://192.0.2.1/x" onerror="document.title=1">'


@pytest.fixture(scope="module")
def browser():
    # Chromium refuses its sandbox to root, which containers often run tests as
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages: of a usual search, of a hostile one, of one with nothing in it, of a large one."""
    folder = tmp_path_factory.mktemp("pages")
    searches = {
        "usual": {"kind": "mixture", "candidates": 60},
        "hostile": {"labels": [HOSTILE, "b"], "objectives": [HOSTILE], "name": HOSTILE},
        "large": {"kind": "routing", "candidates": 10_000, "finals": 16},
    }
    pages = {}
    for name in (*searches, "empty", "running"):
        directory = folder / name
        directory.mkdir()
        if name in searches:
            searched_archive(directory / "archive.db", **searches[name])
        else:
            with contextlib.closing(Archive(directory / "archive.db", write=True)) as archive:
                archive.begin("nothing yet", PLAN, PROVENANCE, [])
        pages[name] = folder / f"{name}.html"
        write_report(directory, pages[name])
    text = pages["usual"].read_text("utf-8")
    pages["running"].write_text(text.replace('data-refresh="0"', 'data-refresh="1"'), "utf-8")
    return pages


def until(told):
    """Wait until something is so. (The page's policy forbids Playwright's own way of waiting.)"""
    for _ in range(300):
        with contextlib.suppress(playwright.Error):  # of a page that is just read again
            if told():
                return
        time.sleep(0.05)
    raise AssertionError("it never came to be so")


class Opened:
    """A page in a window, and what it did that it should not have."""

    def __init__(self, browser, file, width=1000, scheme="light"):
        self.wrong, self.asked = [], []
        size = {"width": width, "height": 800}
        self.page = browser.new_page(viewport=size, color_scheme=scheme)
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def draw_all(self):
        """Draw what is further down as well, as for print; return how many pictures there are."""
        self.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        until(lambda: self.page.locator(".chart:not([data-drawn])").count() == 0)
        return self.page.locator(".chart svg").count()

    def overflow(self):
        """How many pixels of the page lie outside the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def under_the_pointer(self, wanted):
        """Point at one mark of the front after the other until what is wanted is told."""
        marks, told = self.page.locator("#front .chart svg .mark-symbol path"), []
        for index in reversed(range(marks.count())):  # the best is drawn last
            marks.nth(index).scroll_into_view_if_needed()
            box = marks.nth(index).bounding_box()
            self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            told += self.page.locator("#vg-tooltip-element.visible td.value").all_inner_texts()
            if wanted in told:
                break
        return told

    def colour(self, selector, name):
        return self.page.evaluate(
            "([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name]
        )


@pytest.fixture
def opened(browser):
    """Open a page; in the end it must have asked for nothing but itself, and have said nothing."""
    pages = []

    def open_page(file, **options):
        pages.append(Opened(browser, file, **options))
        return pages[-1]

    yield open_page
    for one in pages:
        one.page.close()
        assert one.wrong == []
        assert [url for url in one.asked if not url.startswith("file:")] == []


@pytest.mark.parametrize("name", ["usual", "hostile", "empty", "large"])
def test_every_section_is_there_and_every_picture_is_drawn(opened, files, name):
    one = opened(files[name])
    assert one.page.locator("main > section").evaluate_all("all => all.map(s => s.id)") == SECTIONS
    charts = one.page.locator(".chart").count()
    assert one.draw_all() == charts and (charts > 8) == (name != "empty")
    labels = one.page.locator(".chart").evaluate_all(
        "all => all.map(s => [s.getAttribute('role'), s.getAttribute('aria-label') || ''])"
    )
    assert all(role == "graphics-document" and len(label) > 20 for role, label in labels)
    assert files[name].stat().st_size < 6 * MEBIBYTE


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", ["usual", "hostile", "large"])
def test_nothing_overflows(opened, files, name, width):
    one = opened(files[name], width=width)
    one.draw_all()
    assert one.overflow() <= 0
    wide = one.page.locator(".chart svg").evaluate_all(
        "all => all.filter(s => s.getBoundingClientRect().right > window.innerWidth).length"
    )
    assert wide == 0


def test_a_picture_follows_the_window_when_it_grows(opened, files):
    one = opened(files["usual"], width=600)
    one.draw_all()
    front = one.page.locator("#front .chart svg").first
    narrow = front.bounding_box()["width"]
    one.page.set_viewport_size({"width": 1200, "height": 800})
    until(lambda: front.bounding_box()["width"] > narrow + 200)


def test_the_pointer_names_the_candidate(opened, files):
    one = opened(files["usual"])
    one.draw_all()
    best = one.page.locator("#front tr.strong td").first.inner_text()
    assert best.startswith("candidate") and best in one.under_the_pointer(best)


def test_dark_follows_the_system_also_when_that_changes(opened, files):
    one = opened(files["usual"])
    one.draw_all()
    axis = "#front .chart svg .role-axis-label text"
    light = one.colour("body", "backgroundColor"), one.colour(axis, "fill")
    mark = one.colour("#front .chart svg .mark-symbol path", "fill")
    one.page.emulate_media(color_scheme="dark")
    dark = one.colour("body", "backgroundColor"), one.colour(axis, "fill")
    assert light[0] != dark[0] and light[1] != dark[1]
    assert one.colour("#front .chart svg .mark-symbol path", "fill") != mark
    one.page.emulate_media(media="print")
    assert one.colour("body", "backgroundColor") == "rgb(255, 255, 255)"


def test_names_of_strangers_stay_text_in_pictures_and_under_the_pointer(opened, files):
    one = opened(files["hostile"])
    one.draw_all()
    assert HOSTILE in one.under_the_pointer(HOSTILE)
    assert one.page.locator("img").count() == 0
    assert one.page.title() == f"{HOSTILE}: evomerge report"


def test_while_it_runs_the_page_reads_itself_again_and_stays_where_it_was(opened, files):
    one = opened(files["running"])
    one.page.evaluate("window.scrollTo(0, 900); window.before = true")
    until(lambda: one.page.evaluate("document.readyState === 'complete' && !window.before"))
    until(lambda: one.page.evaluate("window.scrollY > 500"))
    assert len(one.asked) >= 2
