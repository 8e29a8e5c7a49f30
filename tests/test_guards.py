"""Guards: what must not be forgotten is kept, whatever the objectives gain by it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from sql import query

from evomerge.archive.archive import Archive
from evomerge.campaign.build import checked
from evomerge.campaign.estimate import estimate
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.scoring.outcome import Score
from evomerge.search.guards import Guard, Guards

GUARD = {"name": "general", "task": "choice.yaml", "metric": "acc", "items": 40, "margin": 0.0}


@pytest.fixture
def plan(campaign_file):
    def write(guard=GUARD, **changes):
        options = {"budget": {"evaluations": 6}, "finals": 2, "controller": {"kind": "random"}}
        return campaign_file(guard=[guard], **options | changes)

    return write


def run(file):
    directory = file.parent / "run"
    assert run_campaign(file, directory=directory, observer=Silent())
    return directory, Archive(directory / "archive.db")


def fallen(candidate: np.ndarray, source: np.ndarray, margin: float) -> float:
    """By how much a mean falls, beyond one standard error of the paired difference."""
    apart = candidate.astype(float) - source
    return max(0.0, -apart.mean() - apart.std(ddof=1) / np.sqrt(len(apart)) - margin)


def test_candidates_that_fall_miss_a_constraint_and_the_objectives_stay_as_they_are(plan):
    directory, archive = run(plan(GUARD | {"against": "base"}))
    assert [objective.name for objective in archive.objectives] == ["likely"]
    base = next(c.id for c in archive.baselines() if c.label == "base")
    kept = archive.item_scores(base, "general", "search")
    assert len(kept) == 20
    expected, stored = {}, {}
    for candidate in archive.candidates():
        row = query(directory, f"SELECT * FROM outcomes WHERE candidate_id = {candidate.id}")[0]
        stored[candidate.id] = row["violation"]
        items = archive.item_scores(candidate.id, "general", "search")
        expected[candidate.id] = fallen(items, kept, margin=0.0)
        likely = archive.item_scores(candidate.id, "likely", "search")
        assert archive.means(candidate.id)["likely"] == pytest.approx(likely.mean())
    assert stored == pytest.approx(expected, abs=1e-6)
    assert len({violation > 0 for violation in stored.values()}) == 2
    assert all(stored[number] == 0 for number in archive.front())
    assert stored[archive.best()] == 0.0


def test_a_fall_within_the_noise_of_few_items_is_none():
    source = np.ones(20)
    guards = Guards([Guard("g", margin=0.02)], {"base": {"g": source}}, ["base"])

    def violation(wrong: int) -> float:
        items = np.ones(20)
        items[:wrong] = 0.0
        return guards.violation({"g": Score(items.mean(), 0.0, 20)}, {"g": items})

    # one item is 0.05 below, and its standard error 0.05; of eight both are known better
    assert violation(1) == 0.0
    assert violation(8) == pytest.approx(fallen(np.r_[np.zeros(8), np.ones(12)], source, 0.02))
    assert violation(8) > 0.2


def test_the_best_source_is_what_is_kept_by_default():
    rows = {"a": {"g": np.array([0.0, 1.0])}, "b": {"g": np.ones(2)}, "uniform": {"g": np.ones(2)}}
    assert Guards([Guard("g")], rows, ["a", "b"]).kept == {"g": "b"}
    assert Guards([Guard("g", "minimize")], rows, ["a", "b"]).kept == {"g": "a"}
    with pytest.raises(ValueError, match="'c', which g guards, could not be scored"):
        Guards([Guard("g", against="c")], rows, ["a", "b"])


def test_scores_in_parts_are_held_against_the_same_items(plan):
    scoring = {"kind": "batches", "items": 5}
    directory, archive = run(
        plan(GUARD | {"against": "base"}, scoring=scoring, budget={"evaluations": 10}, finals=0)
    )
    base = next(c.id for c in archive.baselines() if c.label == "base")
    kept = archive.item_scores(base, "general", "search")
    parts = 0
    for candidate in archive.candidates():
        row = query(directory, f"SELECT * FROM outcomes WHERE candidate_id = {candidate.id}")[0]
        which = archive.which_items(candidate.id, "general")
        items = archive.item_scores(candidate.id, "general", "search")
        if which is None or row["status"] != "ok":
            continue
        parts += 1
        assert row["violation"] == pytest.approx(fallen(items, kept[which], 0.0), abs=1e-6)
    assert parts >= 10


def test_check_and_front_tell_of_guards(plan):
    file = plan()
    (campaign,) = checked(file)
    found = estimate(campaign)
    assert "general: 20 search + 20 held-out" in found["summary"]["items"]
    assert "general: within 0.0 of the best source" in found["summary"]["guards"]
    directory, archive = run(file)
    told = CliRunner().invoke(main, ["front", str(directory), "--json"])
    entries = json.loads(told.stdout)
    assert all(set(e["scores"]) == {"likely"} for e in entries)
    guards = {e["id"]: e["guards"]["general"] for e in entries}
    (number, *_) = archive.front()
    items = archive.item_scores(number, "general", "search")
    assert guards[number]["search"]["mean"] == pytest.approx(items.mean())
    text = CliRunner().invoke(main, ["front", str(directory)]).stdout
    assert "general (guard)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"against": "uniform"}, "guard.0.against: there is no baseline 'uniform'"),
        ({"against": "bas"}, "guard.0.against: there is no baseline 'bas'; did you mean 'base'?"),
        ({"weight": 2.0}, "guard.0.weight: a guard is no objective, and has no weight"),
        ({"constraint": ">= 0.4"}, "guard.0.constraint: a guard is a constraint already"),
        ({"name": "likely"}, "guard.0.name: two objectives are called 'likely'"),
        ({"task": "chioce.yaml"}, "guard.0.task: there is no file 'chioce.yaml'"),
        ({"items": 61}, "guard.0.items: 61 items are more than the 60 there are"),
        ({"margin": -1.0}, "guard.0.margin: -1.0 is out of range"),
    ],
)
def test_faults_of_guards(plan, change, message):
    with pytest.raises(BadInput) as error:
        checked(plan(GUARD | change))
    assert message in str(error.value)
