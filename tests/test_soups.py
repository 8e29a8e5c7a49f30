"""Soups of the sources: by hand, and in a campaign that is stopped among them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.archive.archive import Archive
from evomerge.campaign.build import checked
from evomerge.campaign.run import run_campaign
from evomerge.config.validate import checked_plan
from evomerge.errors import BadInput
from evomerge.recipes import category_soup, soups


def test_greedy_soup_keeps_what_does_no_harm():
    """Against the recipe by hand: c is best; a helps, b harms, d was never scored, e is equal."""
    worth = {("c", "a"): 0.7, ("c", "a", "b"): 0.6, ("c", "a", "e"): 0.7}
    asked = []

    def value_of(members, recipe):
        asked.append(members)
        assert recipe.models == members
        return worth[members]

    values = {"a": 0.4, "b": 0.3, "c": 0.5, "e": 0.1}
    found = soups.greedy(["a", "b", "c", "d", "e"], values, "float32", value_of)
    assert found == ("c", "a", "e")
    assert asked == [("c", "a"), ("c", "a", "b"), ("c", "a", "e")]
    assert soups.greedy(["a"], {}, "float32", value_of) == ()


def test_a_soup_that_fails_is_left_out():
    values = {"a": 0.4, "b": 0.3, "c": 0.2}
    worth = {("a", "b"): None, ("a", "c"): 0.5}
    assert soups.greedy("abc", values, "float32", lambda m, _: worth[m]) == ("a", "c")


def test_metrics_weigh_by_value():
    recipe = soups.by_metrics(("a", "b", "c"), {"a": 0.6, "b": 0.2, "c": -0.1}, "float32")
    assert recipe.groups[0].values["weight"] == pytest.approx((0.75, 0.25, 0.0))
    recipe = soups.by_metrics(("a", "b"), {}, "float32")
    assert recipe.groups[0].values["weight"] == (0.5, 0.5)


def baselines(run):
    archive = Archive(run / "archive.db")
    return {
        c.label: (json.dumps(c.recipe_json), archive.outcome(c.id)["value"])
        for c in archive.baselines()
    }


def test_a_campaign_scores_them_and_begins_at_the_best(campaign_file, here, silent):
    """The first proposals lie around it; what was scored is not scored again on going on."""
    changes = {
        "soups": ["model_stock", "metrics", "greedy"],
        "start_from_soup": True,
        "space.method": "task_arithmetic",
        "space.axes": {"weight": {"low": -1.0, "high": 2.0}},
        "controller": {"kind": "cmaes", "sigma": 1e-6},
    }
    dotted = {key.replace(".", "__"): value for key, value in changes.items()}
    assert run_campaign(campaign_file(budget__evaluations=4, **dotted), observer=silent)
    run = here / "runs" / "tiny"
    found = baselines(run)
    greedy = [label for label in found if label.startswith("greedy ")]
    assert {"uniform", "model_stock", "metrics"} < set(found) and greedy
    cooked = {label: found[label] for label in ("uniform", "metrics", *greedy)}
    best = json.loads(max(cooked.values(), key=lambda entry: entry[1])[0])
    weights = dict(zip(best["models"], best["groups"][0]["weight"], strict=True))
    archive = Archive(run / "archive.db")
    for candidate in archive.candidates(origin="search"):
        for group in candidate.recipe_json["groups"]:
            wanted = [weights.get(model, 0.0) for model in candidate.recipe_json["models"]]
            assert np.allclose(group["weight"], wanted, atol=1e-4)
    assert run_campaign(campaign_file(budget__evaluations=6, **dotted), observer=silent)
    assert baselines(run) == found


def test_model_stock_needs_a_base(campaign_file):
    import yaml

    plan = yaml.safe_load(campaign_file(soups=["model_stock"]).read_text())
    del plan["sources"]["base"]
    with pytest.raises(BadInput, match=r"soups: model_stock needs a base; write sources\.base"):
        checked_plan(plan)
    plan["soups"] = ["gredy"]
    with pytest.raises(BadInput, match=r"soups\.0"):
        checked_plan(plan)


def pearson(x, y):
    """By the definition, in plain sums."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5


@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(2, 6))
def test_weakly_correlated_categories_by_the_definition(seed, models, categories):
    scores = np.random.default_rng(seed).random((models, categories)) + np.arange(categories)
    columns = [list(column) for column in scores.T]
    wanted = []
    for k in range(categories):
        others = [pearson(columns[k], columns[n]) for n in range(categories) if n != k]
        if any(rho < category_soup.THRESHOLD for rho in others):
            wanted.append(k)
    assert category_soup.weakly_correlated(scores) == wanted
    rho = category_soup.correlations(scores)
    assert rho == pytest.approx(np.corrcoef(scores.T).reshape(rho.shape))


def test_category_experts_by_hand():
    """A category all agree on has no expert, of equals the worthier one is it."""
    scores = {"a": (0.9, 0.2, 0.5, 0.7), "b": (0.1, 0.9, 0.5, 0.7), "c": (0.5, 0.2, 0.5, 0.1)}
    rho = np.corrcoef(np.array(list(scores.values()))[:, [0, 1, 3]].T)
    assert rho[0, 2] < 0.5 and rho[0, 1] < 0.5
    experts = category_soup.category_experts(scores, {"a": 0.6, "b": 0.7, "c": 0.3})
    assert experts == ["b", "a"]  # b at the second and the last, a at the first
    worth = {"a": 0.8, "b": 0.7, "c": 0.3}
    assert category_soup.category_experts(scores, worth) == ["a", "b"]
    same = {"a": (0.1, 0.2), "b": (0.2, 0.4), "c": (0.3, 0.6)}  # one category, told twice
    assert category_soup.category_experts(same, {"a": 1, "b": 2, "c": 3}) == []


@given(st.integers(2, 5), st.lists(st.floats(0.1, 1), min_size=5, max_size=5))
def test_the_grid_is_climbed_towards_the_best(experts, wanted):
    """Of a concave function it ends where no tenth moved helps, or at its limit of soups."""
    wanted = np.array(wanted[:experts]) / sum(wanted[:experts]) * 10
    asked = []

    def value_of(tenths):
        assert sum(tenths) == 10 and min(tenths) >= 0 and tenths not in asked
        asked.append(tenths)
        return -float(((np.array(tenths) - wanted) ** 2).sum())

    found = category_soup.climb(experts, value_of)
    asked_by_climb = list(asked)
    values = [-((np.array(tenths) - wanted) ** 2).sum() for tenths in asked_by_climb]
    assert found == asked_by_climb[int(np.argmax(values))]
    assert len(asked_by_climb) <= category_soup.most_soups(experts)
    if experts == 2:
        grid = [(k, 10 - k) for k in range(11)]
        losses = [((np.array(tenths) - wanted) ** 2).sum() for tenths in grid]
        reached = -max(values)
        assert reached <= min(losses) + 1e-9 or len(asked_by_climb) == category_soup.most_soups(2)
    assert category_soup.climb(experts, lambda tenths: None) is None


def test_a_campaign_scores_the_soup_of_category_experts(campaign_file, here, silent, monkeypatch):
    """Its members are the best at an objective; going on scores none of them again."""
    second = (here / "fit.py").read_text().replace("* 7", "* 11")
    (here / "other.py").write_text(second.replace(".tolist()", ".neg().tolist()"))
    fitness = [
        {"name": "likely", "function": "fit.py"},
        {"name": "unlikely", "function": "other.py"},
    ]
    changes = {"soups": ["soce"], "fitness": fitness, "finals": 0}
    monkeypatch.setattr(category_soup, "THRESHOLD", 1.0)  # three models that differ by chance
    assert run_campaign(campaign_file(**changes, budget__evaluations=1), observer=silent)
    run = here / "runs" / "tiny"
    found = baselines(run)
    archive = Archive(run / "archive.db")
    means = {c.label: archive.means(c.id) for c in archive.baselines()}
    best = {max("abc", key=lambda m: means[m][name]) for name in ("likely", "unlikely")}
    cooked = [label for label in found if label.startswith("soce ")]
    assert len(best) == 2 and 1 < len(cooked) <= category_soup.most_soups(2)
    for label in cooked:
        parts = dict(part.split(" ") for part in label.removeprefix("soce ").split("+"))
        recipe = json.loads(found[label][0])
        assert set(parts) == set(recipe["models"]) <= best
        assert recipe["groups"][0]["weight"] == [float(parts[m]) for m in recipe["models"]]
    assert run_campaign(campaign_file(**changes, budget__evaluations=2), observer=silent)
    assert baselines(run) == found


def test_soce_needs_categories(campaign_file):
    with pytest.raises(BadInput, match=r"soups: soce chooses models .*; write one more under fit"):
        checked(campaign_file(soups=["soce"]))
