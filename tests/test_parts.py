"""Scoring in parts: which items, what they say of all, and races that score the best in full."""

import itertools
import signal
from pathlib import Path

import numpy as np
import pytest
import warm
from hypothesis import given
from hypothesis import strategies as st
from sql import query

from evomerge.archive import summary
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.selection import pick
from evomerge.campaign.run import run_campaign
from evomerge.config.validate import read_plan
from evomerge.errors import BadInput
from evomerge.scoring.estimates import ItemPredictions
from evomerge.scoring.parts import BatchesSection, FullSection, Parts, make_parts
from evomerge.search.objectives import Objective
from evomerge.search.paired_test import evidence_below
from evomerge.search.race import ALPHA, Course, Standing, cost, judged, most_promising, schedule
from evomerge.testing.races import example_course

# 200 items whose scores differ by item and by model; half of them are searched.
ITEMS = """
def items():
    return list(range(200))


def score(model, tokenizer, items):
    weight = float(model.get_input_embeddings().weight.double().sum())
    return [weight * 1e-3 + ((i * 37) % 101) / 101 for i in items]
"""


@pytest.fixture
def in_parts(campaign_file, here):
    """Write a campaign over 100 search items, whose parts have 12."""
    (here / "many.py").write_text(ITEMS)

    def write(**changes):
        defaults = {
            "fitness": [{"name": "sum", "function": "many.py", "direction": "maximize"}],
            "budget": {"items": 1600},
            "finals": 2,
        }
        return campaign_file(**(defaults | changes))

    return write


def run_of(here):
    return ArchiveReader(here / "runs" / "tiny" / "archive.db")


# --- which items -----------------------------------------------------------------------


@given(
    items=st.integers(2, 60),
    batch=st.integers(1, 30),
    seed=st.integers(0, 2**63 - 1),
    rounds=st.integers(0, 3),
)
def test_parts_go_through_all_items_before_any_comes_again(items, batch, seed, rounds):
    batch = min(batch, items)
    parts = Parts(seed, 0, {"x": items}, {"x": batch})
    each = items // batch
    found = [parts.of(n)["x"] for n in range(rounds * each, (rounds + 1) * each)]
    every = np.concatenate(found)
    assert len(set(every.tolist())) == len(every) == each * batch
    assert all((np.diff(part) > 0).all() for part in found)
    assert all(part[0] >= 0 and part[-1] < items for part in found)
    again = Parts(seed, 0, {"x": items}, {"x": batch})
    assert all(np.array_equal(again.of(n)["x"], parts.of(n)["x"]) for n in range(3))


def test_every_item_is_as_likely_as_any_other():
    parts = Parts(3, 0, {"x": 10}, {"x": 4})  # two of the ten are left out in each round
    counts = np.bincount(np.concatenate([parts.of(n)["x"] for n in range(8000)]), minlength=10)
    expected = counts.sum() / 10
    assert np.abs(counts / expected - 1).max() < 0.06  # 3200 each; four deviations


def test_stages_and_objectives_have_orders_of_their_own():
    one = Parts(7, 0, {"a": 40, "b": 40}, {"a": 10, "b": 10})
    assert not np.array_equal(one.of(0)["a"], one.of(0)["b"])
    other = Parts(7, 1, {"a": 40, "b": 40}, {"a": 10, "b": 10})
    assert not np.array_equal(one.of(0)["a"], other.of(0)["a"])


def test_the_size_of_a_part_follows_from_the_number_of_items():
    def batch(counts, costs=(), **options):
        parts = make_parts(BatchesSection(**options), counts, costs, 0, 0)
        return parts and dict(parts.batch)

    assert batch({"one": 1000}) == {"one": 50}
    assert batch({"one": 400, "two": 400}) == {"one": 25, "two": 25}
    assert batch({"one": 160}) == {"one": 20}
    assert batch({"one": 60}) is None  # an eighth of it says too little
    assert batch({"one": 400, "size": 1}, costs=("size",)) == {"one": 50, "size": 1}
    assert batch({"one": 400, "few": 30}) == {"one": 25, "few": 30}
    assert batch({"one": 60}, items=5) == {"one": 5}
    assert batch({"size": 1}, costs=("size",)) is None
    assert make_parts(FullSection(), {"one": 1000}, (), 0, 0) is None


# --- what they say of all --------------------------------------------------------------


@pytest.mark.parametrize("known", [0, 1, 3])
def test_estimates_are_unbiased_and_so_are_their_variances(known):
    """Over every sample that can be drawn: the mean of the estimates, and of their variances."""
    rng = np.random.default_rng(known)
    difficulty = rng.random(7)
    rows = [np.round(difficulty + 0.3 * rng.random(7)) for _ in range(known)]
    scores = difficulty + 0.2 * rng.random(7)
    predictions = ItemPredictions(rows, 7)
    found = []
    for which in itertools.combinations(range(7), 3):
        which = np.array(which)
        found.append(predictions.estimate(which, scores[which]))
    means = np.array([score.mean for score in found])
    assert means.mean() == pytest.approx(scores.mean(), abs=1e-12)
    variances = np.array([score.stderr**2 for score in found])
    assert variances.mean() == pytest.approx(means.var(), rel=1e-9)
    assert {score.items for score in found} == {3}


def test_what_others_scored_narrows_the_error():
    rng = np.random.default_rng(1)
    difficulty = rng.random(400)
    rows = [(rng.random(400) < difficulty).astype(float) for _ in range(6)]
    which = rng.permutation(400)[:50]
    scores = (rng.random(400) < difficulty).astype(float)
    plain = ItemPredictions([], 400).estimate(which, scores[which])
    informed = ItemPredictions(rows, 400).estimate(which, scores[which])
    assert informed.stderr < 0.95 * plain.stderr


def test_of_all_items_the_mean_is_the_mean():
    scores = np.array([0.0, 1.0, 1.0, 0.0])
    rows = [np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])]
    score = ItemPredictions(rows, 4).estimate(np.arange(4), scores)
    assert (score.mean, score.items) == (0.5, 4)
    assert score.stderr == pytest.approx(scores.std(ddof=1) / 2)


# --- the test --------------------------------------------------------------------------


@pytest.mark.parametrize("discordant", [0.05, 0.3, 1.0])
def test_the_paired_test_keeps_its_error_rate_under_every_look(discordant):
    """Under the null, a pool whose differences add up to 0, looked at after every item."""
    rng = np.random.default_rng(int(100 * discordant))
    pool = np.zeros(200)
    half = int(100 * discordant)
    pool[:half], pool[half : 2 * half] = 1.0, -1.0
    runs = 1500
    wrong = sum(evidence_below(rng.permutation(pool)[:190], 200) >= 1 / ALPHA for _ in range(runs))
    # at most 5 % of the runs: 75, and three standard deviations more
    assert wrong <= ALPHA * runs + 3 * np.sqrt(ALPHA * (1 - ALPHA) * runs)


def test_the_paired_test_finds_what_is_worse():
    rng = np.random.default_rng(5)
    pool = np.concatenate([np.full(10, 1.0), np.full(60, -1.0), np.zeros(130)])  # -0.25 on average
    found = [evidence_below(rng.permutation(pool)[:100], 200) >= 1 / ALPHA for _ in range(200)]
    assert np.mean(found) > 0.9
    better = [evidence_below(-rng.permutation(pool)[:100], 200) >= 1 / ALPHA for _ in range(200)]
    assert not any(better)


def test_what_cannot_be_made_up_any_more_is_certain():
    assert evidence_below(np.full(60, -1.0), 100) == np.inf
    assert evidence_below(np.full(49, -1.0), 100) < np.inf
    assert evidence_below(np.zeros(0), 100) == 1.0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=80), st.floats(-0.5, 0.5))
def test_evidence_is_a_number_of_at_least_one(differences, mean):
    found = evidence_below(np.array(differences), 100, mean)
    assert found >= 1.0


def test_an_independent_gambler_wins_as_much():
    """The e-value against a plain loop over items and stakes."""
    rng = np.random.default_rng(2)
    drawn = rng.choice([-1.0, 0.0, 1.0], 40, p=[0.4, 0.5, 0.1])
    stakes = [0.01 * (0.9 / 0.01) ** (k / 9) for k in range(10)]
    capital, best, total = [1.0] * 10, 1.0, 0.0
    for index, value in enumerate(drawn):
        expected = (100 * 0.0 - total) / (100 - index)
        for k, stake in enumerate(stakes):
            capital[k] *= 1.0 + stake / (1.0 - expected) * (expected - value)
        best = max(best, sum(capital) / 10)
        total += value
    assert evidence_below(drawn, 100) == pytest.approx(best, rel=1e-9)


# --- races -----------------------------------------------------------------------------


@given(st.integers(1, 48), st.floats(0, 1e5))
def test_a_race_costs_no_more_than_is_allowed_if_one_can_end_it(racers, allowance):
    ends = [50, 100, 200, 400, 800]
    starters, finishers = schedule(racers, ends, allowance)
    assert 1 <= finishers <= starters <= racers
    if allowance >= cost(1, 1, ends):
        assert cost(starters, finishers, ends) <= allowance
    else:
        assert (starters, finishers) == (1, 1)
    if starters < racers:  # another one would cost too much
        assert cost(starters + 1, 1, ends) > allowance


def standings_of(rows):
    found = {}
    for number, scores in enumerate(rows, start=1):
        scores = np.asarray(scores, np.float32)
        found[number] = Standing(0.0, float(scores.mean()), (float(scores.mean()),), {"x": scores})
    return found


def test_a_race_seldom_stops_one_that_is_not_worse():
    """Two candidates that are equally good, on items of which they solve different ones."""
    stopped = 0
    for seed in range(400):
        order = np.random.default_rng([seed, 99]).permutation(200)
        first, second = np.zeros(200), np.zeros(200)
        first[order[:120]] = 1.0
        second[order[60:180]] = 1.0
        course = example_course(seed=seed)
        out = False
        for round_ in range(course.rounds - 1):
            # means so far decide who leads
            which = course.until(round_)["x"]
            standings = {
                number: Standing(0.0, float(row[which].mean()), (0.0,), {"x": row})
                for number, row in ((1, first), (2, second))
            }
            out = out or bool(judged(course, standings, {}, round_, 2, 1, on_front=False))
        stopped += out
    # both may lead, so that each of the two errors has its chance
    assert stopped <= 2 * ALPHA * 400 + 3 * np.sqrt(2 * ALPHA * 400)


def test_a_race_stops_who_is_worse_and_says_by_whom():
    good, bad = np.ones(200), np.zeros(200)
    outs = judged(example_course(), standings_of([good, bad]), {}, 2, 2, 1, on_front=False)
    assert [out.candidate for out in outs] == [2]
    assert "worse than 1 on the same 50 items" in outs[0].reason


def test_a_race_keeps_the_best_half():
    rng = np.random.default_rng(0)
    rows = [(rng.random(200) < chance).astype(float) for chance in (0.5, 0.52, 0.54, 0.56)]
    outs = judged(example_course(), standings_of(rows), {}, 0, 2, 3, on_front=False)
    assert len(outs) == 2
    kept = {1, 2, 3, 4} - {out.candidate for out in outs}
    assert kept == set(most_promising(standings_of(rows), 2, on_front=False))


def test_a_rival_that_was_scored_before_stops_a_newcomer():
    good, bad = np.ones(200), np.zeros(200)
    (rival,) = standings_of([good]).values()
    (newcomer,) = standings_of([bad]).values()
    outs = judged(example_course(), {7: newcomer}, {3: rival}, 2, 1, 1, on_front=False)
    assert [(out.candidate, "worse than 3" in out.reason) for out in outs] == [(7, True)]
    assert judged(example_course(), {7: rival}, {3: newcomer}, 2, 1, 1, on_front=False) == []


def test_the_value_of_unequal_objectives_is_what_is_compared():
    """The pool's mean of weighted differences is the difference of the values."""
    objectives = [
        Objective("x", weight=2.0),
        Objective("y", "minimize"),
        Objective("c", "minimize", cost=True),
    ]
    items, ranges = {"x": 600, "y": 200, "c": 1}, {"x": 0.5, "y": 4.0, "c": 2.0}
    course = Course(objectives, items, {"x": 1.0, "y": 8.0, "c": 1.0}, ranges, [3])
    rng = np.random.default_rng(0)
    a = {"x": rng.random(600), "y": 8 * rng.random(200), "c": np.array([1.0])}
    b = {name: scores.copy() for name, scores in a.items()}
    b["x"] = b["x"] - 0.4  # worth 2 / 4 * 0.4 / 0.5 = 0.4
    b["y"] = b["y"] - 4.0  # fewer is better: worth 1 / 4 * 4 / 4 = 0.25 more
    assert course.is_worse(b, a, course.rounds - 2, 1.0)  # on half of the items
    b["c"] = np.array([0.0])  # a cost weighs by itself, without items: 1 / 4 * 1 / 2 more
    assert course.is_worse(b, a, course.rounds - 2, 1.0) is False
    b["c"] = np.array([1.0])
    b["y"] = a["y"] - 8.0  # now worth 0.5 more, so that it is better on the whole
    assert not course.is_worse(b, a, course.rounds - 1, 1.0)
    assert course.is_worse(a, b, course.rounds - 1, 1.0)


def test_most_promising_of_a_front_against_brute_force():
    rng = np.random.default_rng(4)
    points = rng.random((30, 2))
    standings = {n: Standing(0.0, float(p.mean()), tuple(p), {}) for n, p in enumerate(points)}
    front = {
        n for n, p in enumerate(points) if not any((q >= p).all() and (q > p).any() for q in points)
    }
    assert set(most_promising(standings, len(front), on_front=True)) == front
    standings[99] = Standing(0.5, 9.0, (9.0, 9.0), {})  # misses a constraint
    assert 99 not in most_promising(standings, 30, on_front=True)


# --- campaigns -------------------------------------------------------------------------


def test_a_campaign_in_parts_keeps_its_budget_and_confirms_its_best(in_parts, silent, here):
    assert run_campaign(in_parts(), observer=silent)
    archive = run_of(here)
    candidates = archive.candidates()
    searched = [c for c in candidates if c.origin == "search"]
    assert len(searched) > 30 and all(c.part is not None for c in searched)
    assert archive.items_scored() <= 1600
    assert archive.items_scored() > 1600 - 2 * 112  # nearly all of it is used
    for candidate in searched:
        which = archive.which_items(candidate.id, "sum")
        assert len(which) == 12 and len(archive.item_scores(candidate.id, "sum", "search")) == 12
    best = archive.candidate(archive.best())
    assert best.origin in ("recommended", "baseline")
    assert archive.which_items(best.id, "sum") is None
    assert len(archive.item_scores(best.id, "sum", "search")) == 100
    full = {c.id for c in candidates if c.part is None}
    assert set(archive.front()) <= full
    assert archive.finals_done() <= full
    stopped = query(here / "runs" / "tiny", "SELECT * FROM outcomes WHERE status = 'stopped'")
    assert stopped and all(row["value"] is None and row["reason"] for row in stopped)
    found = summary.status(here / "runs" / "tiny")
    assert found["items"] == {
        "search": archive.items_scored(),
        "heldout": archive.heldout_items_scored(),
    }
    seeds = [c for c in candidates if c.origin == "seed"]  # sums of the task vectors
    assert [c.label for c in seeds] == ["sum x0.33", "sum x0.5", "sum x0.75", "sum x1"]
    assert len({c.part for c in seeds}) == 1
    assert found["in_parts"]["parts"] == len(searched) + len(seeds)


def test_the_generation_of_a_controller_shares_its_items(in_parts, silent, here):
    assert run_campaign(in_parts(), observer=silent)
    archive = run_of(here)
    by_part = {}
    for candidate in archive.candidates("search"):
        which = tuple(archive.which_items(candidate.id, "sum").tolist())
        by_part.setdefault(candidate.part, set()).add(which)
    assert all(len(items) == 1 for items in by_part.values())
    assert len(set.union(*by_part.values())) == len(by_part)


def test_what_is_archived_of_a_part_is_the_estimate_and_its_items(in_parts, silent, here):
    """Recomputed from nothing but the item scores of those that were scored in full before."""
    assert run_campaign(in_parts(), observer=silent)
    archive = run_of(here)
    first = archive.candidates("search")[0]
    rows = [archive.item_scores(c.id, "sum", "search") for c in archive.baselines()]
    which = archive.which_items(first.id, "sum")
    scores = archive.item_scores(first.id, "sum", "search")
    expected = ItemPredictions(rows, 100).estimate(which, scores)
    assert archive.scores(first.id, "search")["sum"] == pytest.approx(expected)
    # these items are as difficult for one model as for another: nothing is left to chance
    assert expected.mean == pytest.approx(_true_mean(archive, first), abs=1e-3)
    assert expected.stderr < 1e-3


def _true_mean(archive, candidate):
    scores = archive.item_scores(candidate.id, "sum", "search")
    which = archive.which_items(candidate.id, "sum")
    base = archive.item_scores(1, "sum", "search")
    return float(base.mean() + (scores - base[which]).mean())


def test_scoring_in_full_is_as_it_was(in_parts, silent, here):
    assert run_campaign(in_parts(scoring="full", budget={"items": 1600}), observer=silent)
    archive = run_of(here)
    assert all(c.part is None for c in archive.candidates())
    assert len(archive.candidates("search")) == 11  # (1600 - 5 baselines * 100) / 100
    assert archive.items_scored() == 1600
    assert not archive.candidates("recommended")


def test_a_larger_budget_goes_on_and_a_smaller_one_does_not(in_parts, silent, here):
    assert run_campaign(in_parts(), observer=silent)
    before = run_of(here).proposed()
    assert run_campaign(in_parts(budget={"items": 1500}), observer=silent)
    assert run_of(here).proposed() == before
    assert run_campaign(in_parts(budget={"items": 2600}), observer=silent)
    archive = run_of(here)
    assert archive.proposed() > before
    assert archive.items_scored() <= 2600


def test_hours_alone_and_evaluations_alone_are_budgets(in_parts, silent, here):
    assert run_campaign(in_parts(budget={"evaluations": 30}), observer=silent)
    archive = run_of(here)
    assert archive.proposed() == 30
    assert archive.candidate(archive.best_found()).origin == "recommended"
    assert read_plan(in_parts(budget={"hours": 1}), ()).hours == 1


def test_patience_ends_a_search_that_finds_nothing_better(in_parts, silent, here):
    flat = ITEMS.replace("weight * 1e-3", "0.0 * weight")
    (here / "flat.py").write_text(flat)
    fitness = [{"name": "sum", "function": "flat.py", "direction": "maximize"}]
    budget = {"items": 10_000, "patience": 25}
    assert run_campaign(in_parts(fitness=fitness, budget=budget), observer=silent)
    archive = run_of(here)
    assert 25 <= archive.proposed() <= 25 + 8  # the best is a baseline throughout
    assert archive.campaign["state"] == "finished"


def test_a_space_of_one_recipe_comes_to_an_end(in_parts, silent, here):
    """Copies cost no items; only so many of them are proposed."""
    axes = {"weight": {"low": 0, "high": 1, "integer": True, "tied": ["layers", "modules"]}}
    axes["weight"]["tied"] += ["models", "outside"]
    file = in_parts(space__axes=axes, scoring="full", budget={"items": 900})
    assert run_campaign(file, observer=silent)
    archive = run_of(here)
    assert archive.proposed() == 900
    assert archive.items_scored() == 700  # five baselines, and two recipes


def test_failures_are_charged_and_do_not_stop_a_race(in_parts, silent, here):
    """A model that fails wherever its weights' sum is odd in the last place."""
    failing = ITEMS.replace(
        "    return [weight",
        "    if int(weight * 1e4) % 3 == 0: raise RuntimeError('bad luck')\n    return [weight",
    )
    (here / "failing.py").write_text(failing)
    fitness = [{"name": "sum", "function": "failing.py", "direction": "maximize"}]
    assert run_campaign(in_parts(fitness=fitness), observer=silent)
    archive = run_of(here)
    assert archive.counts()["failed"] > 3
    failed = query(
        here / "runs" / "tiny",
        "SELECT items_scored FROM outcomes o JOIN candidates c ON c.id = o.candidate_id"
        " WHERE status = 'failed' AND c.origin = 'search'",
    )
    assert {row["items_scored"] for row in failed} == {12}
    assert archive.items_scored() <= 1600
    assert archive.best() is not None


def test_what_was_scored_in_part_is_not_exported(in_parts, silent, here):
    assert run_campaign(in_parts(), observer=silent)
    archive = run_of(here)
    part = archive.candidates("search")[0].id
    with pytest.raises(BadInput, match="12 of 100 items"):
        pick(archive, str(part))
    assert summary.show(here / "runs" / "tiny", part)["scores"]["sum"]["search"]["items"] == 12


@pytest.mark.parametrize("controller", ["random", "tpe", "nsga2", "map_elites", "como"])
def test_every_controller_confirms_its_best(in_parts, silent, here, controller):
    file = in_parts(controller={"kind": controller}, budget={"items": 2000})
    assert run_campaign(file, observer=silent)
    archive = run_of(here)
    assert archive.candidates("recommended")
    assert archive.items_scored() <= 2000
    again = [c for c in archive.candidates() if c.again is not None and c.origin == "search"]
    for candidate in again:
        assert candidate.recipe_id == archive.candidate(candidate.again).recipe_id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"budget": {"patience": 5}}, "budget: has no end"),
        ({"scoring": "partly"}, "scoring.kind"),
        ({"scoring": {"kind": "full", "items": 5}}, "scoring.items"),
        ({"scoring": {"items": 0}}, "scoring.items"),
        ({"scoring": {"confirm": 1.0}}, "scoring.confirm"),
        ({"scoring": {"items": 500}}, "scoring.items: 500 items of each objective"),
        ({"budget": {"items": 300}}, "budget.items"),
    ],
)
def test_bad_input_is_told_in_a_line(in_parts, here, changes, expected):
    from evomerge.campaign.build import checked

    with pytest.raises(BadInput) as caught:
        checked(in_parts(**changes))
    assert expected in str(caught.value)


# before and after each kind of write of a race, an early one and a late one, and the others once
POINTS = [
    "recommend:before:1",
    "recommend:after:3",
    "record_race_part:after:1",
    "record_race_part:before:7",
    "record_race_ends:before:1",
    "record_race_ends:after:5",
    "propose:after:20",
    "record:after:30",
    "submit:before:45",
    "record_final:after:2",
]


@pytest.mark.xdist_group("resume")
def test_killed_at_any_write_and_resumed_it_is_the_same_campaign(in_parts, here):
    """Real processes, killed with SIGKILL; every proposal, score and race comes out the same."""
    import json

    scoring = {"kind": "batches", "confirm": 0.4}  # for two races before the last
    workers = {"pool": "inline", "threads": 1}
    file = in_parts(workers=workers, scoring=scoring, budget={"items": 2600})
    script = Path(__file__).with_name("kill_points.py")
    run = warm.run([script, file, "kill", "none", *POINTS])
    assert run.returncode == 0, run.stderr[-3000:]
    whole, *reports = [json.loads(line) for line in run.stdout.splitlines()]
    expected = _ledger(Path(whole["directory"]))
    assert len(reports) == len(POINTS)
    for report in reports:
        assert report["ends"] == [-signal.SIGKILL, 0], report["point"]
        assert _ledger(Path(report["directory"])) == expected, report["point"]


def _ledger(directory):
    """Everything that must not depend on when a campaign was killed."""
    archive = ArchiveReader(directory / "archive.db")
    found = []
    for candidate in archive.candidates():
        outcome = archive.outcome(candidate.id)
        which = archive.which_items(candidate.id, "sum")
        found.append(
            (
                candidate.recipe_id,
                candidate.origin,
                candidate.label,
                candidate.part,
                candidate.again,
                outcome["status"],
                outcome["reason"],
                outcome["items_scored"],
                outcome["estimate"],
                archive.scores(candidate.id, "search"),
                None if which is None else which.tolist(),
            )
        )
    tells = query(directory, "SELECT candidate_id FROM events WHERE kind = 'tell'")
    assert len(tells) == len({row["candidate_id"] for row in tells})
    return found, archive.items_scored(), archive.best(), archive.finals_done()
