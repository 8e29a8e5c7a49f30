"""Scores of quantized models: as torchao's own quantization of the exported directory has them."""

import numpy as np
import pytest
import torch
from conftest import FITNESS
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from evomerge.archive.archive import Archive
from evomerge.archive.scored_as import quantized
from evomerge.campaign import engine_check
from evomerge.campaign.build import checked_campaigns, read_and_check
from evomerge.campaign.run import run_campaign
from evomerge.engines import EngineOptions
from evomerge.engines.transformers_engine import TransformersEngine
from evomerge.errors import BadInput
from evomerge.export.candidates import export_candidate
from evomerge.export.model_directory import merge_to
from evomerge.merging.live_model import FlatWeights
from evomerge.merging.merger import Merger
from evomerge.merging.quantized_live import QuantizedLive, linear_layers, quantization
from evomerge.merging.source_weights import flattened
from evomerge.recipes.parameters import uniform
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama

torchao = pytest.importorskip("torchao")

KINDS = ["int8", "int4"]
SEARCH = {"heldout": 0.5, "budget__evaluations": 4, "finals": 1, "workers": {"quantize": "int4"}}


def by_torchao(folder, kind):
    """A model as torchao quantizes it, layer by layer, by its own function on its own classes."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            config, quantize_ = quantization(kind, module.in_features)
            quantize_(nn.Sequential(module), config)
            assert type(module.weight).__module__.startswith("torchao.")
    return model.eval()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def merged(request, tmp_path_factory):
    """(folder of two models' average, live engines filled with it by kind, ids to read)."""
    folder, dtype = tmp_path_factory.mktemp("quantized"), request.param
    base = tiny_llama(folder / "a", 0, hidden=64, near=None)
    tiny_llama(folder / "b", 1, hidden=64, near=base)
    names = (str(folder / "a"), str(folder / "b"))
    recipe = uniform(names, dtype)
    merge_to(recipe, folder / "out")
    sources = {name: open_source(name) for name in names}
    engines = {}
    for kind in KINDS:
        options = EngineOptions(dtype, quantize=kind)
        engines[kind] = TransformersEngine.open(sources[names[0]], options)
        merger = Merger(sources, dict.fromkeys(names, ""))
        merger.prepare([recipe])
        # twice, as what is rounded is not to be merged again
        digests = [engines[kind].become(merger, recipe) for _ in range(2)]
        assert all(np.array_equal(digests[0][name], digests[1][name]) for name in digests[0])
    ids = torch.arange(24).reshape(2, 12)
    return folder / "out", engines, ids


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_logits_are_those_of_torchao_s_quantized_model(merged, kind):
    folder, engines, ids = merged
    ours, theirs = engines[kind].model(ids).logits, by_torchao(folder, kind)(ids).logits
    assert torch.equal(ours, theirs)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert not torch.equal(ours, plain(ids).logits)


@torch.inference_mode()
def test_logits_are_those_of_a_model_that_transformers_loads_quantized(merged):
    """By its own choice of layers."""
    folder, engines, ids = merged
    config, _ = quantization("int8", 64)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", quantization_config=TorchAoConfig(config)
    )
    rounded = [n for n, p in theirs.named_parameters() if type(p).__module__.startswith("torchao")]
    assert len(rounded) == len(engines["int8"].live.layers)
    assert torch.equal(theirs(ids).logits, by_torchao(folder, "int8")(ids).logits)


def test_embeddings_and_head_stay_as_they_are(merged):
    folder, engines, _ = merged
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    for kind in KINDS:
        found = engines[kind].model.state_dict()
        kept = {name for name in plain if type(found[name]) is torch.Tensor}
        same = {name for name in kept if torch.equal(plain[name], found[name])}
        assert {n for n in plain if "embed" in n or "norm" in n or "lm_head" in n} == same


@torch.inference_mode()
def test_evolved_weights_are_quantized_as_merged_ones_are(merged):
    folder, engines, ids = merged
    source = open_source(str(folder))
    for kind in KINDS:
        wanted = engines[kind].model(ids).logits
        flat = FlatWeights(engines[kind].live, source)
        flat.load(np.zeros(sum(t.elements for t in source.tensors.values()), np.float32))
        assert not engines[kind].model(ids).logits.any()
        flat.load(flattened(source))
        assert torch.equal(engines[kind].model(ids).logits, wanted)


def test_a_model_without_linear_layers_is_refused():
    live = type("Live", (), {"model": nn.Embedding(2, 2), "tokenizer": None, "direct": {}})
    with pytest.raises(BadInput, match=r"workers.quantize: Embedding has no linear layer"):
        QuantizedLive(live, "int8")
    assert linear_layers(nn.Embedding(2, 2)) == []


@pytest.fixture
def run(campaign_file, here, silent):
    """A finished campaign that was scored in four bits."""
    run_campaign(campaign_file(**SEARCH), observer=silent)
    return here / "runs" / "tiny"


def test_a_campaign_is_scored_quantized_and_exported_whole(run, here, campaign_file, silent):
    archive = Archive(run / "archive.db")
    said = f"int4 by torchao {torchao.__version__}"
    assert archive.quantized == quantized(run) == said
    best = archive.best()
    done = export_candidate(run, here / "out", "best")  # whose checksum is compared
    assert done.compared == f"as scored, scored in {said}"
    assert (
        f"with weights in {said}, which those here are not" in (here / "out/README.md").read_text()
    )

    # held-out and search scores are those of the quantized export, item by item
    fitness = {}
    exec(FITNESS, fitness)
    tokenizer = AutoTokenizer.from_pretrained(here / "out")
    with torch.inference_mode():
        theirs = fitness["score"](by_torchao(here / "out", "int4"), tokenizer, fitness["items"]())
    for split in ("search", "heldout"):
        ordinals = list(archive.item_hashes("likely", split))
        ours = archive.item_scores(best, "likely", split)
        assert np.allclose(ours, np.array(theirs)[ordinals], atol=1e-6)

    # and not those of the model as it is
    file = campaign_file(**SEARCH | {"workers": {}})
    run_campaign(file, directory=here / "plain", observer=silent)
    plain = Archive(here / "plain" / "archive.db")
    assert plain.quantized == ""
    for baseline in plain.baselines():
        assert plain.means(baseline.id) != archive.means(baseline.id)
        checksums = [a.outcome(baseline.id)["weights_checksum"] for a in (plain, archive)]
        assert checksums[0] == checksums[1]

    # a resume keeps to it
    for workers in ({}, {"quantize": "int8"}):
        file = campaign_file(**SEARCH | {"workers": workers, "budget__evaluations": 6})
        with pytest.raises(BadInput, match=r"workers\.quantize"):
            run_campaign(file, observer=silent)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"workers": {"quantize": "int8", "engine": "vllm"}}, "the engine vllm takes weights as"),
        ({"workers": {"quantize": "int3"}}, "workers.quantize"),
        (
            {
                "workers": {"quantize": "int8"},
                "space": {"kind": "routing"},
                "sources": {"models": {"a": "a", "b": "b"}},
            },
            r"workers\.quantize: routed candidates are the sources' own layers",
        ),
    ],
)
def test_what_cannot_be_scored_quantized(campaign_file, changes, said):
    with pytest.raises(BadInput, match=said):
        checked_campaigns(read_and_check(campaign_file(**changes), [], None), None, True)


def test_a_library_that_is_not_installed_is_named_with_its_extra(campaign_file, monkeypatch):
    monkeypatch.setattr(engine_check, "find_spec", lambda name: None)
    plan = read_and_check(campaign_file(workers={"quantize": "int8"}), [], None)
    with pytest.raises(BadInput, match=r"torchao is not installed; pip install .evomerge\[quant"):
        checked_campaigns(plan, None, True)
