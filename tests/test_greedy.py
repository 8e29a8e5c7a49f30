"""Greedy selection of experts: against enumeration, in noise, over real spaces, in a campaign."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.search.controllers import Feedback, Problem
from evomerge.search.controllers.greedy import Greedy, GreedySection
from evomerge.search.ingredients import Ingredients
from evomerge.search.parameter_options import ParametersSection
from evomerge.search.spaces import SourceShapes, make_space
from evomerge.search.spaces.choice import ChoiceSection
from evomerge.search.spaces.mixture import MixtureSection


def pool(models, *, adds_up, low=0.0, high=1.0, others=0):
    """A gene a model, which means weights from low to high, and genes of no model after them."""
    zero, one = -low / (high - low), (1.0 - low) / (high - low)
    nothing = np.concatenate([np.full(models, zero), np.full(others, 0.5)])
    alone = np.tile(nothing, (models, 1))
    alone[np.arange(models), np.arange(models)] = one
    return Ingredients(nothing, alone, adds_up)


def search_of(ingredients, *, parts=1, seed=1, **options):
    dimension = len(ingredients.nothing)
    start = np.full(dimension, 0.9)
    problem = Problem(dimension, seed, start, parts=parts, ingredients=ingredients)
    return Greedy(problem, GreedySection(**options))


def drive(search, score, count, *, workers=1, seed=0, until_refined=False):
    """Score what is asked for; return the proposals. `score` takes a genome and a part."""
    order = np.random.default_rng(seed)
    proposals, flying, genomes = [], [], {}
    while len(proposals) < count or flying:
        wanted = min(workers - len(flying), count - len(proposals))
        asked = search.ask(wanted) if wanted else []
        if until_refined and search._search is not None:
            return proposals
        assert asked or flying
        for proposal in asked:
            number = len(proposals)
            genome = proposal.genome if proposal.again is None else genomes[proposal.again]
            genomes[100 + number] = genome
            proposals.append(proposal)
            flying.append((number, genome, proposal.part))
        if flying and (len(flying) >= workers or not asked):
            number, genome, part = flying.pop(order.integers(len(flying)))
            value = score(genome, part)
            told = Feedback(number, genome, value, None if value is None else (value,))
            search.tell(Feedback(**{**vars(told), "candidate": 100 + number}))
    return proposals


gains = st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=7)


@given(gains, st.integers(0, 5))
def test_sums_come_to_each_models_best_dose(wanted, seed):
    """Of a sum of concave functions, one a model: against enumeration of each one's doses."""
    wanted = np.array(wanted)
    doses = 0.25 * np.arange(5)  # of weights from 0 to 1

    least = sum(min((doses - want) ** 2) for want in wanted)
    search = search_of(pool(len(wanted), adds_up=True), dose=0.25, seed=seed)

    def score(genome, part):
        return -float(((genome - wanted) ** 2).sum())

    drive(search, score, 900, workers=3, until_refined=True)
    assert search._search is not None
    assert -score(search.leader, 0) == pytest.approx(least)
    assert search.chosen == [k for k, dose in enumerate(search.leader) if dose > 0]


def caruana(targets, aim):
    """Ensemble selection with replacement, by enumeration: the models in the order they come."""
    bag, best = [], -np.inf
    while True:
        scores = [-np.abs(targets[[*bag, k]].mean(axis=0) - aim).sum() for k in range(len(targets))]
        if max(scores) <= best + 1e-9:
            return bag
        best = max(scores)
        bag.append(int(np.argmax(scores)))


@given(st.integers(0, 400))
def test_averages_are_caruanas_selection(seed):
    """Of three models, all of which run in every round, counts are those of the paper's loop."""
    rng = np.random.default_rng(seed)
    targets, aim = rng.normal(size=(3, 6)), rng.normal(size=6) / 2
    wanted = np.bincount(caruana(targets, aim), minlength=3)

    def score(genome, part):
        return round(-float(np.abs(genome @ targets - aim).sum()), 9)

    search = search_of(pool(3, adds_up=False), seed=seed)
    drive(search, score, 900, until_refined=True)
    assert search.leader == pytest.approx(wanted / wanted.sum(), abs=1e-6)


def test_a_round_shares_its_items_and_its_leader_runs_along():
    search = search_of(pool(8, adds_up=True), parts=10)
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.3, 1000)  # of the items of each part, alike for all

    def score(genome, part):
        return float(-np.abs(genome[:3] - 0.5).sum() - 0.8 * genome[3:].sum() + noise[part])

    proposals = drive(search, score, 200, workers=3)
    heats = [list(rows) for _, rows in itertools.groupby(proposals, lambda p: p.part)]
    assert len(heats[0]) == 9 and len(heats[1]) == 5  # all and the leader, then the better half
    assert all(p.again is not None for p in heats[1])
    for rows in heats[1:8]:
        again = [p.again for p in rows if p.again is not None]
        assert len(set(again)) == len(again)
        assert len({p.genome.tobytes() for p in rows}) == len(rows)
    assert search.chosen == [0, 1, 2]
    assert search.leader[:3] == pytest.approx([0.5] * 3)


def test_noise_adds_few_that_are_in_the_way():
    """Of 24 models, six that help and eighteen that harm; scores of 25 items each."""
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)

        def score(genome, part, rng=rng):
            chance = 0.3 + 0.2 * np.minimum(genome[:6], 0.5).sum() - 0.3 * genome[6:].sum()
            return float((rng.random(25) < chance).mean())

        search = search_of(pool(24, adds_up=True), parts=16, seed=seed)
        drive(search, score, 600, until_refined=True)
        chosen = search.chosen
        found.append((sum(k < 6 for k in chosen), sum(k >= 6 for k in chosen)))
    good, bad = np.mean(found, axis=0)
    assert good >= 3 and bad <= 1.5 and good > 4 * bad


def test_at_most_so_many_are_chosen_and_refined():
    """What was not chosen stays out; genes of no model are refined too."""
    ingredients = pool(6, adds_up=True, low=-0.5, high=1.5, others=2)
    search = search_of(ingredients, most=2)

    def score(genome, part):
        return -float(((genome - np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.8])) ** 2).sum())

    proposals = drive(search, score, 300)
    assert search.chosen == [0, 1]
    late = np.array([p.genome for p in proposals[-50:]])
    assert (late[:, 2:6] == 0.25).all()  # the weight 0
    assert len(np.unique(late[:, 0])) > 10
    assert late[-1][[0, 1, 6, 7]] == pytest.approx([0.9, 0.8, 0.2, 0.8], abs=0.05)
    assert search.recommend()[0].label.startswith("refined")


def test_it_begins_with_who_was_scored_elsewhere_if_that_is_better():
    ingredients = pool(4, adds_up=True)
    good = np.array([0.5, 0.3, 0.0, 0.2])
    for value in (-1.0, None):
        search = search_of(ingredients)
        search.tell(Feedback(None, good, value, None if value is None else (value,)))
        drive(search, lambda g, _: -float(np.abs(g - good).sum()), 6)
        assert search.leader.tolist() == (good.tolist() if value else [0.5, 0, 0, 0])


def test_of_many_that_were_scored_elsewhere_the_best_five_run():
    """A controller that is built anew is told of all that was scored, as of others' candidates."""
    search = search_of(pool(3, adds_up=True), dose=0.1)
    for number in range(40):
        genome = np.array([0.0, 0.0, number / 64])
        search.tell(Feedback(None, genome, number / 64, (number / 64,), candidate=number))
    first = search.ask(20)
    assert len(first) == 4 + 5
    assert {p.genome[2] * 64 for p in first} >= {39, 38, 37, 36, 35}


def test_failures_and_constraints_come_last():
    ingredients = pool(3, adds_up=True)
    search = search_of(ingredients, dose=0.5)
    for number, proposal in enumerate(search.ask(4)):
        weights = proposal.genome
        failed, violation = weights[0] > 0, float(weights[1])
        value = None if failed else 5.0 * weights[1] + weights[2]
        told = Feedback(number, weights, value, value and (value,), violation, number)
        search.tell(told)
    assert search.chosen == [2]


def weights_of(recipe):
    return [group.values["weight"] for group in recipe.groups]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_a_parameter_space_says_where_its_models_stand(method):
    base = None if method == "linear" else "base"
    shapes = SourceShapes(base, ("x", "y"), ("x", "y"), layers=4, dtype="float32", seed=0)
    axis = {"low": -0.5, "high": 1.5}
    axes = {"weight": axis} | ({"density": {"low": 0.1, "high": 0.9}} if method == "ties" else {})
    space = make_space(ParametersSection(method=method, layer_groups=2, axes=axes), shapes)
    found = space.ingredients()
    assert found.adds_up == (method == "task_arithmetic")
    assert all(w == (0.0, 0.0) for w in weights_of(space.decode(found.nothing)))
    assert all(w == pytest.approx((0.0, 1.0)) for w in weights_of(space.decode(found.alone[1])))
    assert found.models_in(found.alone[1]) == [1]
    tied = {"weight": {**axis, "tied": ["models"]}} | {
        k: v for k, v in axes.items() if k != "weight"
    }
    tied_space = make_space(ParametersSection(method=method, axes=tied), shapes)
    assert tied_space.ingredients() is None


def test_a_choice_of_spaces_weighs_a_model_in_all_of_them():
    shapes = SourceShapes("base", ("x", "y"), ("x", "y"), layers=2, dtype="float32", seed=0)
    each = {"kind": "parameters", "axes": {"weight": {"low": 0.0, "high": 1.0}}}
    options = ChoiceSection(
        spaces=[{**each, "method": m} for m in ("task_arithmetic", "dare_linear")]
    )
    space = make_space(options, shapes)
    found = space.ingredients()
    assert found.adds_up and found.alone.shape == (2, space.dimension)
    for choice in (0.25, 0.75):
        genome = found.alone[0].copy()
        genome[0] = choice
        assert all(w == (1.0, 0.0) for w in weights_of(space.decode(genome)))
    mixture = SourceShapes(None, ("x", "y"), ("x", "y"), 1, "float32", 0, {"w": 4})
    assert make_space(MixtureSection(), mixture).ingredients() is None


@pytest.mark.parametrize("scoring", ["full", {"kind": "batches", "items": 4}])
def test_a_campaign_goes_on_where_it_was(campaign_file, here, silent, scoring):
    """Continued, it scores the same candidates as in one go, and merges no model it has not."""
    changes = {
        "controller": {"kind": "greedy", "heats": 1},
        "scoring": scoring,
        "space__layer_groups": 1,
        "finals": 0,
    }

    def ledger(name):
        archive = Archive(here / "runs" / name / "archive.db")
        rows = []
        for c in archive.candidates(origin="search"):
            again = c.again and archive.candidate(c.again).ordinal  # numbers count races too
            # estimates differ: they lean on who was confirmed, as every start does at its end
            rows.append((c.recipe_id, c.part, again, archive.outcome(c.id)["value"]))
        return rows

    file = campaign_file(**changes, name="whole", budget__evaluations=16)
    assert run_campaign(file, observer=silent)
    for evaluations in (3, 9, 16):
        file = campaign_file(**changes, name="begun", budget__evaluations=evaluations)
        assert run_campaign(file, observer=silent)
    assert ledger("begun") == ledger("whole")
    archive = Archive(here / "runs" / "whole" / "archive.db")
    first = [c.recipe_json["groups"][0]["weight"] for c in archive.candidates(origin="search")][:4]
    assert sorted(first) == [[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0], [0.5, 0, 0]]
