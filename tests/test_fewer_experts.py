"""Mixtures with fewer experts: merging copies of one changes nothing; the rest by hand."""

import itertools
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_aligning import logits
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.aligning.expert_groups import Asked, from_texts, group
from evomerge.aligning.expert_layers import COUNTED_AS, expert_layers, expert_tensor
from evomerge.aligning.fewer_experts import shrink
from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama
from evomerge.testing.tiny import tiny_tokenizer

KINDS = sorted(COUNTED_AS)
NEURONS = 4


def mixture(folder, kind, seed=0, experts=4, per_token=2, **more):
    """Save a random mixture in float64, with a tokenizer."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=32,
        hidden_size=16,
        intermediate_size=NEURONS,
        moe_intermediate_size=NEURONS,
        shared_expert_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=experts,
        num_local_experts=experts,
        num_experts_per_tok=per_token,
        pad_token_id=0,
        **more,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.5 * drawn + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def with_copies(folder, out, copies, routers=True):
    """Save a mixture in which expert j is expert copies[j], its neurons in another order."""
    stored = load_file(folder / "model.safetensors")
    changed = {}
    for name, tensor in stored.items():
        found = expert_tensor(name)
        if found is not None:
            tensor = stored[found.of(copies[found.number])]
            # the same order for the expert's three matrices
            torch.manual_seed(1000 + found.number)
            order = torch.randperm(NEURONS)
            tensor = tensor[:, order] if found.is_down else tensor[order]
        elif routers and name.endswith(("mlp.gate.weight", "block_sparse_moe.gate.weight")):
            tensor = tensor[copies]
        changed[name] = tensor.contiguous().clone()
    out.mkdir()
    for file in folder.glob("*.json"):
        (out / file.name).write_bytes(file.read_bytes())
    save_file(changed, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("router", ["dominant", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_experts_are_merged_without_a_trace(kind, router, tmp_path):
    """Two of each, asked for alike: a token that got both copies gets the one that is left."""
    model = mixture(tmp_path / "plain", kind)
    doubled = with_copies(model, tmp_path / "doubled", [0, 1, 1, 0])
    shrunk = shrink(str(doubled), tmp_path / "out", experts=2, per_token=1, router=router)
    assert shrunk.layers[0]["groups"] == [
        {"dominant": shrunk.layers[0]["groups"][i]["dominant"], "members": members}
        for i, members in enumerate(sorted([[0, 3], [1, 2]], key=lambda m: m[0]))
    ]
    assert shrunk.in_order == pytest.approx(1.0) and shrunk.before_order < 0.9
    found, wanted = logits(tmp_path / "out"), logits(doubled)
    # routers' shares are worked out in float32, whatever the model's dtype is
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5) and wanted.std() > 0.1
    assert len(expert_layers(open_source(str(tmp_path / "out")))[0].matrices) == 3


def test_copies_of_one_expert_are_one_whatever_routers_say(tmp_path):
    """Mixtral's shares add up to one."""
    model = mixture(tmp_path / "plain", "mixtral")
    copies = with_copies(model, tmp_path / "copies", [2, 2, 2, 2], routers=False)
    shrink(str(copies), tmp_path / "out", experts=3)
    assert torch.allclose(logits(tmp_path / "out"), logits(copies), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_experts_as_before_are_the_same_model(kind, tmp_path):
    model = mixture(tmp_path / "plain", kind)
    shrink(str(model), tmp_path / "out", experts=4)
    one, other = (load_file(tmp_path / f / "model.safetensors") for f in ("plain", "out"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_layers_without_experts_stay_as_they_are(tmp_path):
    model = mixture(tmp_path / "plain", "qwen2_moe", mlp_only_layers=[0])
    shrunk = shrink(str(model), tmp_path / "out", experts=2)
    assert len(shrunk.layers) == 1
    one, other = (load_file(tmp_path / f / "model.safetensors") for f in ("plain", "out"))
    name = "model.layers.0.mlp.gate_proj.weight"
    assert torch.equal(one[name], other[name]) and logits(tmp_path / "out").isfinite().all()


@pytest.mark.parametrize("router", ["dominant", "mean"])
def test_a_group_is_the_average_by_usage_of_experts_in_the_best_order(router, tmp_path):
    """Every one of 4! orders is tried here, in float64."""
    model = mixture(tmp_path / "plain", "mixtral", experts=3)
    usage = [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]
    (tmp_path / "usage.json").write_text(json.dumps(usage))
    shrunk = shrink(
        str(model), tmp_path / "out", experts=1, usage=tmp_path / "usage.json", router=router
    )
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("plain", "out"))
    for layer, (shares, dominant) in enumerate(zip(usage, (0, 2), strict=True)):
        (found,) = shrunk.layers[layer]["groups"]
        assert found == {"dominant": dominant, "members": [0, 1, 2]}
        block = f"model.layers.{layer}.block_sparse_moe."

        def neurons(expert, block=block):
            w1, w2, w3 = (before[f"{block}experts.{expert}.w{i}.weight"] for i in (1, 2, 3))
            return torch.cat([w1, w2.T, w3], 1)

        wanted = torch.zeros(NEURONS, 48, dtype=torch.float64)
        for expert, share in enumerate(shares):
            orders = map(list, itertools.permutations(range(NEURONS)))
            best = max(orders, key=lambda o, e=expert: (neurons(dominant) * neurons(e)[o]).sum())
            assert expert != dominant or best == [*range(NEURONS)]
            wanted += share * neurons(expert)[best]
        w1, w2, w3 = (after[f"{block}experts.0.w{i}.weight"] for i in (1, 2, 3))
        assert torch.allclose(torch.cat([w1, w2.T, w3], 1), wanted, atol=1e-12)
        rows = before[f"{block}gate.weight"]
        mean = torch.tensor(shares, dtype=torch.float64) @ rows
        row = rows[dominant] if router == "dominant" else mean
        assert torch.allclose(after[f"{block}gate.weight"], row[None], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_usage_and_likeness_are_those_of_the_texts(kind, tmp_path):
    """Counted here from what routers put out, token by token, in transformers' own model."""
    model = mixture(tmp_path / "plain", kind, norm_topk_prob=False)
    (tmp_path / "texts.txt").write_text("w1 w2 w3 w4\nw9 w8\n\nw7\n")
    asked = from_texts(open_source(str(model)), tmp_path / "texts.txt")
    live = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    seen = [[], []]
    for layer, kept in zip(live.model.layers, seen, strict=True):
        gate = next(m for n, m in layer.named_modules() if n.endswith("mlp.gate"))
        gate.register_forward_hook(lambda m, i, out, kept=kept: kept.append(i[0].view(-1, 16)))
    with torch.no_grad():
        for ids in ([5, 6, 7, 8], [13, 12]):
            live(torch.tensor([ids]))
    for layer, kept in enumerate(seen):
        gate = next(m for n, m in live.model.layers[layer].named_modules() if n.endswith("gate"))
        found = torch.cat(kept) @ gate.weight.T  # (tokens, experts)
        counts = np.zeros(4)
        for row in found.tolist():
            for expert in sorted(range(4), key=lambda e: -row[e])[:2]:
                counts[expert] += 1
        assert np.allclose(asked[layer].usage, counts / 12)
        columns = found.T / found.T.norm(dim=1, keepdim=True)
        assert np.allclose(asked[layer].likeness, (columns @ columns.T).detach(), atol=1e-5)
        assert asked[layer].is_measured


@given(st.integers(1, 8), st.integers(1, 8), st.booleans(), st.integers(0, 500))
def test_groups_part_the_experts(experts, count, measured, seed):
    generator = np.random.default_rng(seed)
    count = min(count, experts)
    rows = generator.normal(size=(experts, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    likeness, usage = rows @ rows.T, generator.random(experts)
    groups = group(Asked(usage / usage.sum(), likeness, measured), count)
    assert len(groups) == count
    assert sorted(e for g in groups for e in g.members) == list(range(experts))
    dominant = [g.dominant for g in groups]
    assert dominant == sorted(dominant)
    for found in groups:
        assert found.dominant in found.members
        for expert in set(found.members) - {found.dominant}:
            assert likeness[expert, found.dominant] == max(likeness[expert, d] for d in dominant)
    if measured:
        least = min(usage[d] for d in dominant)
        assert all(usage[e] <= least for e in range(experts) if e not in dominant)


def test_the_command_and_its_faults(tmp_path):
    model = str(mixture(tmp_path / "plain", "mixtral"))
    (tmp_path / "texts.txt").write_text("w1 w2 w3 w4\nw9 w8\n")

    def run(*words):
        return CliRunner().invoke(main, ["shrink", *map(str, words)])

    out = tmp_path / "out"
    done = run(model, out, "--experts", 2, "--texts", tmp_path / "texts.txt", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["experts"] == 2 and found["layers"][1]["usage"] is not None
    config = json.loads((out / "config.json").read_text())
    assert config["num_local_experts"] == 2 and config["num_experts_per_tok"] == 2
    usage = [layer["usage"] for layer in found["layers"]]
    (tmp_path / "usage.json").write_text(json.dumps(usage))  # what it said can be given again
    text = run(model, tmp_path / "b", "--experts", 2, "--usage", tmp_path / "usage.json").output
    assert "experts of a layer: 4 -> 2, 2 a token" in text and "in its order" in text
    (tmp_path / "short.json").write_text("[[1, 2]]")
    dense = tiny_llama(tmp_path / "dense", 0)
    cases = [
        ((model, tmp_path / "c", "--experts", 5), "5 is not between 1 and the 4"),
        ((model, tmp_path / "c", "--experts", 2, "--per-token", 3), "3 cannot answer of 2"),
        ((model, tmp_path / "c", "--experts", 2, "--usage", tmp_path / "short.json"), "2 lists of"),
        ((model, tmp_path / "c", "--experts", 2, "--texts", tmp_path / "no"), "there is no file"),
        ((dense, tmp_path / "c", "--experts", 2), "is of type 'llama', whose experts are not"),
        ((model, out, "--experts", 2), "is there already"),
    ]
    for words, told in cases:
        done = run(*words)
        assert done.exit_code == 2 and told in done.output, done.output
        assert not (tmp_path / "c").exists()


def test_experts_that_are_never_used_are_averaged(tmp_path):
    model = mixture(tmp_path / "plain", "mixtral", experts=3)
    (tmp_path / "usage.json").write_text("[[1, 0, 0], [1, 0, 0]]")
    shrink(str(model), tmp_path / "out", experts=2, usage=tmp_path / "usage.json")
    assert logits(tmp_path / "out").isfinite().all()
    (tmp_path / "usage.json").write_text("[[0, 0, 0], [1, 0, 0]]")
    with pytest.raises(BadInput, match="is not the usage of these experts"):
        shrink(str(model), tmp_path / "two", experts=2, usage=tmp_path / "usage.json")
