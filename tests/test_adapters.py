"""LoRA sources: the same weights as PEFT merges, and every misfit refused by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evomerge.archive import summary
from evomerge.campaign.run import run_campaign
from evomerge.config.validate import read_plan
from evomerge.errors import BadInput
from evomerge.export.candidates import export_candidate
from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS
from evomerge.merging.source_weights import SourceWeights
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT talks of tied weights
VARIANTS = {
    "plain": {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 6},
    "rank-stabilized": {"target_modules": ["v_proj"], "r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 32},
    },
    "embeddings": {"target_modules": ["embed_tokens", "o_proj"], "r": 3},
    "replaced": {"target_modules": ["up_proj"], "modules_to_save": ["norm"]},
}


def adapted(model, folder, options, seed=0):
    """Write a LoRA adapter with random factors; return the model with it merged, by PEFT."""
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(**options))
    for name, p in peft.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            p.data.normal_(std=0.1)
    peft.save_pretrained(folder)
    return peft.merge_and_unload()


@pytest.fixture
def lora(here):
    """An adapter of the tiny base, beside it."""
    model = AutoModelForCausalLM.from_pretrained(here / "base", dtype=torch.float32)
    adapted(model, here / "lora", VARIANTS["plain"])
    return here / "lora"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_are_those_that_peft_merges(here, variant):
    # of tied embeddings PEFT changes one of the two, which no tied model can be
    tied = variant != "embeddings"
    model = AutoModelForCausalLM.from_pretrained(
        here / "base", dtype=torch.float32, tie_word_embeddings=tied
    )
    model.save_pretrained(here / "wide")
    merged = adapted(model, here / "lora", VARIANTS[variant])
    source = open_source(f"{here / 'wide'}+{here / 'lora'}")
    assert source.adapter.factors and open_source(source.place).tensors == source.tensors
    weights = SourceWeights({"x": source}, torch.device("cpu"))
    wanted = merged.state_dict()
    changed = 0
    for name, stored in load_file(here / "wide" / "model.safetensors").items():
        ours = weights.tensor("x", name)
        torch.testing.assert_close(ours, wanted[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(ours, stored)
    assert changed == len({*source.adapter.factors, *source.adapter.replaced}) > 0


def test_tensors_stay_for_the_next_recipe_where_there_is_room(here):
    sources, name = {"a": open_source("a")}, "model.embed_tokens.weight"
    size = sources["a"].tensors[name].elements * 2
    for room, keep in ((None, True), (0, False), (size, True), (size - 1, False)):
        weights = SourceWeights(sources, torch.device("cpu"), room)
        assert weights.keeps(["a"]) == (room is None)
        with pytest.raises(KeyError), weights.read_once():
            once = weights.tensor("a", name)
            assert weights.tensor("a", name) is not once
            weights.tensor("a", "strange")
        first = weights.tensor("a", name)
        assert torch.equal(first, once)
        assert (weights.tensor("a", name) is first) == keep
        if room == size:  # the first that come stay, and no later one takes their place
            norm = weights.tensor("a", "model.norm.weight")
            assert weights.tensor("a", "model.norm.weight") is not norm
            assert weights.tensor("a", name) is first


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "ties"])
def test_merges_of_adapters_and_whole_models(here, method):
    """As merges of the models that PEFT makes of them, which the methods' own tests hold."""
    model = AutoModelForCausalLM.from_pretrained(here / "base", dtype=torch.float32)
    model.save_pretrained(here / "wide")
    names = [f"{here / 'wide'}+{here / 'x'}", f"{here / 'wide'}+{here / 'y'}", str(here / "a")]
    dense = [str(here / "dense x"), str(here / "dense y"), str(here / "a")]
    for seed, (folder, variant) in enumerate({"x": "plain", "y": "replaced"}.items()):
        model = AutoModelForCausalLM.from_pretrained(here / "wide")
        adapted(model, here / folder, VARIANTS[variant], seed).save_pretrained(dense[seed])
    base = str(here / "wide")
    weight = (0.7, -0.4, 0.2)[: METHODS.get(method).models]
    merged = []
    for models in (names, dense):
        opened = {n: open_source(n) for n in (base, *models)}
        merger = Merger(opened, dict.fromkeys(opened, ""))
        recipe = recipe_of(method, models, base, weight=weight, density=1.0)
        targets = {n: torch.empty(t.shape) for n, t in opened[base].tensors.items()}
        merger.fill(recipe, targets)
        for name, tensor in merger.stream(recipe):
            assert torch.equal(tensor, targets[name])
        merged.append(targets)
    for name, tensor in merged[0].items():
        torch.testing.assert_close(tensor, merged[1][name], rtol=1e-5, atol=1e-5)


def test_transposed_weights(tmp_path):
    """GPT-2 keeps its linear weights as (in, out)."""
    shape = {"vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape))
    model.save_pretrained(tmp_path / "model")
    options = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    merged = adapted(model, tmp_path / "lora", options).state_dict()
    source = open_source(f"{tmp_path / 'model'}+{tmp_path / 'lora'}")
    weights = SourceWeights({"x": source}, torch.device("cpu"))
    assert len(source.adapter.factors) == 6
    for name in source.tensors:
        torch.testing.assert_close(weights.tensor("x", name), merged[name], rtol=1e-5, atol=1e-6)


def test_a_campaign_over_an_adapter(campaign_file, lora, here, silent):
    """Its baseline is the model that PEFT merges, rounded once; the best exports and loads."""
    sources = {"base": "base", "models": {"a": "a", "l": {"model": "base", "adapter": "lora"}}}
    file = campaign_file(sources=sources, budget__evaluations=3)
    assert read_plan(file).sources.models["l"] == "base+lora"
    run_campaign(file, observer=silent)
    run = here / "runs" / "tiny"
    by_label = {r["label"]: r["id"] for r in summary.front(run)}
    export_candidate(run, here / "out", str(by_label["l"]), {}, True)
    model = AutoModelForCausalLM.from_pretrained(here / "base", dtype=torch.float32)
    wanted = PeftModel.from_pretrained(model, lora).merge_and_unload().state_dict()
    for name, ours in load_file(here / "out" / "model.safetensors").items():
        torch.testing.assert_close(ours.float(), wanted[name], rtol=2**-8, atol=1e-6)
    for candidate in summary.open_run(run).candidates(origin="search"):
        export_candidate(run, here / f"out{candidate.id}", str(candidate.id), {}, True)  # as scored
    export_candidate(run, here / "best", "best", {}, True)
    assert AutoModelForCausalLM.from_pretrained(here / "best").config.num_hidden_layers == 2


def test_the_hash_is_of_factors_and_their_scale(lora, here):
    name = f"{here / 'base'}+{lora}"
    before = digest(open_source(name)).sha256
    assert before != digest(open_source(str(here / "base"))).sha256
    other = shutil.copytree(lora, here / "other")
    assert digest(open_source(f"{here / 'base'}+{other}")).sha256 == before
    edit(other, lora_alpha=7)
    assert digest(open_source(f"{here / 'base'}+{other}")).sha256 != before


def test_infinite_factors_are_named(lora, here):
    tensors = load_file(lora / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    tensors[first][0, 0] = np.inf
    save_file(tensors, lora / "adapter_model.safetensors")
    (bad,) = digest(open_source(f"{here / 'base'}+{lora}")).not_finite
    assert "down_proj" in bad and bad.endswith(" A")


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file({change(n): t for n, t in load_file(file).items()}, file)


BROKEN = {
    "adapter_config.json is missing": lambda f: (f / "adapter_config.json").unlink(),
    "of type 'IA3', not LORA": lambda f: edit(f, peft_type="IA3"),
    "use_dora = True": lambda f: edit(f, use_dora=True),
    "bias = 'all'": lambda f: edit(f, bias="all"),
    "lora_alpha = 'much'": lambda f: edit(f, lora_alpha="much"),
    "lora_alpha = None": lambda f: edit(f, lora_alpha=None),
    "holds no weights": lambda f: (f / "adapter_model.safetensors").unlink(),
    "holds pickled weights only": lambda f: (f / "adapter_model.safetensors").rename(
        f / "adapter_model.bin"
    ),
    "is not a whole safetensors file": lambda f: (f / "adapter_model.safetensors").write_bytes(
        b"x" * 30
    ),
    "and missing in the model": lambda f: rename(f, lambda n: n.replace("layers.1", "layers.9")),
    "has one factor of": lambda f: rename(
        f, lambda n: n.replace("1.mlp.down_proj.lora_A", "0.mlp.down_proj.lora_A")
    ),
    "does not begin with base_model.model.": lambda f: rename(f, lambda n: n[5:]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_adapters_that_will_not_do(lora, here, message):
    BROKEN[message](lora)
    with pytest.raises(BadInput) as error:
        open_source(f"base+{lora}")
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{lora}: ") and message in line


def test_an_adapter_of_another_model_names_the_shapes(lora, here):
    from evomerge.testing import tiny_llama

    tiny_llama(here / "wider", 5, hidden=32)
    with pytest.raises(BadInput, match=r"does not fit the model: .* in the model"):
        open_source(f"wider+{lora}")
