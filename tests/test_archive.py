"""The archive: whole facts, lossless scores, and a front that is always the brute-force one."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.archive import database
from evomerge.archive.archive import Archive
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.run_lock import RunLock
from evomerge.archive.schema import MIGRATIONS
from evomerge.archive.stored_recipe import from_columns, to_columns
from evomerge.archive.summary import front, row, show
from evomerge.cli import tables
from evomerge.errors import EvomergeError
from evomerge.recipes.mixture import Chromosome, MixtureRecipe
from evomerge.recipes.parameters import single
from evomerge.scoring.items import ItemText
from evomerge.scoring.outcome import Outcome, decode_scores, encode_scores, summary
from evomerge.search.controllers import Proposal
from evomerge.search.pareto import dominates
from evomerge.testing.archives import example_archive

PROVENANCE = {
    "objectives": [
        {"name": "x", "direction": "maximize", "weight": 1.0},
        {"name": "y", "direction": "minimize", "weight": 1.0},
    ],
    "sources": {},
}
PLAN = {"budget": {"evaluations": 10, "hours": None}}
RECIPE = single("a", "bfloat16")


def fresh(path=":memory:"):
    archive = Archive(path, write=True)
    archive.begin("t", PLAN, PROVENANCE, [("x", "search", 0, "h")])
    return archive


def ok(x, y, items=4):
    scores = {"x": np.full(items, x, np.float32), "y": np.full(items, y, np.float32)}
    return Outcome("ok", "", scores, 1.0, 2.0, "sum", "w")


def propose(archive, *recipe_ids):
    proposals = [Proposal(np.array([0.5]))] * len(recipe_ids)
    added = archive.propose(len(recipe_ids), proposals, [(r, RECIPE) for r in recipe_ids])
    return [candidate.id for candidate in added]


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
            archive._front._front = None  # as in a process that has just started
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
    archive = ArchiveReader(tmp_path / "a.db")
    assert np.array_equal(archive.item_scores(candidate, "x", "search"), items)
    assert np.array_equal(archive.item_scores(candidate, "y", "search"), items * 0.5)
    assert archive.item_scores(candidate, "x", "heldout") is None
    assert archive.scores(candidate, "search")["x"].items == 4
    assert archive.outcome(candidate)["value"] == 0.25
    assert archive.best() == candidate


def test_what_propose_returns_is_what_is_read_back(tmp_path):
    archive = fresh(tmp_path / "a.db")
    archive.add_baseline("b", RECIPE, "base")
    archive.stage = 1
    given = archive.propose(4, [Proposal(np.array([0.25, 0.5]), (1, 1))], [("r", RECIPE)])[0]
    read = ArchiveReader(tmp_path / "a.db").candidate(given.id)
    for name in ("id", "recipe_id", "origin", "label", "ordinal", "stage", "parents"):
        assert getattr(given, name) == getattr(read, name)
    assert given.genome.tobytes() == read.genome.tobytes()
    assert given.recipe is RECIPE and read.recipe == RECIPE and read.recipe is read.recipe
    assert (read.ordinal, read.stage, read.parents) == (0, 1, (1, 1))
    assert [c.id for c in archive.candidates(origin="search", stage=1)] == [given.id]
    assert archive.stage_has_begun(1) and not archive.stage_has_begun(2)


@given(
    st.lists(st.integers(1, 2**40), min_size=1, max_size=60, unique=True),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_mixtures_are_stored_without_loss(cuts, models, random):
    """Every coefficient and every position, to the last bit."""
    edges = np.array([0, *sorted(cuts)], np.int64)

    def chromosome(modules):
        rows = [[random.uniform(-2, 2) for _ in range(models)] for _ in cuts]
        return Chromosome(modules, edges, np.array(rows))

    names = tuple(f"model {index}" for index in range(models))
    both = (chromosome("mlp"), chromosome(None))
    recipe = MixtureRecipe(names, both, "bfloat16", "a hash")
    again = from_columns(**to_columns(recipe))
    assert again.to_json() == recipe.to_json()
    assert again.id({n: n for n in names}) == recipe.id({n: n for n in names})


def test_mixtures_are_stored_small(tmp_path):
    random, segments = np.random.default_rng(7), 2000
    edges = np.concatenate([[0], np.cumsum(random.integers(1, 100_000, segments))])
    coefficients = random.dirichlet(np.ones(3), segments)
    recipe = MixtureRecipe(
        ("a", "b", "c"), (Chromosome(None, edges, coefficients),), "bfloat16", "a hash"
    )
    archive = fresh(tmp_path / "a.db")
    archive.propose(1, [Proposal(np.array([0.5]))], [("r", recipe)])
    with sqlite3.connect(tmp_path / "a.db") as connection:
        sql = "SELECT length(recipe) + length(segments) FROM candidates"
        (stored,) = connection.execute(sql).fetchone()
    assert stored < 0.5 * len(json.dumps(recipe.to_json()))
    assert ArchiveReader(tmp_path / "a.db").recipe("r").to_json() == recipe.to_json()


def test_events_come_in_their_order_with_asks_whole():
    archive = fresh()
    baseline = archive.add_baseline("b", RECIPE, "base").id
    archive.record(baseline, ok(1, 1), None)
    first, second = propose(archive, "r1", "r2")
    (third,) = propose(archive, "r3")
    archive.record(second, Outcome("failed", "no"), None)
    archive.record(first, ok(2, 0), 1.0)
    events = list(archive.events())
    assert [e.kind for e in events] == ["tell", "ask", "ask", "tell", "tell"]
    assert [len(e.proposals) for e in events] == [0, 2, 1, 0, 0]
    assert [e.asked for e in events] == [0, 2, 1, 0, 0]
    assert [e.candidate.ordinal for e in events if e.kind == "tell"] == [None, 1, 0]
    assert events[3].scores is None
    assert {name: score.mean for name, score in events[4].scores.items()} == {"x": 2.0, "y": 0.0}
    assert [c.id for c in archive.unfinished()] == [third]
    assert archive.proposed() == 3
    assert archive.counts() == {"ok": 2, "stopped": 0, "failed": 1, "running": 1}


def test_each_stage_has_its_own_events_and_the_baselines_before_it():
    archive = fresh()
    baseline = archive.add_baseline("b", RECIPE, "base").id
    archive.record(baseline, ok(1, 1), 0.0)
    (first,) = propose(archive, "r1")
    archive.record(first, ok(2, 0), 1.0)
    archive.record_rebuild()
    archive.stage = 1
    archive.record(archive.add_baseline("m", RECIPE, "found").id, ok(2, 0), 1.0)
    propose(archive, "r2", "r3")
    archive.record_rebuild()
    events = [(e.kind, e.proposed) for e in archive.events()]
    assert events == [("tell", 0), ("tell", 0), ("ask", 0), ("rebuild", 2)]
    archive.stage = 0
    events = [(e.kind, e.proposed) for e in archive.events()]
    assert events == [("tell", 0), ("ask", 0), ("tell", 0), ("rebuild", 1)]


def test_a_copy_has_the_earlier_outcome_and_is_not_on_the_front_twice():
    archive = fresh()
    first, twin = propose(archive, "same", "same")
    archive.record(first, ok(3, 1), 0.5)
    assert archive.scored_before("same") == first
    archive.record_copy(twin, first)
    assert archive.front() == [first]
    assert archive.means(twin) == archive.means(first)
    assert archive.outcome(twin)["copy_of"] == first
    assert np.array_equal(
        archive.item_scores(twin, "x", "search"), archive.item_scores(first, "x", "search")
    )
    assert archive.scored_before("same") == first


def test_retries_are_counted_and_finals_kept_apart():
    archive = fresh()
    (candidate,) = propose(archive, "r")
    assert archive.record_retry(candidate, "gone") == (1, 1)
    assert archive.record_retry(candidate, "its node is gone", blamed=False) == (1, 2)
    assert archive.record_retry(candidate, "gone") == (2, 3)
    archive.record(candidate, ok(1, 1), 0.1)
    assert archive.record_retry(candidate, "gone, on held-out items") == (1, 1)
    archive.record_final(candidate, ok(5, 5))
    assert archive.finals_done() == {candidate}
    assert archive.means(candidate) == {"x": 1.0, "y": 1.0}
    assert archive.means(candidate, "heldout") == {"x": 5.0, "y": 5.0}
    assert [e.kind for e in archive.events()] == ["ask", "tell"]


def test_baselines_that_are_scored_again_are_blamed_for_nothing():
    archive = fresh()
    baseline = archive.add_baseline("b", RECIPE, "base").id
    archive.record(baseline, Outcome("failed", "no such task"), None)
    archive.forget_baselines()
    assert [c.id for c in archive.unfinished()] == [baseline]
    assert archive.record_retry(baseline, "gone") == (1, 2)


def test_a_finalist_that_fails_is_an_outcome_with_a_reason(tmp_path):
    archive = example_archive(tmp_path / "archive.db")
    assert archive.finals_done() == {3, 4}
    assert archive.final(3)["status"] == "ok" and archive.final(1) is None
    assert (archive.final(4)["status"], archive.final(4)["reason"]) == (
        "failed",
        "OutOfMemoryError",
    )
    assert archive.scores(4, "heldout") == {} and archive.outcome(4)["status"] == "ok"
    archive.close()
    rows = {r["id"]: r for r in front(tmp_path)}
    assert rows[4]["heldout_failure"] == "OutOfMemoryError"
    assert not any("heldout_failure" in r for number, r in rows.items() if number != 4)
    assert "OutOfMemoryError" in tables.front(front(tmp_path), {4: (True, 1.125)})
    assert "held-out  failed: OutOfMemoryError" in tables.show(show(tmp_path, 4))
    assert "heldout_failure" not in show(tmp_path, 3)
    assert row(ArchiveReader(tmp_path / "archive.db"), 3)["scores"]["accuracy"]["heldout"]


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
    with archive._db.transaction():
        archive._add_event("final", 1)
        reader = ArchiveReader(tmp_path / "a.db")
        assert len(reader.candidates()) == 1
        reader.close()


# --- where WAL fails ---------------------------------------------------------------------


def no_shared_memory(path, write):
    """Connect through a VFS of SQLite's that, like a network disk, shares no memory."""
    address = f"file:{path}?vfs=unix-none"
    return sqlite3.connect(address, uri=True, timeout=30.0, isolation_level=None)


def journal_of(path):
    with sqlite3.connect(path) as connection:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]


def test_a_rollback_journal_is_taken_where_wal_fails(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(database, "connect", no_shared_memory)
    archive = fresh(tmp_path / "a.db")
    assert archive._db.journal == "delete"
    assert archive._db.rows("PRAGMA synchronous")[0][0] == 2  # FULL
    archive.start({})
    assert [r.message for r in caplog.records if "rollback journal" in r.message]
    propose(archive, "r1")
    archive.close()
    assert not (tmp_path / "a.db-wal").exists() and journal_of(tmp_path / "a.db") == "delete"
    monkeypatch.undo()
    again = Archive(tmp_path / "a.db", write=True)  # moved to a disk where WAL works
    assert again._db.journal == "wal" and len(again.candidates()) == 1


def test_wal_is_taken_without_a_word_where_it_works(tmp_path, caplog):
    archive = fresh(tmp_path / "a.db")
    archive.start({})
    assert archive._db.journal == "wal" and not caplog.records


def test_an_archive_with_a_wal_goes_on_where_wal_fails(tmp_path, monkeypatch):
    """Copied by a process that was killed, so that its last facts are in the WAL alone."""
    archive = fresh(tmp_path / "a.db")
    propose(archive, "r1")
    for end in ("", "-wal"):
        shutil.copy(tmp_path / f"a.db{end}", tmp_path / f"b.db{end}")
    monkeypatch.setattr(database, "connect", no_shared_memory)
    moved = Archive(tmp_path / "b.db", write=True)
    assert moved._db.journal == "delete" and len(moved.candidates()) == 1
    propose(moved, "r2")
    moved.close()
    assert journal_of(tmp_path / "b.db") == "delete"
    assert len(ArchiveReader(tmp_path / "b.db").candidates()) == 2


KILLED = """
import os, signal, sys
from test_archive import no_shared_memory, fresh, propose, ok
from evomerge.archive import database
database.connect = no_shared_memory
archive = fresh("a.db")
(candidate,) = propose(archive, "r1")
plain = archive._add_scores
def killed(*arguments):
    plain(*arguments)
    archive._db.execute("PRAGMA cache_spill = 1")
    archive._db.execute("PRAGMA cache_size = 1")  # spill: the file itself is half-written
    for n in range(2000):
        archive._db.insert("items", objective="z", split="search", ordinal=n, doc_hash="h" * 200)
    os.kill(os.getpid(), signal.SIGKILL)
archive._add_scores = killed
archive.record(candidate, ok(1, 1), 1.0)
"""


def test_a_killed_write_under_a_rollback_journal_leaves_nothing(tmp_path):
    path = {"PYTHONPATH": os.path.dirname(__file__)}
    run = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=os.environ | path, capture_output=True
    )
    assert run.returncode == -9, run.stderr.decode()
    assert (tmp_path / "a.db-journal").stat().st_size > 0
    archive = Archive(tmp_path / "a.db", write=True)
    assert [c.id for c in archive.unfinished()] == [1] and archive.outcome(1) is None
    assert archive.item_hashes("z", "search") == {}
    archive.record(1, ok(1, 1), 1.0)
    assert archive.front() == [1]


# --- the file ----------------------------------------------------------------------------


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


def test_a_file_of_the_first_version_is_read_as_it_is_and_updated_when_it_is_written(tmp_path):
    path = tmp_path / "a.db"
    archive = fresh(path)
    archive.close()
    with sqlite3.connect(path) as connection:
        for table in ("item_texts", "verdicts", "opponents"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 1")
    reader = ArchiveReader(path)
    assert reader.begun and reader.item_texts("x") == {}
    reader.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    archive = Archive(path, write=True)
    archive.add_item_texts("x", [(3, ItemText("q" * 3000, "right"))])
    assert archive.item_texts("x") == {3: ItemText("q" * 2000, "right")}
    archive.close()
    assert ArchiveReader(path).item_texts("x")[3].target == "right"


def test_an_archive_that_was_killed_before_it_began_has_not_begun(tmp_path):
    Archive(tmp_path / "archive.db", write=True).close()
    assert not ArchiveReader(tmp_path / "archive.db").begun
    (tmp_path / "empty.db").touch()
    assert not ArchiveReader(tmp_path / "empty.db").begun
    with pytest.raises(EvomergeError, match="the campaign has not begun"):
        show(tmp_path, 1)


def test_plain_sqlite_can_browse_it(tmp_path):
    fresh(tmp_path / "a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        names = {r[0] for r in connection.execute("SELECT name FROM sqlite_master")}
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    wanted = {"campaign", "events", "candidates", "outcomes", "scores", "items", "item_scores"}
    assert wanted | {"finals", "answers", "pareto_front"} <= names


# --- the lock ----------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from evomerge.archive.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_dies_with_its_holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    assert RunLock.held(tmp_path)
    with pytest.raises(EvomergeError, match=f"is held by process {process.pid} on "):
        RunLock(tmp_path).__enter__()
    process.kill()
    process.wait()
    assert not RunLock.held(tmp_path)
    with RunLock(tmp_path):
        assert RunLock.held(tmp_path)


def test_whoever_looks_at_the_lock_does_not_keep_a_campaign_from_starting(tmp_path):
    """`status` in a loop, in other processes, while a campaign takes the lock again and again."""
    look = (
        "import sys; from pathlib import Path; from evomerge.archive.run_lock import RunLock\n"
        "while True: RunLock.held(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", look, str(tmp_path)]
    lookers = [subprocess.Popen(command) for _ in range(2)]
    try:
        for _ in range(100):
            with RunLock(tmp_path):
                pass
    finally:
        for process in lookers:
            process.kill()
            process.wait()
