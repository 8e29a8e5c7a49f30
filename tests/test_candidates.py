"""Archived candidates as sources of another campaign, and as what it begins with."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from sql import change

from evomerge.archive import summary
from evomerge.archive.archive import Archive
from evomerge.cache.eviction import empty
from evomerge.campaign.build import checked
from evomerge.campaign.run import run_campaign
from evomerge.campaign.warm_start import candidates_of
from evomerge.cli.main import main
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, EvomergeError
from evomerge.export.candidates import export_candidate, materialize
from evomerge.sources.trust import Trust

# The nearer the embeddings are to a mixture of sources, the better.
NEAR = """
from pathlib import Path

from safetensors.torch import load_file

NAME = "model.embed_tokens.weight"


def items():
    return list(range(40))


def score(model, tokenizer, items):
    folder = Path(__file__).parent
    read = {n: load_file(folder / n / "model.safetensors")[NAME].float() for n in "abc"}
    wanted = sum(share * read[n] for n, share in MIXTURE.items()).flatten()
    weight = model.get_input_embeddings().weight.float().flatten()
    return [-abs(float(weight[i] - wanted[i])) for i in items]
"""
NEAR_TWO = [
    {"name": "ab", "function": "ab.py", "direction": "maximize"},
    {"name": "bc", "function": "bc.py", "direction": "maximize"},
]


@pytest.fixture
def first(campaign_file, here, silent, monkeypatch):
    """A finished run, runs/first, on whose front are candidates, and a cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache-of-candidates"))
    for name, mixture in (("ab", {"a": 0.7, "b": 0.3}), ("bc", {"b": 0.3, "c": 0.7})):
        text = NEAR.replace("MIXTURE", repr(mixture)).replace("Path(__file__).parent", "Path()")
        (here / f"{name}.py").write_text(text)
    file = campaign_file(name="first", fitness=NEAR_TWO, budget__evaluations=20)
    run_campaign(file, observer=silent)
    return here / "runs" / "first"


def scores(run, candidate):
    archive = Archive(run / "archive.db")
    return [archive.item_scores(candidate, o.name, "search") for o in archive.objectives]


def best(run):
    return summary.status(run)["best"]["id"]


SECOND = {"base": "base", "models": {"a": "a", "merged": "runs/first#best"}}


def test_a_candidate_is_a_source(first, campaign_file, here, silent):
    file = campaign_file(fitness=NEAR_TWO, name="second", sources=SECOND, budget__evaluations=6)
    assert checked(file, [], {})[0].space.dimension == 6
    assert not cache_folder("candidates").exists()  # `check` merges nothing
    run_campaign(file, observer=silent)
    run, name = here / "runs" / "second", f"runs/first#{best(first)}"
    archive = Archive(run / "archive.db")
    (baseline,) = [c for c in archive.baselines() if c.label == "merged"]
    assert baseline.recipe_json["models"] == [name]
    assert np.array_equal(scores(run, baseline.id), scores(first, best(first)))
    shutil.rmtree(cache_folder("candidates"))
    export_candidate(run, here / "out", str(baseline.id))
    export_candidate(first, here / "same", "best")
    ours, theirs = (load_file(here / d / "model.safetensors") for d in ("out", "same"))
    assert all((ours[n] == theirs[n]).all() for n in theirs)
    done = CliRunner().invoke(main, ["merge", "out/recipe.json", "again"])
    assert done.exit_code == 0, done.output
    again = load_file(here / "again" / "model.safetensors")
    assert all((again[n] == theirs[n]).all() for n in theirs)


def test_best_means_the_best_when_the_campaign_began(first, campaign_file, here, silent):
    options = {"name": "second", "sources": SECOND, "fitness": NEAR_TWO}
    run_campaign(campaign_file(**options, budget__evaluations=2), observer=silent)
    before = best(first)
    change(first, "UPDATE outcomes SET value = 99 WHERE candidate_id = 7")
    assert best(first) == 7 != before
    assert run_campaign(campaign_file(**options, budget__evaluations=3), observer=silent)
    plan = Archive(here / "runs" / "second" / "archive.db").campaign["plan"]
    assert plan["sources"]["models"]["merged"] == f"runs/first#{before}"


def test_a_candidate_of_a_candidate(first, campaign_file, here, silent):
    run_campaign(
        campaign_file(fitness=NEAR_TWO, name="second", sources=SECOND, budget__evaluations=4),
        observer=silent,
    )
    third = {"base": "runs/first#6", "models": {"x": "runs/second#best", "y": "runs/first#7"}}
    file = campaign_file(fitness=NEAR_TWO, name="third", sources=third, budget__evaluations=2)
    run_campaign(file, observer=silent)
    run = here / "runs" / "third"
    assert summary.status(run)["candidates"]["failed"] == 0
    shutil.rmtree(cache_folder("candidates"))
    assert export_candidate(run, here / "out", "best")[0] == best(run)


def test_a_candidate_whose_sources_changed_is_refused(first, campaign_file, here, silent, world):
    (here / "a").unlink()
    shutil.copytree(world / "b", here / "a")
    file = campaign_file(fitness=NEAR_TWO, name="second", sources=SECOND)
    with pytest.raises(BadInput, match=r"sources.a: .*a is not the model that was searched"):
        run_campaign(file, observer=silent)
    with pytest.raises(BadInput, match=r"sources.a"):
        materialize("runs/first#7")


def test_a_candidate_in_the_cache(first, monkeypatch):
    """Room is made for it, it is held, and its code must be the user's."""
    other = cache_folder("candidates") / "other"
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(bytes(1000))
    size = sum(file.stat().st_size for file in (first.parents[1] / "a").glob("*.safetensors"))
    monkeypatch.setenv("EVOMERGE_CACHE_GB", str((size + 1e6) / 1e9))
    folder = materialize("runs/first#7")
    assert other.exists()
    monkeypatch.setenv("EVOMERGE_CACHE_GB", str(2 * size / 1e9))
    another = materialize("runs/first#8")
    assert not other.exists() and folder.exists()
    held = {f"candidates/{path.name}" for path in (folder, another)}
    assert empty(("candidates",)).kept.keys() == held
    cache_folder().chmod(0o777)
    assert materialize("runs/first#7") == folder
    with pytest.raises(BadInput, match=r"may run, and others than you can write to .*evomerge;"):
        materialize("runs/first#7", trust=Trust(remote_code=True))


def test_a_candidate_is_compared_on_the_kind_of_device_that_scored_it(first):
    change(first, "UPDATE outcomes SET weights_checksum = 'x' WHERE candidate_id IN (6, 7)")
    change(first, "UPDATE outcomes SET worker = 'far/1/cuda:1' WHERE candidate_id = 7")
    with pytest.raises(EvomergeError, match="but x was scored"):
        materialize("runs/first#6")
    if not torch.cuda.is_available():
        assert (materialize("runs/first#7") / "config.json").exists()


REFUSED = {
    "runs/absent#best": r"sources.models.m: runs/absent: is no run's directory; write RUN#best",
    "runs/first#999": r"sources.models.m: runs/first: candidate 999 is not there or has no scores",
    "runs/first#worst": r"sources.models.m: runs/first: there is no 'worst'",
}


@pytest.mark.parametrize("name", REFUSED)
def test_candidates_that_are_not_there(first, campaign_file, name):
    file = campaign_file(
        fitness=NEAR_TWO, name="second", sources={"base": "base", "models": {"a": "a", "m": name}}
    )
    with pytest.raises(BadInput, match=REFUSED[name]):
        checked(file, [], {})


def proposals(run):
    archive = Archive(run / "archive.db")
    return [c.genome.tolist() for c in archive.candidates(origin="search")]


@pytest.mark.parametrize("kind", ["cmaes", "random"])
def test_a_campaign_begins_with_the_front_of_another(first, campaign_file, here, silent, kind):
    options = {"init": ["runs/first#front"], "controller": {"kind": kind}, "fitness": NEAR_TWO}
    run_campaign(campaign_file(**options, name="whole", budget__evaluations=9), observer=silent)
    run_campaign(campaign_file(**options, name="parts", budget__evaluations=2), observer=silent)
    front = [c for c in Archive(first / "archive.db").front() if c > 5]
    moved = first.rename(here / "runs" / "elsewhere")  # its candidates are in the archive by now
    run_campaign(campaign_file(**options, name="parts", budget__evaluations=9), observer=silent)
    whole, parts = here / "runs" / "whole", here / "runs" / "parts"
    assert proposals(whole) == proposals(parts)
    archive = Archive(whole / "archive.db")
    adopted = archive.warm_starts()
    assert [c.label for c in adopted] == [f"runs/first#{i}" for i in front] and front
    for candidate, theirs in zip(adopted, front, strict=True):
        assert np.array_equal(scores(whole, candidate.id), scores(moved, theirs))
    kinds = [e.kind for e in archive.events()]
    assert kinds.index("ask") == 5 + len(front)  # baselines and adopted are told before
    if kind == "cmaes":  # which starts from the best of them
        start = max(adopted, key=lambda c: archive.outcome(c.id)["value"]).genome
        spread = np.abs(np.array(proposals(whole)) - start).mean()
        assert spread < 0.25 < np.abs(np.random.default_rng(0).random((99, 9)) - start).mean()
    assert summary.show(whole, adopted[0].id)["label"] == f"runs/first#{front[0]}"


def test_beginnings_are_known_by_their_models_not_by_names(first, campaign_file, here, silent):
    shutil.copytree(here / "b", here / "other-b")
    sources = {"base": "base", "models": {"c": "c", "bee": "other-b", "a": "a"}}
    init = [f"runs/first#{best(first)}"]
    file = campaign_file(
        fitness=NEAR_TWO, name="second", sources=sources, init=init, budget__evaluations=1
    )
    run_campaign(file, observer=silent)
    run = here / "runs" / "second"
    (adopted,) = Archive(run / "archive.db").warm_starts()
    theirs = Archive(first / "archive.db").candidate(best(first))
    for ours, original in zip(
        adopted.recipe_json["groups"], theirs.recipe_json["groups"], strict=True
    ):
        assert ours["weight"] == pytest.approx(original["weight"][::-1])


def test_where_a_source_is_best_a_search_begins_at_the_best_that_was_found(first):
    found = best(first)
    change(first, "UPDATE outcomes SET value = 9.0 WHERE candidate_id = 1")
    assert best(first) == 1 != found
    (named,) = candidates_of(["runs/first#best"], "parameters")
    assert named.label == f"runs/first#{found}"


def test_beginnings_that_will_not_do(first, campaign_file, silent):
    two = {"base": "base", "models": {"a": "a", "b": "b"}}
    plan = {"fitness": NEAR_TWO, "name": "second", "sources": two}
    with pytest.raises(BadInput, match=r"init\.0: 'runs/first#.*has c, which is no source"):
        run_campaign(campaign_file(**plan, init=["runs/first#front"]), observer=silent)
    init = ["runs/first#front", "runs/none#best", "runs/first#1"]
    file = campaign_file(**plan, init=init)
    for asked in (lambda: checked(file, [], {}), lambda: run_campaign(file, observer=silent)):
        with pytest.raises(BadInput) as error:
            asked()
        lines = str(error.value).splitlines()
        assert "init.1: runs/none: is no run's directory" in lines[-2]
        assert "init.2: 'runs/first#1' holds baselines only" in lines[-1]
    routed = campaign_file(**plan, init=init[:1], space={"kind": "routing"})
    with pytest.raises(BadInput, match="is of kind parameters, this space's are not"):
        checked(routed, [], {})
    with pytest.raises(BadInput, match=r"init\.0: .runs/first. names no candidates"):
        checked(campaign_file(init=["runs/first"]), [], {})


def test_an_archive_from_before_a_key_was_there_goes_on(campaign_file, here, silent):
    run_campaign(campaign_file(budget__evaluations=2), observer=silent)
    run = here / "runs" / "tiny"
    begun = Archive(run / "archive.db").campaign["plan"]
    plan = {k: v for k, v in begun.items() if k != "init"}
    change(run, "UPDATE campaign SET plan = ?", (json.dumps(plan),))
    assert run_campaign(campaign_file(budget__evaluations=3), observer=silent)
    with pytest.raises(BadInput, match="init: differs from the campaign begun"):
        run_campaign(campaign_file(init=["runs/tiny#best"]), observer=silent)
