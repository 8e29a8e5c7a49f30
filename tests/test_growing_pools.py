"""A model more: a campaign begins with what an earlier one found, and with what it scored."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.archive.archive import Archive
from evomerge.archive.summary import front, status
from evomerge.campaign.build import checked
from evomerge.campaign.estimate import estimate
from evomerge.campaign.run import run_campaign
from evomerge.report.report import report

# as near as can be to a model that none of a and b is: what c adds is wanted
WANTED = '''
"""Minus the distance of a few weights from base + 0.6 a + 0.9 c, in task vectors."""

from safetensors.torch import load_file

NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"]


def items():
    return NAMES * 12


def score(model, tokenizer, items):
    base, a, c = (load_file(f"{name}/model.safetensors") for name in ("base", "a", "c"))
    own = model.state_dict()
    found = {}
    for name in NAMES:
        wanted = base[name] + 0.6 * (a[name] - base[name]) + 0.9 * (c[name] - base[name])
        found[name] = -float((own[name].float() - wanted.float()).norm())
    return [found[name] for name in items]
'''

OLD = {
    "sources__models": {"a": "a", "b": "b"},
    "fitness": [{"name": "near", "function": "wanted.py"}],
    "space__layer_groups": 1,
    "controller": {"kind": "cmaes", "population": 6},
    "budget__evaluations": 60,
    "finals": 1,
}
NEW = OLD | {"sources__models": {"c": "c", "b": "b", "a": "a"}, "budget__evaluations": 150}


@pytest.fixture
def old(campaign_file, here, silent):
    """A finished campaign over base, a and b; return its archive."""
    (here / "wanted.py").write_text(WANTED)
    assert run_campaign(campaign_file(**OLD, name="old"), observer=silent)
    return Archive(here / "runs/old/archive.db")


def grown(campaign_file, here, silent, **changes):
    changes = NEW | {"name": "new", "init": ["runs/old#best"]} | changes
    assert run_campaign(campaign_file(**changes), observer=silent)
    return Archive(here / "runs" / changes["name"] / "archive.db")


def reasons(archive):
    return {c.label: archive.outcome(c.id)["reason"] for c in archive.baselines()}


def test_the_old_best_is_a_candidate_of_the_new_campaign_and_is_bettered(
    old, campaign_file, here, silent
):
    """Bit for bit, with the same score; the new model is what makes it better."""
    new = grown(campaign_file, here, silent)
    theirs = old.best()
    (start,) = new.warm_starts()
    assert start.label == f"runs/old#{theirs}"
    weights = dict(zip(start.recipe.models, start.recipe.groups[0].values["weight"], strict=True))
    assert weights["c"] == 0.0
    a, b = old.outcome(theirs), new.outcome(start.id)
    assert a["weights_checksum"] == b["weights_checksum"] != ""
    assert old.means(theirs) == new.means(start.id)
    assert not any("not quite itself" in line for line in silent.said)
    best = new.best()
    assert new.means(best)["near"] > new.means(start.id)["near"] + 0.1
    recipe = new.candidate(best).recipe
    weights = dict(zip(recipe.models, recipe.groups[0].values["weight"], strict=True))
    assert weights["c"] == pytest.approx(0.9, abs=0.2)


def test_what_the_old_run_scored_is_taken_over(old, campaign_file, here, silent, monkeypatch):
    """The models' scores, item by item; what is new is scored. It costs no items."""
    new = grown(campaign_file, here, silent, budget__evaluations=2)
    by_label = {c.label: c for c in old.baselines()}
    found = reasons(new)
    for label in ("base", "a", "b"):
        number = by_label[label].id
        assert found[label] == f"scored as runs/old#{number}"
        ours = next(c for c in new.baselines() if c.label == label)
        assert new.outcome(ours.id)["items_scored"] == 0
        assert new.means(ours.id) == old.means(number)
        same = new.item_scores(ours.id, "near", "search"), old.item_scores(number, "near", "search")
        assert np.array_equal(*same)
        ours_heldout, theirs = (a.means(n, "heldout") for a, n in ((new, ours.id), (old, number)))
        assert ours_heldout == theirs != {}
        assert new.final(ours.id)["reason"] == old.final(number)["reason"] + found[label]
    assert "#" not in found["c"] + found["uniform"]
    assert new.final(new.best())["reason"] == ""
    assert any(line.startswith("3 baseline(s) were scored") for line in silent.said)
    # a campaign that is continued does not ask for the old run any more
    events = [(e.kind, e.candidate and e.candidate.id) for e in new.events()]
    (here / "runs/old").rename(here / "runs/gone")
    more = grown(campaign_file, here, silent, budget__evaluations=4)
    assert [(e.kind, e.candidate and e.candidate.id) for e in more.events()][
        : len(events)
    ] == events
    assert status(here / "runs/new")["state"] == "finished"
    assert "scored as" not in report(here / "runs/new")[0]  # it is no failure
    assert {row["label"] for row in front(here / "runs/new")} >= {"base", "a", "b", "c"}


def test_a_check_says_that_baselines_are_taken_over(old, campaign_file):
    init = ["runs/old#front", "runs/old#best"]
    (campaign,) = checked(campaign_file(**NEW, name="new", init=init))
    said = estimate(campaign)["summary"]["candidates"]
    assert said == "150 and 5 baselines; baselines that runs/old scored alike are taken over"


@pytest.mark.parametrize(
    "changes",
    [
        {"heldout": 0.25},
        {"compute_dtype": "float64"},
        {"fitness": [{"name": "near", "function": "wanted.py", "items": 20}]},
        {"fitness": [{"name": "close", "function": "wanted.py"}]},
        {"seed": 8},
        {"scores": "others"},
        {"machine": "another"},
        {"archive": "broken"},
    ],
    ids=str,
)
def test_scores_that_may_differ_are_not_taken_over(old, campaign_file, here, silent, changes):
    """Other items, another function, another way to compute, or a file that cannot be trusted."""
    changes = dict(changes)
    if changes.pop("scores", ""):
        (here / "wanted.py").write_text(WANTED.replace("0.9 *", "0.8 *"))
    if changes.pop("machine", ""):
        sql = "UPDATE starts SET machine = json_set(machine, '$.versions.torch', '0.1')"
        edit(here, sql)
    if changes.pop("archive", ""):
        edit(here, "UPDATE campaign SET provenance = json_remove(provenance, '$.fitness')")
    new = grown(campaign_file, here, silent, budget__evaluations=1, **changes)
    assert not any("#" in reason for reason in reasons(new).values())
    assert len(new.warm_starts()) == 1


def edit(here, sql):
    import sqlite3

    with sqlite3.connect(here / "runs/old/archive.db") as file:
        file.execute(sql)
    file.close()


def test_weight_and_constraint_leave_scores_as_they_are(old, campaign_file, here, silent):
    fitness = [
        {"name": "near", "function": "wanted.py", "weight": 2.0, "constraint": ">= base - 9"}
    ]
    new = grown(campaign_file, here, silent, budget__evaluations=1, fitness=fitness)
    assert reasons(new)["a"].startswith("scored as runs/old#")


def test_a_changed_model_is_scored(old, campaign_file, here, silent):
    """It is known by its content: one of the same name and place is another model."""
    import shutil

    shutil.copytree(here / "a", here / "changed")
    file = here / "changed/model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name] + torch.tensor(0.01)}, file, {"format": "pt"})
    models = {"a": "a", "b": "changed", "c": "c"}
    best = old.best()
    weights = old.candidate(best).recipe.groups[0].values["weight"]
    assert weights[1] != 0.0  # of b, so that the best cannot begin here
    plan = {"sources__models": models, "budget__evaluations": 1, "init": []}
    new = grown(campaign_file, here, silent, **plan)
    assert not any("#" in reason for reason in reasons(new).values())
    from evomerge.errors import BadInput

    with pytest.raises(BadInput, match=r"has b, which is no source of this campaign"):
        grown(campaign_file, here, silent, **plan | {"name": "third", "init": ["runs/old#best"]})


def test_a_space_that_cannot_leave_the_new_model_out_says_so(old, campaign_file, here, silent):
    axes = {"weight": {"low": 0.1, "high": 1.0}}
    grown(campaign_file, here, silent, budget__evaluations=1, space__axes=axes)
    assert any("runs/old#" in line and "not quite itself" in line for line in silent.said)


@pytest.mark.parametrize(
    "tied", [["layers", "modules", "outside"], ["layers", "models", "outside"]]
)
def test_densities_stay_what_they_are(campaign_file, here, silent, tied):
    """With TIES, also where one density is all models': the new one's is not 0."""
    (here / "wanted.py").write_text(WANTED)
    density = {"low": 0.2, "high": 0.9, "tied": tied}
    axes = {"weight": {"low": 0.0, "high": 1.0}, "density": density}
    space = {"kind": "parameters", "method": "ties", "axes": axes}
    for changes in (OLD | {"name": "old"}, NEW | {"name": "new", "init": ["runs/old#9"]}):
        changes |= {"space": space, "budget__evaluations": 8}
        changes.pop("space__layer_groups")
        assert run_campaign(campaign_file(**changes), observer=silent)
    old, new = (Archive(here / "runs" / name / "archive.db") for name in ("old", "new"))
    (start,) = new.warm_starts()
    number = int(start.label.rpartition("#")[2])
    sums = [old.outcome(number)["weights_checksum"], new.outcome(start.id)["weights_checksum"]]
    assert sums[0] == sums[1]
    densities = start.recipe.groups[0].values["density"]
    assert min(densities) >= 0.2


def test_mixtures_grow_too(campaign_file, here, silent):
    (here / "wanted.py").write_text(WANTED)
    niches = {
        "space": {"kind": "mixture", "task_vectors": True},
        "controller": {"kind": "niches", "population": 8, "warmup": 4},
    }
    for changes in (OLD | {"name": "old"}, NEW | {"name": "new", "init": ["runs/old#best"]}):
        changes = changes | niches | {"budget__evaluations": 10}
        changes.pop("space__layer_groups")
        assert run_campaign(campaign_file(**changes), observer=silent)
    old, new = (Archive(here / "runs" / name / "archive.db") for name in ("old", "new"))
    (start,) = new.warm_starts()
    number = int(start.label.rpartition("#")[2])
    assert old.means(number) == new.means(start.id)


def test_two_commands_grow_a_pool(old, campaign_file, here, silent):
    """The second sets what differs; greedy goes on from the old best, and adds the new model."""
    settings = [
        "name=second",
        "sources.models.c=c",
        "init=[runs/old#best]",
        "controller={kind: greedy, dose: 0.3}",
    ]
    assert run_campaign(campaign_file(**OLD, name="old"), settings=settings, observer=silent)
    new = Archive(here / "runs/second/archive.db")
    best = new.candidate(new.best()).recipe
    assert best.groups[0].values["weight"][2] == pytest.approx(0.9, abs=0.2)


def test_scores_that_compare_with_another_model_of_the_label_are_not_taken_over(
    campaign_file, here, silent
):
    """An expert is named by its label, behind which a new campaign may have another model."""
    (here / "prompts.jsonl").write_text("".join(f'{{"prompt": "w{n}"}}\n' for n in range(1, 25)))
    entry = {"name": "agree", "agreement": "b", "where": "prompt", "prompts": "prompts.jsonl"}
    few = OLD | {"fitness": [entry], "budget__evaluations": 2, "controller": {"kind": "random"}}
    assert run_campaign(campaign_file(**few, name="old"), observer=silent)
    other = {"sources__models": {"a": "a", "b": "c", "d": "b"}, "init": ["runs/old#5"]}
    assert run_campaign(campaign_file(**few | other, name="new"), observer=silent)
    with_other = reasons(Archive(here / "runs/new/archive.db"))
    assert not any("runs/old" in reason for reason in with_other.values())
    same = {"sources__models": {"a": "a", "b": "b", "d": "c"}, "init": ["runs/old#5"]}
    assert run_campaign(campaign_file(**few | same, name="same"), observer=silent)
    assert "runs/old" in reasons(Archive(here / "runs/same/archive.db"))["a"]
