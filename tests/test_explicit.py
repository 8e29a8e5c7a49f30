"""Models that a function makes, and individuals whose weights evolve."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import assert_killed_and_resumed_alike
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.merging.lineage_weights import Pedigree, ancestry, born, expanded, weights_of
from evomerge.recipes.lineage import Birth, ExplicitRecipe
from evomerge.recipes.parameters import single
from evomerge.recipes.parse import parse_recipe
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.sources.trust import Trust

NET = """
import torch

def network():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

def broken():
    return 1 / 0

def counting():
    return torch.nn.BatchNorm1d(3)

def tied():
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    second.weight = first.weight
    return torch.nn.Sequential(first, second)

def leaves():
    raise SystemExit(0)

def strided():
    module = network()
    module[0].weight = torch.nn.Parameter(torch.randn(3, 4).T)
    return module

def items():
    return [[i % 5 / 5, i % 7 / 7, i % 3 / 3, i % 2] for i in range(40)]

def score(model, tokenizer, items):
    assert tokenizer is None
    data = torch.tensor(items)
    return (model(data[:, :3]).argmax(dim=1) == data[:, 3]).float()
"""
OWN = Trust(functions=True)

PLAN = {
    "name": "evolved",
    "seed": 3,
    "sources": {
        "models": {x: {"factory": "net.py:network", "seed": i} for i, x in enumerate("ab")}
    },
    "space": {"kind": "explicit", "sigma": 0.3},
    "controller": {"kind": "niches", "population": 5, "warmup": 0},
    "fitness": [{"name": "accuracy", "function": "net.py"}],
    "budget": {"evaluations": 60},
    "workers": {"pool": "inline", "threads": 1},
    "finals": 2,
}


@pytest.fixture
def net(here):
    (here / "net.py").write_text(NET)
    (here / "evolved.yaml").write_text(yaml.safe_dump(PLAN))
    return here


def test_a_child_is_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50)).astype(np.float32)
    child = born(a, b, Birth((0, 1), 0.3, 20, 0.0, 0), slerp=True)
    wide = a.astype(float), b.astype(float)
    angle = np.arccos(wide[0] @ wide[1] / np.linalg.norm(wide[0]) / np.linalg.norm(wide[1]))
    for part, t in ((slice(0, 20), 0.3), (slice(20, 50), 0.7)):
        shares = np.sin([(1 - t) * angle, t * angle]) / np.sin(angle)
        wanted = shares[0] * wide[0][part] + shares[1] * wide[1][part]
        np.testing.assert_allclose(child[part], wanted, rtol=1e-5, atol=1e-6)
    noisy = born(a, b, Birth((0, 1), 0.3, 20, 0.5, 7), slerp=True) - child
    assert abs(noisy.std() - 0.5) < 0.15 and abs(noisy.mean()) < 0.25
    again = born(a, b, Birth((0, 1), 0.3, 20, 0.5, 8), slerp=True) - child
    assert not np.array_equal(noisy, again)
    clone = born(a, a, Birth((0, 0), 0.3, 20, 0.0, 0), slerp=True)
    np.testing.assert_allclose(clone, a, rtol=1e-6)


@given(
    births=st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 99), st.floats(0, 1), st.integers(0, 9)),
        min_size=1,
        max_size=30,
    ),
    keep=st.integers(0, 5),
)
def test_a_lineage_alone_or_in_an_archive_gives_the_same_weights(births, keep):
    hashes = {"x": "1" * 64, "y": "2" * 64}
    seeds = {
        m: np.random.default_rng(i).normal(size=9).astype(np.float32) for i, m in enumerate("xy")
    }
    archive = {single(m, "float32").id(hashes): single(m, "float32") for m in "xy"}
    bodies = {own: seeds[r.models[0]] for own, r in archive.items()}
    pedigree = Pedigree(seeds.__getitem__, archive.__getitem__)
    for number, (first, second, mix, split) in enumerate(births):
        ids = list(archive)
        parents = ids[first % len(ids)], ids[second % len(ids)]
        child = ExplicitRecipe(("x", "y"), (Birth(parents, mix, split, 0.1, number),), "layout")
        child = parse_recipe(json.loads(json.dumps(child.to_json())))
        own = child.id(hashes)
        bodies[own] = born(bodies[parents[0]], bodies[parents[1]], child.births[0], True)
        archive[own] = child
        if number % 6 <= keep:  # some are asked for later, when their parents are forgotten
            assert np.array_equal(pedigree.weights(own, child), bodies[own])
    alone = expanded(ancestry(own, child, archive.__getitem__))
    alone = parse_recipe(json.loads(json.dumps(alone.to_json())))
    assert alone.id(hashes) == own
    assert np.array_equal(weights_of(alone, seeds.__getitem__), bodies[own])
    fresh = Pedigree(seeds.__getitem__, archive.__getitem__)
    assert np.array_equal(fresh.weights(own, child), bodies[own])


def test_a_seed_always_gives_the_same_module(net):
    first, again, other = (open_source(f"net.py:network@{n}", OWN) for n in (1, 1, 2))
    assert digest(first) == digest(again) != digest(other)
    torch.manual_seed(1)
    import importlib.util

    spec = importlib.util.spec_from_file_location("net", net / "net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, tensor in module.network().state_dict().items():
        stored = load_file(first.path / "model.safetensors")[name]
        assert torch.equal(stored, tensor)
    assert digest(open_source(first.place, OWN)) == digest(first)  # wherever it is opened from


def test_evolution_exports_what_it_scored_and_resumes(net, silent):
    assert run_campaign(net / "evolved.yaml", observer=silent)
    archive = Archive(net / "runs/evolved/archive.db")
    (seeds, best) = [], archive.means(archive.best())["accuracy"]
    for c in archive.baselines():
        seeds.append(archive.means(c.id)["accuracy"])
    assert best > max(seeds)
    last = archive.candidates(origin="search")[-1].id
    for which in ("best", str(last)):
        done = CliRunner().invoke(
            main, ["export", "runs/evolved", which, "--pick", which, "--trust-code"]
        )
        assert done.exit_code == 0 and "as scored" in done.output, done.output
    done = CliRunner().invoke(main, ["merge", f"{last}/recipe.json", "again", "--trust-code"])
    assert done.exit_code == 0, done.output
    again = Path("again/model.safetensors").read_bytes()
    assert again == Path(f"{last}/model.safetensors").read_bytes()
    assert CliRunner().invoke(main, ["show", "runs/evolved", str(last)]).exit_code == 0
    assert run_campaign(net / "evolved.yaml", settings=["budget.evaluations=70"], observer=silent)
    assert archive.proposed() == 70 and not archive.counts()["failed"]


def test_modules_that_are_merged_are_scored_as_modules(net, silent):
    save_file(open_like(net, 5), net / "c.safetensors")
    models = {
        "a": {"factory": "net.py:network", "seed": 1},
        "c": {"factory": "net.py:network", "weights": "c.safetensors"},
    }
    plan = PLAN | {"sources": {"models": models}, "space": {"kind": "mixture"}, "name": "mixed"}
    (net / "mixed.yaml").write_text(yaml.safe_dump(plan))
    assert run_campaign(net / "mixed.yaml", settings=["budget.evaluations=12"], observer=silent)
    archive = Archive(net / "runs/mixed/archive.db")
    assert archive.counts()["ok"] == 15


def open_like(folder, seed):
    source = open_source(f"{folder / 'net.py'}:network@{seed}", OWN)
    return load_file(source.path / "model.safetensors")


def test_killed_and_resumed_evolves_the_same(net):
    points = ["propose:after:15", "record:after:22", "score:before:30"]
    assert_killed_and_resumed_alike(Path("evolved.yaml"), points)


@pytest.mark.parametrize(
    ("entry", "message"),
    {
        "nothing": ({"factory": "net.py:network"}, "a module is {factory: FILE.py:function"),
        "both": (
            {"factory": "net.py:network", "seed": 1, "weights": "x"},
            "a module is {factory: FILE.py:function",
        ),
        "nowhere": ({"factory": "gone.py:network", "seed": 1}, "gave no torch module|gone.py"),
        "function": ({"factory": "net.py:nothing", "seed": 1}, "net.py:nothing gave no torch"),
        "broken": ({"factory": "net.py:broken", "seed": 1}, "division by zero"),
        "file": ({"factory": "net.py:network", "weights": "no.safetensors"}, "no.safetensors"),
        "integers": ({"factory": "net.py:counting", "seed": 1}, "num_batches_tracked has dtype"),
        "tied": ({"factory": "net.py:tied", "seed": 1}, "are one tensor; register it once"),
        "leaves": ({"factory": "net.py:leaves", "seed": 1}, "gave no torch module"),
        "other": (
            {"factory": "net.py:nothing", "weights": "one.safetensors"},
            "net.py:nothing gave",
        ),
        "shape": ({"factory": "net.py:network", "weights": "odd.safetensors"}, r"\(2, 2\) in the"),
    }.values(),
)
def test_what_makes_no_module_is_said(net, silent, entry, message):
    save_file({"0.weight": torch.zeros(2, 2)}, net / "odd.safetensors")
    save_file(open_like(net, 5), net / "one.safetensors")
    models = {"a": {"factory": "net.py:network", "seed": 1}, "b": entry}
    (net / "evolved.yaml").write_text(yaml.safe_dump(PLAN | {"sources": {"models": models}}))
    with pytest.raises(BadInput, match=message):
        run_campaign(net / "evolved.yaml", observer=silent)


def test_a_function_that_changes_is_another_source(net, silent):
    save_file(open_like(net, 5), net / "one.safetensors")
    models = {x: {"factory": "net.py:network", "weights": "one.safetensors"} for x in "ab"}
    models["b"] = {"factory": "net.py:network", "seed": 1}
    (net / "evolved.yaml").write_text(yaml.safe_dump(PLAN | {"sources": {"models": models}}))
    assert run_campaign(net / "evolved.yaml", settings=["budget.evaluations=3"], observer=silent)
    (net / "net.py").write_text(NET.replace("ReLU", "Tanh"))
    with pytest.raises(BadInput, match="has changed: sha256"):
        run_campaign(net / "evolved.yaml", settings=["budget.evaluations=5"], observer=silent)


@pytest.mark.parametrize("kind", ["explicit", "mixture"])
def test_weights_in_any_order_of_memory_are_filled(net, silent, kind):
    models = {x: {"factory": "net.py:strided", "seed": i} for i, x in enumerate("ab")}
    plan = PLAN | {"sources": {"models": models}, "space": {"kind": kind}, "name": kind}
    (net / "evolved.yaml").write_text(yaml.safe_dump(plan))
    assert run_campaign(net / "evolved.yaml", settings=["budget.evaluations=8"], observer=silent)
    archive = Archive(net / "runs" / kind / "archive.db")
    assert archive.counts()["ok"] == 11
    done = CliRunner().invoke(
        main, ["export", f"runs/{kind}", "out", "--pick", "11", "--trust-code"]
    )
    assert done.exit_code == 0 and "as scored" in done.output, done.output


def test_a_candidate_of_modules_is_a_source(net, silent):
    assert run_campaign(net / "evolved.yaml", settings=["budget.evaluations=6"], observer=silent)
    models = {"old": "runs/evolved#best", "b": {"factory": "net.py:network", "seed": 9}}
    plan = PLAN | {"sources": {"models": models, "trust_remote_code": True}, "name": "again"}
    (net / "again.yaml").write_text(yaml.safe_dump(plan))
    assert run_campaign(net / "again.yaml", settings=["budget.evaluations=4"], observer=silent)
    before, after = (Archive(net / f"runs/{n}/archive.db") for n in ("evolved", "again"))
    (old,) = [c.id for c in after.baselines() if c.label == "old"]
    assert after.means(old) == before.means(before.best())


def test_births_that_grow_beyond_bounds_are_refused(net):
    for path, value in (((1,), 1.5), ((1,), -0.1), ((3,), -1.0), ((4,), 2**130)):
        birth = [[0, 1], 0.5, 5, 0.1, 7]
        birth[path[0]] = value
        recipe = ExplicitRecipe(("a", "b"), (Birth((0, 1), 0.5, 5, 0.1, 7),), "x").to_json()
        with pytest.raises(BadInput, match=r"is not .*parent, parent.*sigma, seed"):
            parse_recipe(recipe | {"births": [birth]})


def test_tasks_are_for_language_models(net, silent):
    fitness = [{"name": "t", "task": "choice.yaml", "metric": "acc"}]
    (net / "evolved.yaml").write_text(yaml.safe_dump(PLAN | {"fitness": fitness}))
    with pytest.raises(BadInput, match="questions are for language models"):
        run_campaign(net / "evolved.yaml", observer=silent)
