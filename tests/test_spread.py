"""A model over several GPUs: what lies where, and that it is the same model.

There are no GPUs here: all devices are the processor, and nothing moves between them.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from evomerge.engines import ENGINES, EngineOptions
from evomerge.errors import BadInput
from evomerge.merging.merger import Merger
from evomerge.merging.spread import placement
from evomerge.recipes.parameters import single
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama


def on_meta(**changes):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 32}
    config = LlamaConfig(**(sizes | {"num_hidden_layers": 9} | changes))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("gpus", [2, 3, 4])
@pytest.mark.parametrize("tie", [True, False])
def test_every_tensor_lies_on_one_gpu_and_layers_in_their_order(gpus, tie):
    model = on_meta(tie_word_embeddings=tie)
    found = placement(model, gpus)
    of_parts = [name for name in found for _ in model.get_submodule(name).parameters()]
    assert len(of_parts) == len(list(model.named_parameters(remove_duplicate=False)))
    layers = [found[f"model.layers.{n}"] for n in range(9)]
    assert layers == sorted(layers) and set(layers) == set(range(gpus))
    assert (found["lm_head"] == found["model.embed_tokens"]) == tie
    # no GPU has more than its share by more than a layer, and what is tied to the first
    each = [0] * gpus
    for name, gpu in found.items():
        each[gpu] += sum(p.numel() for p in model.get_submodule(name).parameters())
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert max(each) - min(each) <= 2 * layer


def test_a_spread_model_gives_the_logits_of_a_whole_one(tmp_path):
    name = str(tiny_llama(tmp_path / "a", 0, layers=4))
    merger = Merger({name: open_source(name)}, {name: ""})
    options = EngineOptions("float32", gpus=2)
    engine = ENGINES.get("transformers").open(merger.sources[name], options)
    assert engine.direct == {}  # all is copied to where it lies
    digests = engine.become(merger, single(name, "bfloat16"))
    assert sorted(digests) == sorted(merger.sources[name].tensors)
    plain = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(engine.model(ids).logits, plain(ids).logits)
        said = engine.model.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(said, plain.generate(ids, max_new_tokens=4, do_sample=False))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_logits_of_one(tmp_path):
    name = str(tiny_llama(tmp_path / "a", 0, layers=4))
    merger = Merger({name: open_source(name)}, {name: ""}, "cuda")
    ids, logits = torch.arange(12, device="cuda:0")[None], []
    for gpus in (1, 2):
        options = EngineOptions("float32", "cuda", gpus=gpus)
        engine = ENGINES.get("transformers").open(merger.sources[name], options)
        engine.become(merger, single(name, "bfloat16"))
        with torch.inference_mode():
            logits.append(engine.model(ids).logits.to("cuda:0"))
        devices = {parameter.device for parameter in engine.model.parameters()}
        assert len(devices) == gpus
    assert torch.allclose(*logits, atol=1e-5)


@pytest.mark.parametrize(
    "workers, space, key",
    [
        ({"engine": "auto"}, "parameters", "workers.gpus_each: with engine: auto a model lies on"),
        ({"engine": "vllm-lora"}, "parameters", "workers.gpus_each: with engine: vllm-lora a"),
        ({}, "routing", "space.kind: layers of several models and evolved weights lie on one GPU"),
        ({"gpus_each": 1.5}, "parameters", "workers.gpus_each: a model is spread over whole GPUs"),
    ],
)
def test_what_cannot_be_spread_is_refused(campaign_file, workers, space, key):
    from evomerge.config.validate import read_plan

    changes = {} if space == "parameters" else {"space": {"kind": space}}
    fitness = [{"name": "said", "task": "generation.yaml", "metric": "exact_match"}]
    every = {"pool": "ray", "count": 1, "gpus_each": 2, **workers}
    with pytest.raises(BadInput) as caught:
        read_plan(campaign_file(workers=every, fitness=fitness, **changes))
    assert any(key in str(fault) for fault in caught.value.faults), caught.value
