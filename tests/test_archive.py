"""The archive: whole facts, lossless scores, and a front that is always the brute-force one."""

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.archive.archive import Archive
from evomerge.archive.schema import MIGRATIONS
from evomerge.errors import EvomergeError
from evomerge.scoring.outcome import Outcome, decode_scores, encode_scores, summary
from evomerge.search.controllers import Proposal
from evomerge.search.pareto import dominates

OBJECTIVES = [
    {"name": "x", "direction": "maximize", "weight": 1.0},
    {"name": "y", "direction": "minimize", "weight": 1.0},
]
PLAN = {"budget": {"evaluations": 10, "hours": None}}


def fresh(path=":memory:"):
    archive = Archive(path, write=True)
    archive.begin("t", PLAN, {"objectives": OBJECTIVES}, [("x", "search", 0, "h")])
    return archive


def ok(x, y, items=4):
    scores = {"x": np.full(items, x, np.float32), "y": np.full(items, y, np.float32)}
    return Outcome("ok", "", scores, 1.0, 2.0, "sum", "w")


def propose(archive, *recipe_ids):
    proposals = [Proposal(np.array([0.5]))] * len(recipe_ids)
    return archive.propose(len(recipe_ids), proposals, [(r, {"r": r}) for r in recipe_ids])


@given(
    st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 4), st.integers(0, 4))), max_size=25),
    st.integers(0, 25),
)
def test_front_is_the_brute_force_front_after_every_outcome(results, reopen_at):
    archive = fresh()
    told = {}
    for index, result in enumerate(results):
        (candidate,) = propose(archive, f"r{index}")
        outcome = Outcome("failed", "no") if result is None else ok(*result)
        archive.record(candidate, outcome, None)
        if index == reopen_at:
            archive._front = None  # as a process that has just started
        if result is not None:
            told[candidate] = (result[0], -result[1])
        brute = {c for c, v in told.items() if not any(dominates(w, v) for w in told.values())}
        assert set(archive.front()) == brute


@given(
    hnp.arrays(
        np.float32,
        st.integers(0, 40),
        elements=st.one_of(
            st.sampled_from([0.0, 1.0]), st.floats(-1e6, 1e6, width=32, allow_nan=False)
        ),
    )
)
def test_item_scores_are_lossless(items):
    encoding, blob = encode_scores(items)
    again = decode_scores(encoding, blob, len(items))
    assert again.tobytes() == items.tobytes()
    if set(items.tolist()) <= {0.0, 1.0} and not np.signbit(items).any():
        assert encoding == "bits" and len(blob) == (len(items) + 7) // 8


@given(hnp.arrays(np.float32, st.integers(2, 30), elements=st.floats(-9, 9, width=32)))
def test_summary_is_the_textbook_mean_and_standard_error(items):
    import statistics

    numbers = [float(v) for v in items]
    found = summary(items)
    assert found.mean == pytest.approx(statistics.fmean(numbers), abs=1e-12)
    assert found.stderr == pytest.approx(statistics.stdev(numbers) / len(numbers) ** 0.5, abs=1e-9)


def test_scores_and_items_read_back(tmp_path):
    archive = fresh(tmp_path / "a.db")
    (candidate,) = propose(archive, "r")
    items = np.array([0, 1, 1, 0], np.float32)
    archive.record(candidate, Outcome("ok", "", {"x": items, "y": items * 0.5}), 0.25)
    archive.close()
    archive = Archive(tmp_path / "a.db")
    assert np.array_equal(archive.item_scores(candidate, "x", "search"), items)
    assert np.array_equal(archive.item_scores(candidate, "y", "search"), items * 0.5)
    assert archive.item_scores(candidate, "x", "heldout") is None
    assert archive.scores(candidate, "search")["x"].items == 4
    assert archive.outcome(candidate)["value"] == 0.25
    assert archive.best() == candidate


def test_events_come_in_their_order_with_asks_whole():
    archive = fresh()
    baseline = archive.add_baseline("b", {}, "base")
    archive.record(baseline, ok(1, 1), None)
    first, second = propose(archive, "r1", "r2")
    (third,) = propose(archive, "r3")
    archive.record(second, Outcome("failed", "no"), None)
    archive.record(first, ok(2, 0), 1.0)
    events = list(archive.events())
    assert [e.kind for e in events] == ["tell", "ask", "ask", "tell", "tell"]
    assert [len(e.proposals) for e in events] == [0, 2, 1, 0, 0]
    assert [e.candidate.ordinal for e in events if e.kind == "tell"] == [None, 1, 0]
    assert events[3].means is None and events[4].means == {"x": 2.0, "y": 0.0}
    assert [c.id for c in archive.unfinished()] == [third]
    assert archive.proposed() == 3
    assert archive.counts() == {"ok": 2, "stopped": 0, "failed": 1, "running": 1}


def test_a_copy_has_the_earlier_outcome_and_is_not_on_the_front_twice():
    archive = fresh()
    first, twin = propose(archive, "same", "same")
    archive.record(first, ok(3, 1), 0.5)
    assert archive.earlier("same") == first
    archive.record_copy(twin, first)
    assert archive.front() == [first]
    assert archive.means(twin) == archive.means(first)
    assert archive.outcome(twin)["copy_of"] == first
    assert np.array_equal(
        archive.item_scores(twin, "x", "search"), archive.item_scores(first, "x", "search")
    )
    assert archive.earlier("same") == first


def test_retries_are_counted_and_finals_kept_apart():
    archive = fresh()
    (candidate,) = propose(archive, "r")
    assert archive.record_retry(candidate, "gone") == (1, 1)
    assert archive.record_retry(candidate, "its node is gone", blamed=False) == (1, 2)
    assert archive.record_retry(candidate, "gone") == (2, 3)
    archive.record(candidate, ok(1, 1), 0.1)
    archive.record_final(candidate, ok(5, 5))
    assert archive.finals_done() == {candidate}
    assert archive.means(candidate) == {"x": 1.0, "y": 1.0}
    assert archive.means(candidate, "heldout") == {"x": 5.0, "y": 5.0}
    assert [e.kind for e in archive.events()] == ["ask", "tell"]


def test_a_write_that_fails_half_way_leaves_nothing():
    archive = fresh()
    (candidate,) = propose(archive, "r")
    wrong = Outcome("ok", "", {"x": np.ones(2, np.float32), "unknown": np.ones(2, np.float32)})
    with pytest.raises(KeyError):
        archive.record(candidate, wrong, 1.0)
    assert archive.outcome(candidate) is None and archive.scores(candidate, "search") == {}
    archive.record(candidate, ok(1, 1), 1.0)
    assert archive.front() == [candidate]


def test_a_reader_is_not_blocked_by_the_writer(tmp_path):
    archive = fresh(tmp_path / "a.db")
    propose(archive, "r1")
    with archive.db.atomic():
        archive._execute("INSERT INTO candidates (recipe_id) VALUES ('r2')")
        reader = Archive(tmp_path / "a.db")
        assert len(reader.candidates()) == 1
        reader.close()


def test_later_versions_and_other_files_are_refused(tmp_path):
    path = tmp_path / "a.db"
    fresh(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(EvomergeError, match="written by a later version"):
        Archive(path)
    (tmp_path / "b.db").write_text("this is no database, whatever its name says" * 40)
    with pytest.raises(EvomergeError, match="is it an archive of evomerge"):
        Archive(tmp_path / "b.db", write=True)
    with pytest.raises(EvomergeError, match="there is no archive"):
        Archive(tmp_path / "c.db")


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_every_old_schema_opens(tmp_path, version):
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        for script in MIGRATIONS[:version]:
            connection.executescript(script)
        connection.execute(f"PRAGMA user_version = {version}")
    archive = Archive(path, write=True)
    archive.begin("t", PLAN, {"objectives": OBJECTIVES}, [])
    (candidate,) = propose(archive, "r")
    archive.record(candidate, ok(1, 1), 1.0)
    assert archive.front() == [candidate]


def test_sqlite_utils_and_plain_sqlite_can_browse_it(tmp_path):
    fresh(tmp_path / "a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        names = {r[0] for r in connection.execute("SELECT name FROM sqlite_master")}
    wanted = {"campaign", "events", "candidates", "outcomes", "scores", "items", "item_scores"}
    assert wanted | {"pareto_front"} <= names
