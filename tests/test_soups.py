"""Soups of the sources: by hand, and in a campaign that is stopped among them."""

import json

import numpy as np
import pytest

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.config.validate import checked_plan
from evomerge.errors import BadInput
from evomerge.recipes import soups


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
