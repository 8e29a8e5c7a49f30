"""Mixtures of experts out of dense ones, against the dense models that they are made of."""

import json
import math

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.export.moe_directory import moe_to
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama

PROMPTS = (["w1 w2 w3", "w4 w5"], ["w20 w21", "w22 w9 w11"], ["w7"])
CONFIGS = {"mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def dense(folder, kind, seed):
    """Save a tiny model of a type, with the tokenizer of `tiny_llama`."""
    if kind == "llama":
        return tiny_llama(folder, seed, dtype="float32", tie=False, layers=3)
    tiny_llama(folder, seed)
    config = CONFIGS[kind](
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


def plan(base, experts, **more):
    entries = [
        {"source_model": str(model), "positive_prompts": prompts}
        for model, prompts in zip(experts, PROMPTS, strict=False)
    ]
    return {"base_model": str(base), "experts": entries, **more}


def loaded(folder):
    model, said = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not said["missing_keys"] and not said["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_equal_experts_are_the_dense_model(tmp_path, kind):
    """Weights of the chosen experts add up to one, whoever they are."""
    model = dense(tmp_path / "base", kind, 0)
    data = plan(model, [model] * 3, experts_per_token=2, gate_mode="random")
    moe_to(data, tmp_path / "out")
    open_source(str(tmp_path / "out"))  # nothing is missing, or too much
    ids = torch.arange(4, 16)[None]
    with torch.inference_mode():
        wanted, found = loaded(model)(ids).logits, loaded(tmp_path / "out")(ids).logits
    assert torch.allclose(wanted, found, atol=1e-5) and wanted.std() > 0.1


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_layer_is_the_weighted_sum_of_the_chosen_experts(tmp_path, kind):
    models = [dense(tmp_path / str(seed), kind, seed) for seed in range(3)]
    moe_to(plan(models[0], models, experts_per_token=2), tmp_path / "out", shard_bytes=20_000)
    assert len([*(tmp_path / "out").glob("*.safetensors")]) > 2
    mixed, apart = loaded(tmp_path / "out"), [loaded(model) for model in models]
    layer = 1
    router = mixed.model.layers[layer].mlp.gate.weight.double()
    states = torch.randn(1, 5, 16)
    with torch.inference_mode():
        found = mixed.model.layers[layer].mlp(states)
        found = found[0] if isinstance(found, tuple) else found
        for token, state in enumerate(states[0]):
            logits = router @ state.double()
            shares, chosen = logits.softmax(0).topk(2)
            own = [apart[i].model.layers[layer].mlp(state) for i in chosen.tolist()]
            wanted = sum(s * e.double() for s, e in zip(shares / shares.sum(), own, strict=True))
            assert torch.allclose(found[0, token].double(), wanted, atol=1e-5)


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "cheap_embed"])
def test_routers_point_where_the_prompts_states_do(tmp_path, mode):
    """The states are worked out here from transformers' own pieces."""
    model = dense(tmp_path / "base", "llama", 0)
    data = plan(model, [model, model], gate_mode=mode)
    data["experts"][0]["negative_prompts"] = ["w9 w9"]
    moe_to(data, tmp_path / "out")
    live, tokenizer = loaded(model), AutoTokenizer.from_pretrained(model)

    def of(prompts, layer):
        found = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            seen = []
            norm = live.model.layers[layer].post_attention_layernorm
            hook = norm.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out[0]))
            with torch.inference_mode():
                live(ids)
                states = live.model.embed_tokens(ids)[0] if mode == "cheap_embed" else seen[0]
            hook.remove()
            found.append(states[-1] if mode == "hidden" else states.mean(0))
        return torch.stack(found).mean(0)

    mixed = loaded(tmp_path / "out")
    for layer in range(3):
        rows = mixed.model.layers[layer].mlp.gate.weight.detach()
        first = of(PROMPTS[0], layer) - of(["w9 w9"], layer)
        second = of(PROMPTS[1], layer)
        for row, wanted in zip(rows, (first, second), strict=True):
            assert torch.allclose(row, wanted / wanted.norm(), atol=1e-5)
            assert math.isclose(float(row.norm()), 1.0, abs_tol=1e-5)


def test_the_command_takes_mergekits_file(tmp_path):
    models = [dense(tmp_path / str(seed), "llama", seed) for seed in range(2)]
    file = tmp_path / "moe.yml"
    file.write_text(yaml.safe_dump(plan(models[0], models, dtype="bfloat16")))
    done = CliRunner().invoke(main, ["merge", str(file), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"] and config["num_local_experts"] == 2
    again = yaml.safe_load((tmp_path / "out" / "mergekit_moe_config.yml").read_text())
    assert again["experts"][1]["positive_prompts"] == PROMPTS[1]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w1 w2")["input_ids"]
    done = CliRunner().invoke(main, ["merge", str(file), str(tmp_path / "x"), "--as-adapter"])
    assert done.exit_code == 2 and "a mixture of experts is no adapter" in done.output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"experts_per_token": 3}, "experts_per_token: 3 are more than the 2 experts"),
        ({"gate_mode": "uniform_random"}, "gate_mode: 'uniform_random'"),
        ({"shared_experts": []}, "unknown key 'shared_experts'"),
        ({"base_model": "absent"}, "base_model: there is no directory 'absent'"),
    ],
)
def test_faults_name_the_key(tmp_path, change, told):
    models = [dense(tmp_path / str(seed), "llama", seed) for seed in range(2)]
    with pytest.raises(BadInput) as error:
        moe_to(plan(models[0], models) | change, tmp_path / "out")
    assert told in str(error.value) and not (tmp_path / "out").exists()


def test_a_prompt_without_tokens_is_told(tmp_path):
    models = [dense(tmp_path / str(seed), "llama", seed) for seed in range(2)]
    data = plan(models[0], models)
    data["experts"][1]["negative_prompts"] = [" "]
    with pytest.raises(BadInput, match=r"experts\.1\.negative_prompts: ' ' has no token"):
        moe_to(data, tmp_path / "out")


def test_prompts_must_tell_experts_apart(tmp_path):
    data = plan("a", ["a", "b"])
    data["experts"][1] |= {"positive_prompts": PROMPTS[0]}
    with pytest.raises(BadInput, match="all experts have the same prompts"):
        moe_to(data, tmp_path / "out")
    del data["experts"][1]["positive_prompts"]
    with pytest.raises(BadInput, match=r"experts\.1\.positive_prompts: is missing; write texts"):
        moe_to(data, tmp_path / "out")
