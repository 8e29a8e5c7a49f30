"""Sentence embedders: merged with the modules behind the model, exported in the same layout."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertModel

from evomerge.campaign.run import run_campaign
from evomerge.errors import BadInput
from evomerge.export.candidates import export_candidate
from evomerge.export.model_directory import merge_to
from evomerge.merging.live_model import open_live_model
from evomerge.merging.live_sentence import without_modules
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.sources.compatibility import mismatches
from evomerge.sources.libraries import loading_call
from evomerge.sources.source import open_source
from evomerge.testing.encoders import tiny_bert

sentence_transformers = pytest.importorskip("sentence_transformers")
TEXTS = ["w0 w1 w2", "w3 w9 w2 w27", "w5"]


def tiny_embedder(folder, seed, near=None, size=8):
    """A BERT with mean pooling, a dense layer of 8 and normalized vectors."""
    tiny_bert(folder / "bert", seed, near=near, class_name="BertModel")
    modules = pytest.importorskip("sentence_transformers.models")  # there before version 6 too
    inner = modules.Transformer(str(folder / "bert"))
    torch.manual_seed(seed)
    parts = [inner, modules.Pooling(16), modules.Dense(16, size), modules.Normalize()]
    model = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    model.save(str(folder / "embedder"), create_model_card=False)
    return folder / "embedder"


@pytest.fixture(scope="module")
def embedders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedders")
    for seed, name in enumerate("ab"):
        (folder / name).mkdir()
        near = None if name == "a" else folder / "a" / "bert"
        tiny_embedder(folder / name, seed, near).rename(folder / f"{name}{name}")
    return folder


def recipe_of(names, weights=(0.3, 0.7)):
    group = Group(None, None, {"weight": weights})
    return ParametersRecipe("linear", tuple(map(str, names)), (group,), dtype="float32")


def test_a_merge_loads_as_a_sentence_transformer(embedders, tmp_path):
    """Dense layer and all, against float64 by hand and the vectors of the live model."""
    names = [str(embedders / name) for name in ("aa", "bb")]
    recipe = recipe_of(names)
    sources = {name: open_source(name) for name in names}
    assert mismatches(list(sources.values())) == []
    assert {"2_Dense.linear.weight", "2_Dense.linear.bias"} <= sources[names[0]].tensors.keys()
    merge_to(recipe, tmp_path / "out")
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    live = open_live_model(sources[names[0]], "float32")
    merger = Merger(sources, dict.fromkeys(names, ""))
    assert set(merger.fill(recipe, live.direct)) == set(sources[names[0]].tensors)
    assert live.model.encode(TEXTS).shape == (3, 8)
    assert (live.model.encode(TEXTS) == loaded.encode(TEXTS)).all()
    a, b = (load_file(embedders / name / "2_Dense" / "model.safetensors") for name in ("aa", "bb"))
    for name, tensor in load_file(tmp_path / "out" / "2_Dense" / "model.safetensors").items():
        by_hand = 0.3 * a[name].double() + 0.7 * b[name].double()
        torch.testing.assert_close(tensor.double(), by_hand, rtol=1e-6, atol=1e-6)
    assert loading_call(tmp_path / "out") == f'SentenceTransformer("{tmp_path / "out"}")'
    assert "library_name: sentence-transformers" in (tmp_path / "out" / "README.md").read_text()
    for place in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json"):
        assert (tmp_path / "out" / place).read_bytes() == (embedders / "aa" / place).read_bytes()
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == load_file(embedders / "aa" / "model.safetensors").keys()
    # transformers alone reads the trunk
    model = BertModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.state_dict()["pooler.dense.bias"], written["pooler.dense.bias"])
    inner = without_modules(sources[names[0]])
    assert len(inner.tensors) == len(written) and inner.form == "transformers"


def test_a_trunk_is_merged_between_embedders_of_other_sizes(embedders, tmp_path):
    """With `:trunk` the modules behind the model stay the first one's."""
    (tmp_path / "wide").mkdir()
    wide = tiny_embedder(tmp_path / "wide", 2, embedders / "a" / "bert", size=12)
    whole = [open_source(str(place)) for place in (embedders / "aa", wide)]
    assert "2_Dense.linear.weight" in mismatches(whole)[0].wrong
    names = [f"{place}:trunk" for place in (embedders / "aa", wide)]
    assert mismatches([open_source(name) for name in names]) == []
    merge_to(recipe_of(names), tmp_path / "out")
    mine, first = (
        load_file(place / "2_Dense" / "model.safetensors")
        for place in (tmp_path / "out", embedders / "aa")
    )
    assert all(torch.equal(mine[name], first[name]) for name in first)
    assert sentence_transformers.SentenceTransformer(str(tmp_path / "out")).encode("w1").size == 8


def test_a_campaign_over_embedders(embedders, tmp_path, silent):
    (tmp_path / "near.py").write_text(
        "def items():\n"
        "    return [[f'w{i % 27}', f'w{(i * 5) % 27} w{i % 27}'] for i in range(24)]\n\n"
        "def score(model, tokenizer, items):\n"
        "    one, two = (model.encode([pair[n] for pair in items]) for n in (0, 1))\n"
        "    return (one * two).sum(1).tolist()\n"
    )
    file = tmp_path / "campaign.yaml"
    space = {"kind": "parameters", "method": "linear", "module_groups": ["2_Dense"]}
    space |= {"outside": "first", "axes": {"weight": {"low": 0.0, "high": 1.0}}}
    mapping = {
        "name": "embedders",
        "sources": {"models": {name: str(embedders / (name * 2)) for name in "ab"}},
        "space": space,
        "controller": {"kind": "random"},
        "fitness": [{"name": "near", "function": str(tmp_path / "near.py")}],
        "budget": {"evaluations": 3},
    }
    file.write_text(yaml.safe_dump(mapping))
    assert run_campaign(file, directory=tmp_path / "run", observer=silent)
    assert export_candidate(tmp_path / "run", tmp_path / "out", "best").compared == "as scored"
    models = {"first": f"{tmp_path / 'run'}#best", "b": str(embedders / "bb")}
    file.write_text(yaml.safe_dump(mapping | {"sources": {"models": models}}))
    assert run_campaign(file, directory=tmp_path / "again", observer=silent)


def test_a_strangers_modules_run_no_code(embedders, tmp_path):
    def stranger(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(embedders / "aa", folder)
        modules = json.loads((folder / "modules.json").read_text())
        (folder / "modules.json").write_text(json.dumps(change(modules, folder) or modules))
        with pytest.raises(BadInput) as caught:
            open_source(str(folder))
        return str(caught.value)

    def own_code(modules, folder):
        modules[2]["type"] = "my_modules.Dense"

    assert "whose code is not run" in stranger(own_code)

    def elsewhere(modules, folder):
        modules[2]["path"] = "../other"

    assert "has a module at '../other'" in stranger(elsewhere)

    def pickled(modules, folder):
        file = folder / "2_Dense" / "model.safetensors"
        file.rename(file.parent / "pytorch_model.bin")

    assert "holds pickled weights only" in stranger(pickled)
    assert "lists no modules" in stranger(lambda modules, folder: {"a": 1})

    def moved(modules, folder):
        modules[0]["path"] = "0_Transformer"

    assert "a folder of its own" in stranger(moved)
