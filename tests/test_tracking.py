"""Trackers beside a search: what they show, and that no fault of theirs reaches it.

TensorBoard is here; those of more packages are in test_trackers.py.
"""

import itertools
import json
import sqlite3
import threading
import time
from contextlib import closing
from typing import Literal

import pytest
import tracked as trials
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evomerge.archive.archive import Archive
from evomerge.campaign import tracked
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.tracking import (
    TRACKERS,
    Ending,
    Point,
    TrackedRun,
    Tracker,
    TrackerSection,
    follower,
    tracker,
)
from evomerge.tracking.tensorboard import TensorBoard, TensorBoardSection


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(follower, "_POLL", 0.02)


def board(folder):
    """TensorBoard's own reader of a folder, which hides nothing."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    return found.Reload()


def curve(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


# --- what is shown ---------------------------------------------------------------------------


def test_tensorboard_has_every_outcome_once_and_what_the_search_came_to(campaign_file, here):
    file = campaign_file(track=["tensorboard"])
    run_campaign(file, observer=Silent())
    told = trials.outcomes(file)
    steps = list(itertools.accumulate(one.items for one in told))
    shown = board(here / "runs/tiny/tensorboard")
    assert curve(shown, "ledger/event") == [
        (step, one.seq) for step, one in zip(steps, told, strict=True)
    ]
    best = [value for _, value in curve(shown, "best/value")]
    assert best == pytest.approx(trials.best_so_far(told), abs=1e-6)
    means = [value for _, value in curve(shown, "candidate/likely")]
    assert means == pytest.approx([one.means["likely"] for one in told], abs=1e-6)
    times = [event.wall_time for event in shown.Scalars("ledger/event")]
    assert times == pytest.approx([one.at for one in told])
    proposed = [one.value for one in told if one.origin == "search"]
    last = sum(proposed[-6:]) / 6  # a generation's
    assert curve(shown, "mean/value")[-1][1] == pytest.approx(last, abs=1e-6)
    archive = Archive(here / "runs/tiny/archive.db")
    heldout = archive.means(archive.best(), "heldout")["likely"]
    assert curve(shown, "end/heldout/likely") == [(steps[-1], pytest.approx(heldout, abs=1e-6))]
    (text,) = shown.Tensors("campaign")
    config = json.loads(text.tensor_proto.string_val[0])
    assert config["plan"]["budget"]["evaluations"] == 14 and "track" not in config["plan"]
    assert config["provenance"]["sources"]["a"]["sha256"] == archive.sources[1].sha256
    trials.without_secrets(json.dumps(config), here)
    (front,) = shown.Tensors("front")
    assert b"| uniform |" in front.tensor_proto.string_val[0]
    # a run that is over logs nothing twice, and a longer budget goes on in it
    run_campaign(file, observer=Silent())
    run_campaign(campaign_file(track=["tensorboard"], budget__evaluations=17), observer=Silent())
    shown, told = board(here / "runs/tiny/tensorboard"), trials.outcomes(file)
    assert [value for _, value in curve(shown, "ledger/event")] == [one.seq for one in told]
    assert len(shown.Tensors("front")) == 2 and len(shown.Tensors("campaign")) == 1


def test_a_killed_run_goes_on_in_its_event_files(campaign_file, here):
    file = campaign_file(track=["tensorboard"])
    before = trials.run_killed(file)
    cut = board(here / "runs/tiny/tensorboard")
    assert 0 < len(cut.Scalars("ledger/event")) <= len(before)
    run_campaign(file, observer=Silent())
    shown, told = board(here / "runs/tiny/tensorboard"), trials.outcomes(file)
    assert [value for _, value in curve(shown, "ledger/event")] == [one.seq for one in told]
    assert len(told) > len(before)


def test_a_tracker_may_be_added_to_a_run_that_is_over(campaign_file, here):
    run_campaign(campaign_file(budget__evaluations=3), observer=Silent())
    logs = {"kind": "tensorboard", "folder": "logs"}
    observer = Silent()
    file = campaign_file(budget__evaluations=3, track=[logs])
    assert run_campaign(file, observer=observer) and observer.said == []
    shown = board(here / "logs/tiny")
    assert len(shown.Scalars("ledger/event")) == len(trials.outcomes(file))


def test_check_names_the_trackers_and_the_extras_that_are_missing(campaign_file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else name)
    done = CliRunner().invoke(main, ["check", str(campaign_file(track=["tensorboard", "wandb"]))])
    wrong = "campaign.yaml: track.1: needs wandb, which is not installed; run pip install"
    assert done.exit_code == 2 and f'{wrong} "evomerge[wandb]"' in done.output
    done = CliRunner().invoke(main, ["check", str(campaign_file(track=["wandbb"]))])
    assert "track.0.kind: there is no track 'wandbb'; did you mean 'wandb'?" in done.output


# --- trackers that fail ----------------------------------------------------------------------


class Failing(Tracker):
    """A tracker that does something at each call."""

    needs = "json"

    def __init__(self, options, run):
        self.call()

    def reached(self):
        return 0

    def log(self, points):
        self.call()

    def end(self, ending):
        self.call()


def failing(name, call):
    kind = type(name, (TrackerSection,), {"__annotations__": {"kind": Literal[name]}, "kind": name})
    return tracker(kind)(type(name, (Failing,), {"call": call}))


def raise_at_once(self):
    raise ConnectionError("the network is down")


CALLS = itertools.count()


def raise_later(self):
    if next(CALLS):
        raise SystemExit("a library that ends its process")


def fill_the_disk(self):
    with open("/dev/full", "w") as full:
        full.write("a point")


HANGING = threading.Event()
KINDS = {
    "raises": raise_at_once,
    "exits": raise_later,
    "full": fill_the_disk,
    "hangs": lambda self: HANGING.wait(600),
}
SAYS = {
    "raises": "ConnectionError: the network is down",
    "exits": "SystemExit: a library that ends its process",
    "full": "OSError: [Errno 28] No space left on device",
}


@pytest.fixture(scope="module")
def broken():
    """The sections of trackers, one broken in each way."""
    sections = {name: failing(name, call).section for name, call in KINDS.items()}
    yield [sections[name]() for name in KINDS]
    HANGING.set()
    for name in KINDS:
        del TRACKERS._entries[name]


def content(run):
    """What an archive holds, times left out."""
    timed = {"at", "seconds", "seconds_merge", "seconds_score", "plan", "provenance", "worker"}
    found = {}
    with closing(sqlite3.connect(run / "archive.db")) as database:
        database.row_factory = sqlite3.Row
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            rows = database.execute(f"SELECT * FROM {table}").fetchall()
            found[table] = [
                [row[key] for key in row.keys() if key not in timed]  # noqa: SIM118
                for row in rows
                if table != "starts"
            ]
    return found


def test_trackers_that_fail_leave_the_search_as_it_is(campaign_file, here, broken, monkeypatch):
    file = campaign_file()
    run_campaign(file, directory=here / "alone", observer=Silent())

    class WithBroken(tracked.Tracked):
        def __init__(self, inner, sections, directory):
            super().__init__(inner, [*sections, *broken], directory)

    monkeypatch.setattr("evomerge.campaign.run.Tracked", WithBroken)
    monkeypatch.setattr(tracked, "_PATIENCE", 0.2)
    observer = Silent()
    file = campaign_file(track=["tensorboard"])
    started = time.monotonic()
    assert run_campaign(file, directory=here / "followed", observer=observer)
    assert time.monotonic() - started < 60  # and not the ten minutes of the one that hangs
    assert content(here / "followed") == content(here / "alone")
    warnings = [said for said in observer.said if said.startswith("warning: ")]
    logged = (here / "followed/log.txt").read_text()
    for name, reason in SAYS.items():
        text = f"{name} failed, and the search goes on without it: {reason}"
        assert warnings.count(f"warning: {text}") == 1 and logged.count(text) == 1
    late = "hangs has not taken all that the search found, and is left behind; run the same again"
    assert sum(late in warning for warning in warnings) == 1 and late in logged
    assert len(warnings) == 4
    shown = board(here / "followed/tensorboard")  # the one beside them has all
    told = Archive(here / "followed/archive.db").told()
    assert [value for _, value in curve(shown, "ledger/event")] == [one.seq for one in told]


def test_a_stopped_search_waits_little_for_its_trackers(campaign_file, here, broken, monkeypatch):
    monkeypatch.setattr(tracked, "_PATIENCE_AT_STOP", 0.1)
    asked = itertools.count()
    hanging = [section for section in broken if section.kind == "hangs"]
    monkeypatch.setattr(
        "evomerge.campaign.run.Tracked",
        lambda inner, sections, directory: tracked.Tracked(inner, hanging, directory),
    )
    observer = Silent()
    file = campaign_file()
    assert not run_campaign(file, observer=observer, stop=lambda: next(asked) > 20)
    assert sum("hangs has not taken all" in said for said in observer.said) == 1


def test_event_files_of_one_second_are_read_in_their_order(tmp_path, monkeypatch):
    """A file's name begins with its second, and goes on with the number of its process."""
    section, run = TensorBoardSection(), TrackedRun("5f0c", "demo", tmp_path, 0.0, {})
    for event, process in ((1, 900), (2, 800), (3, 70)):  # each sorts before the one before
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        one = TensorBoard(section, run)
        assert one.reached() == event - 1
        one.log([Point(event, 0.0, 10 * event, {"best/value": float(event)})])
        one.end(Ending(False, {}, [], []))
    names = sorted(file.name for file in (tmp_path / "tensorboard").iterdir())
    assert len({name.split(".")[3] for name in names}) == 3
    assert [value for _, value in curve(board(tmp_path / "tensorboard"), "best/value")] == [1, 2, 3]
