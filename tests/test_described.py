"""Datasette's metadata, and its questions by SQLite against what the library reads."""

import json
import sqlite3

import numpy as np
import pytest
from click.testing import CliRunner

from evomerge.archive.archive import Archive
from evomerge.archive.described import QUERIES
from evomerge.cli.main import main
from evomerge.recipes.parameters import single
from evomerge.scoring.outcome import Outcome
from evomerge.search.controllers import Proposal

RECIPE = single("a", "float32")
NAMES = {"maths": 13, "ja": 21}  # items, so that the last byte of packed scores is not full
ODD = 3  # between the ordinals of searched items


@pytest.fixture
def run(tmp_path):
    """A run of two baselines, three proposals, one of them a failure and one a copy."""
    random = np.random.default_rng(5)
    archive = Archive(tmp_path / "archive.db", write=True)
    items = [
        (name, side, ODD * n + (side == "heldout"), "")
        for name, count in NAMES.items()
        for side in ("search", "heldout")
        for n in range(count)
    ]
    plan = {"name": "small", "seed": 1, "stages": [], "budget": {"evaluations": 9}}
    sources = {"a": {"name": "a", "path": "a", "sha256": "9c1f"}}
    objectives = [{"name": name} for name in NAMES]
    archive.begin("small", plan, {"objectives": objectives, "sources": sources}, items)

    def outcome():
        scores = {n: random.integers(0, 2, count).astype(np.float32) for n, count in NAMES.items()}
        return Outcome("ok", "", scores, 0.25, 2.0, "77ab", "node/1/cpu")

    for label in "ab":
        archive.add_baseline(label, RECIPE, label)
    for number in range(3):
        archive.propose(1, [Proposal(np.array([0.5]))], [(f"recipe {number}", RECIPE)])
    for number, value in enumerate((0.0, 0.5, 1.5), start=1):
        archive.record(number, outcome(), value)
    archive.record(4, Outcome("failed", "it is not finite"), None, items=34)
    archive.record_copy(5, 3)
    archive.record_final(3, outcome())
    yield tmp_path, archive
    archive.close()


def answers(run, name):
    database = sqlite3.connect(run / "archive.db")
    database.row_factory = sqlite3.Row
    rows = [dict(row) for row in database.execute(QUERIES[name].sql)]
    database.close()
    return rows


def test_what_is_solved_item_by_item(run):
    folder, archive = run
    for name, count in NAMES.items():
        best, *others = (archive.item_scores(c, name, "search") for c in (3, 1, 2))
        solved = {r["ordinal"]: r for r in answers(folder, "items") if r["objective"] == name}
        assert len(solved) == count
        for n in range(count):
            row = solved[ODD * n]
            assert row["best"] == best[n] and row["baselines"] == 2
            assert row["baselines_that_solve_it"] == sum(scores[n] for scores in others)


def test_the_other_questions(run):
    folder, archive = run
    front = answers(folder, "front")
    assert {row["id"] for row in front} == set(archive.front())
    assert all(row["mean"] == archive.means(row["id"])[row["objective"]] for row in front)
    assert [row["id"] for row in answers(folder, "best")] == [3, 5, 2, 1]
    rows = answers(folder, "convergence")
    assert [row["best_so_far"] for row in rows] == [0.0, 0.5, 1.5, 1.5]
    assert [row["items"] for row in rows] == [34, 68, 102, 102]
    (failure,) = answers(folder, "failures")
    assert failure == {"reason": "it is not finite", "times": 1, "first": 4}
    time = {row.pop("origin"): row for row in answers(folder, "time")}
    assert time["baseline"] == {"candidates": 2, "items": 68, "merging": 0.5, "scoring": 4.0}
    assert time["search"] == {"candidates": 3, "items": 68, "merging": 0.25, "scoring": 2.0}
    assert time["held-out"] == {"candidates": 1, "items": 34, "merging": None, "scoring": 2.0}
    heldout = {row["objective"]: row["mean"] for row in answers(folder, "heldout")}
    assert heldout == archive.means(3, "heldout")
    for name in ("workers", "ledger", "weights", "sources"):
        assert answers(folder, name)


def test_the_metadata_describes_every_column(run):
    folder, _ = run
    done = CliRunner().invoke(main, ["datasette", str(folder)])
    assert done.exit_code == 0 and f"--metadata {folder}/metadata.json" in done.output
    metadata = json.loads((folder / "metadata.json").read_text())
    about = metadata["databases"]["archive"]
    assert metadata["title"] == "evomerge: small" and set(about["queries"]) == set(QUERIES)
    database = sqlite3.connect(folder / "archive.db")
    names = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
    for (name,) in database.execute(names).fetchall():
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({name})")]
        table = about["tables"].pop(name)
        assert list(table["columns"]) == columns
        named = {*table.get("facets", ()), *table.get("units", ()), table.get("sort_desc")}
        assert named - {None} <= set(columns)
    assert about["tables"] == {}
    database.close()
