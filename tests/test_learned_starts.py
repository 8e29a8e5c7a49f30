"""Coefficients learned by gradients, in campaigns: recorded once, resumed, and begun at."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import warm
from conftest import PLAN

from evomerge.archive.archive import Archive
from evomerge.campaign import learned as learned_module
from evomerge.campaign.build import checked
from evomerge.campaign.controller_history import controller_history
from evomerge.campaign.estimate import estimate
from evomerge.campaign.run import run_campaign
from evomerge.config.validate import checked_plan
from evomerge.errors import BadInput
from evomerge.learning.failure import Unlearnable
from evomerge.learning.learners import LEARNERS, LearnerKind
from evomerge.tensor_names import place

TASK = [{"name": "echo", "task": "generation.yaml", "metric": "exact_match"}]
QUICK = {"kind": "adamerging", "steps": 3, "rate": 0.05, "count": 8}


def quick(**changes):
    return {
        "fitness": TASK,
        "learned": [QUICK],
        "workers": {"pool": "inline", "threads": 1},
        "budget": {"evaluations": 4},
        "scoring": "full",
    } | changes


def baselines(run):
    archive = Archive(run / "archive.db")
    return {c.label: json.dumps(c.recipe_json) for c in archive.baselines()}


@pytest.fixture
def counted(monkeypatch):
    """Count what is learned."""
    calls, plain = [], learned_module._learn

    def counting(section, *arguments):
        calls.append(section.label)
        return plain(section, *arguments)

    monkeypatch.setattr(learned_module, "_learn", counting)
    return calls


@pytest.mark.usefixtures("one_index")
def test_what_is_learned_is_a_baseline_and_learned_once(here, campaign_file, silent, counted):
    other = {"kind": "self_positioning", "name": "probe", "steps": 2, "count": 8}
    both = quick(learned=[QUICK, other])
    assert run_campaign(campaign_file(**both), observer=silent)
    run = here / "runs" / "tiny"
    found = baselines(run)
    assert list(found) == ["base", "a", "b", "c", "uniform", "adamerging", "probe"]
    recipe = json.loads(found["adamerging"])
    assert recipe["method"] == "task_arithmetic" and recipe["models"] == ["a", "b", "c"]
    weights = np.array([group["weight"] for group in recipe["groups"]])
    assert weights.shape == (4, 3)  # two layers, the embeddings, the norm; the head is tied
    assert np.all(np.abs(weights - 0.3) < 0.2) and np.any(weights != 0.3)
    archive = Archive(run / "archive.db")
    for candidate in archive.baselines():
        assert archive.outcome(candidate.id)["status"] == "ok"
        assert archive.scores(candidate.id, "heldout")
    assert any(line.startswith("learned adamerging in ") for line in silent.said)
    longer = campaign_file(**both | {"budget": {"evaluations": 6}})
    assert run_campaign(longer, observer=silent)
    assert counted == ["adamerging", "probe"] and baselines(run) == found


@pytest.mark.usefixtures("one_index")
@pytest.mark.parametrize(
    "space",
    [
        {"layer_groups": 2, "module_groups": ["mlp"]},
        {"layer_groups": 1},
        {"layer_groups": 2, "smooth": True},
    ],
)
def test_a_search_begins_at_the_learned_point(here, campaign_file, silent, space):
    """Of each group of the space the mean over the elements, by hand; the rest is CMA-ES' step."""
    plan = quick(
        learned=[QUICK | {"by": "module"}],
        start_from_learned=True,
        controller={"kind": "cmaes", "sigma": 1e-6},
        space=PLAN["space"] | space | {"axes": {"weight": {"low": -1.0, "high": 2.0}}},
    )
    file = campaign_file(**plan)
    assert run_campaign(file, observer=silent)
    archive = Archive(here / "runs" / "tiny" / "archive.db")
    recipe = next(c.recipe for c in archive.baselines() if c.label == "adamerging")
    (campaign,) = checked(file)
    elements = campaign.space.shapes.tensors

    def mean_where(wanted):
        sums, count = np.zeros(3), 0
        for name, size in elements.items():
            if wanted(name):
                group = next(g for g in recipe.groups if g.holds(name, place(name)))
                sums, count = sums + size * np.array(group.values["weight"]), count + size
        return sums / count

    searched = archive.candidates(origin="search")
    assert len(searched) == 4
    told = [event.kind for event, _ in controller_history(here / "runs" / "tiny")]
    assert told.count("ask") >= 1 and len(told) >= 10  # it proposes the same once more
    for candidate in searched:
        for group in candidate.recipe.groups:
            if not isinstance(group.layers, tuple):
                continue  # the parts outside the layers
            shared = [f"layers.{n}." for n in range(*group.layers)]
            is_parted = "module_groups" in space

            def inside(name, shared=shared, group=group, is_parted=is_parted):
                own = not is_parted or ("mlp" in name) == (group.modules == "mlp")
                return own and any(layer in name for layer in shared)

            assert np.allclose(group.values["weight"], mean_where(inside), atol=1e-4)


@pytest.mark.usefixtures("one_index")
def test_what_cannot_be_learned_is_a_line_and_the_search_goes_on(
    here, campaign_file, silent, monkeypatch
):
    """And on going on it is not tried again, as the search began without it."""
    kind, calls = LEARNERS.get("adamerging"), []

    def fails(problem, options):
        calls.append(options.label)
        raise Unlearnable("the loss is nan at step 3")

    monkeypatch.setitem(LEARNERS._entries, "adamerging", LearnerKind(kind.section, fails))
    plan = quick(start_from_learned=True)
    assert run_campaign(campaign_file(**plan), observer=silent)
    line = "warning: adamerging could not be learned: the loss is nan at step 3"
    assert silent.said.count(line) == 1
    monkeypatch.setitem(LEARNERS._entries, "adamerging", kind)
    plan["budget"] = {"evaluations": 6}
    assert run_campaign(campaign_file(**plan), observer=silent)
    assert "adamerging" not in baselines(here / "runs" / "tiny") and len(calls) == 1


KILLED = """
import os, signal, sys
from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign

plain, when, label = Archive.add_baseline, sys.argv[2], sys.argv[3]

def armed(self, recipe_id, recipe, name):
    if name == label and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    added = plain(self, recipe_id, recipe, name)
    if name == label and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return added

Archive.add_baseline = armed
run_campaign(sys.argv[1], directory=sys.argv[4])
"""


@pytest.mark.usefixtures("one_index")
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_about_its_record_it_is_learned_to_the_same_result(
    here, campaign_file, silent, counted, when
):
    file = campaign_file(**quick(start_from_learned=True))
    command = ["-c", KILLED, str(file), when, "adamerging", "runs/killed"]
    died = warm.run(command, cwd=here)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    killed, whole = Path("runs/killed"), Path("runs/whole")
    assert ("adamerging" in baselines(killed)) == (when == "after")
    assert run_campaign(file, directory=killed, observer=silent)
    assert counted == (["adamerging"] if when == "before" else [])
    assert run_campaign(file, directory=whole, observer=silent)

    def ledger(run):
        archive = Archive(run / "archive.db")
        return [
            (c.label, c.recipe_id, archive.outcome(c.id)["weights_checksum"])
            for c in archive.candidates()
        ]

    assert ledger(killed) == ledger(whole)


@pytest.mark.usefixtures("one_index")
def test_a_stop_while_it_learns_is_an_interruption(here, campaign_file, silent):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 2

    file = campaign_file(**quick(learned=[QUICK | {"steps": 100000}]))
    assert not run_campaign(file, observer=silent, stop=stop)
    assert "adamerging" not in baselines(here / "runs" / "tiny")


@pytest.mark.usefixtures("one_index")
def test_check_says_what_is_learned_and_refuses_what_cannot_be(here, campaign_file):
    experts = {"kind": "expert_merging", "experts": {"a": "echo", "b": "b.jsonl"}, "count": 8}
    (here / "b.jsonl").write_text('{"text": "w0 w1"}\n{"prompt": "w2"}\n')
    (campaign,) = checked(campaign_file(**quick(learned=[QUICK, experts])))
    said = estimate(campaign)["summary"]
    assert "adamerging (12 coefficients, 8 texts, 3 steps)" in said["learned"]
    assert "expert_merging (30 coefficients, 10 texts, 100 steps)" in said["learned"]
    assert said["candidates"] == "4 and 7 baselines"
    (here / "b.jsonl").write_text('{"text": "w0 w1"}\n{"words": 3}\n')
    experts["experts"]["d"] = "echo"
    wrong = [QUICK | {"texts": "none.jsonl", "name": "x"}, experts]
    with pytest.raises(BadInput) as caught:
        checked(campaign_file(**quick(learned=wrong)))
    text = str(caught.value)
    assert "learned.0.texts: there is no file 'none.jsonl'; write a path to a file of texts" in text
    assert "learned.1.experts.b: b.jsonl, line 2 is no text; write lines such as" in text
    assert "learned.1.experts.d: no model is called 'd'; write one of a, b, c" in text
    (here / "ids.py").write_text("items = lambda: [[1, 2]] * 60\ndef score(*_): ...\n")
    numbers = {"fitness": [{"name": "ids", "function": "ids.py"}]}
    with pytest.raises(BadInput, match=r"learned\.0\.texts: no fitness has prompts to learn on"):
        checked(campaign_file(**quick(**numbers)))  # whose items are no words


def test_the_plan_says_what_does_not_go_together(campaign_file):
    import yaml

    plan = yaml.safe_load(campaign_file(learned=["adamerging", "adamerging"]).read_text())
    with pytest.raises(BadInput, match=r"learned\.1\.kind: 'adamerging' is the name of another"):
        checked_plan(plan)
    plan["learned"] = [{"kind": "adamerging", "name": "a"}, {"kind": "adamrging"}]
    with pytest.raises(BadInput) as caught:
        checked_plan(plan)
    assert "learned.0.name: 'a' is the name of another baseline" in str(caught.value)
    assert "learned.1" in str(caught.value)
    del plan["sources"]["base"]
    plan |= {"learned": ["fw_merging"], "space": {"kind": "routing"}, "start_from_learned": True}
    with pytest.raises(BadInput) as caught:
        checked_plan(plan)
    assert "learned: task vectors need a base; write sources.base" in str(caught.value)
    assert "start_from_learned: a learned merge is no point of a space" in str(caught.value)
