"""Wider merges: what is kept apart works as both models' neurons do, side by side."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_aligning import FAMILIES, logits, save_shuffled
from transformers import AutoModelForCausalLM

from evomerge.aligning.aligned_model import align, open_pair
from evomerge.aligning.least_squares import RIDGE
from evomerge.aligning.orders import by_unit
from evomerge.aligning.widened import split, widen
from evomerge.cli.main import main
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama
from evomerge.testing.decoders import tiny_decoder
from evomerge.testing.tiny import tiny_tokenizer


@pytest.mark.parametrize(("apart", "stream"), [(0.0, True), (0.3, False), (1.0, True)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_widened_with_itself_computes_the_same(name, apart, stream, tmp_path):
    """Its own neurons in another order: half of each, twice, is what it was."""
    folder = tiny_decoder(tmp_path / "a", name, 0)
    save_shuffled(folder, tmp_path / "b", stream, seed=1)
    names = str(folder), str(tmp_path / "b")
    widened = widen(*names, tmp_path / "out", apart=apart, stream=stream)
    assert widened.width == widened.before + round(apart * widened.before)
    opened = open_source(str(tmp_path / "out"))
    assert widened.parameters == sum(t.elements for t in opened.tensors.values())
    found, wanted = logits(tmp_path / "out"), logits(folder)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_all_apart_is_the_average_of_both_mlps(weight, tmp_path):
    """An MLP's output, on any input, against the two models' own MLPs in transformers."""
    folders = [tiny_llama(tmp_path / str(s), s, dtype="float32") for s in (0, 1)]
    widen(*map(str, folders), tmp_path / "out", apart=1.0, weight=weight)
    one, other, both = (
        AutoModelForCausalLM.from_pretrained(f) for f in (*folders, tmp_path / "out")
    )
    states = torch.randn(5, 16)
    for layer in range(2):
        parts = [m.model.layers[layer].mlp(states) for m in (one, other, both)]
        assert torch.allclose(parts[2], (1 - weight) * parts[0] + weight * parts[1], atol=1e-5)


def test_none_apart_is_the_average_of_the_aligned_models(tmp_path):
    folders = [tiny_llama(tmp_path / str(s), s, dtype="float32") for s in (0, 1)]
    words = ["align", *map(str, folders), str(tmp_path / "aligned")]
    assert CliRunner().invoke(main, words).exit_code == 0
    widen(*map(str, folders), tmp_path / "out", apart=0.0)
    one, other, both = (
        load_file(f / "model.safetensors")
        for f in (folders[0], tmp_path / "aligned", tmp_path / "out")
    )
    for name, tensor in both.items():
        assert torch.allclose(tensor, (one[name] + other[name]) / 2, atol=1e-6)


def test_the_rest_is_merged_neuron_by_neuron(tmp_path):
    """Each neuron of the wider model is one of three kinds, told by its weights alone."""
    folders = [tiny_llama(tmp_path / str(s), s, dtype="float32") for s in (0, 1)]
    widen(*map(str, folders), tmp_path / "out", apart=0.25)
    name = "model.layers.1.mlp.{}.weight"
    one, other, both = (load_file(f / "model.safetensors") for f in (*folders, tmp_path / "out"))

    def neurons(model, share):
        up, down = (model[name.format(part)] for part in ("up_proj", "down_proj"))
        return torch.cat([up, down.T * share], 1).double()

    wide = neurons(both, 1.0)
    own = [torch.cdist(wide, neurons(m, 0.5)).min(1).values < 1e-5 for m in (one, other)]
    assert [int(found.sum()) for found in own] == [8, 8] and len(wide) == 40
    merged = wide[~(own[0] | own[1])]
    pairs = (neurons(one, 1.0)[:, None] + neurons(other, 1.0)[None]) / 2
    nearest = torch.cdist(merged, pairs.flatten(0, 1)).min(1)
    assert len(merged) == 24 and float(nearest.values.max()) < 1e-5
    assert len({int(i) // 32 for i in nearest.indices}) == 24  # each of another neuron


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0, 1))
def test_the_least_alike_are_kept_apart(values, apart):
    kept = split(np.array(values), apart)
    assert sorted([*kept.merged, *kept.apart]) == list(range(len(values)))
    assert len(kept.apart) == round(apart * len(values))
    if len(kept.apart) and len(kept.merged):
        assert max(values[i] for i in kept.apart) <= min(values[i] for i in kept.merged)


def test_the_command_and_its_faults(tmp_path):
    a, b = (str(tiny_llama(tmp_path / str(s), s)) for s in (0, 1))
    done = CliRunner().invoke(main, ["widen", a, b, str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["width"] == 38
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["intermediate_size"] == 38 and config["dtype"] == "bfloat16"
    done = CliRunner().invoke(main, ["widen", a, b, str(tmp_path / "out")])
    assert done.exit_code == 2 and "is there already" in done.output
    done = CliRunner().invoke(main, ["widen", a, b, str(tmp_path / "two"), "--apart", "0"])
    assert "neurons of an MLP: 32 -> 32" in done.output


# --- the second step -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi", "phi3"])
def test_fitting_leaves_what_fits_already(name, tmp_path):
    """A model and itself in another order: the merged weights solve the least squares."""
    folder = tiny_decoder(tmp_path / "a", name, 0)
    save_shuffled(folder, tmp_path / "b", stream=True, seed=1)
    for each in ("a", "b"):
        tiny_tokenizer().save_pretrained(tmp_path / each)
    (tmp_path / "texts.txt").write_text("w1 w2 w3 w4 w5 w6\nw9 w8 w7\n")
    names = str(folder), str(tmp_path / "b"), tmp_path / "out"
    widen(*names, apart=0.3, stream=True, texts=tmp_path / "texts.txt")
    found, wanted = logits(tmp_path / "out"), logits(folder)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))


def test_a_fitted_matrix_is_the_ridge_solution(tmp_path):
    """Down and up projections, against numpy's least squares on activations caught here."""
    folders = [tiny_llama(tmp_path / str(s), s, dtype="float32", tie=False) for s in (0, 1)]
    texts = ["w1 w2 w3 w4 w9 w11", "w20 w21 w5 w3", "w7 w8 w2 w2 w2"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    names = [str(folder) for folder in folders]
    widen(*names, tmp_path / "plain", apart=0.25, weight=0.3)
    widen(*names, tmp_path / "out", apart=0.25, weight=0.3, texts=tmp_path / "texts.txt")
    words = ["align", *names, str(tmp_path / "aligned")]
    assert CliRunner().invoke(main, words).exit_code == 0
    alignment = align(open_pair(*names))
    tokenizer, seen = tiny_tokenizer(), []
    for folder in (folders[0], tmp_path / "aligned"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        caught = {"down": [], "up": []}
        mlp = model.model.layers[1].mlp
        for part, module in (("down", mlp.down_proj), ("up", mlp.up_proj)):
            module.register_forward_hook(
                lambda m, i, o, part=part, caught=caught: caught[part].append((i[0][0], o[0]))
            )
        for text in texts:
            model(tokenizer(text, return_tensors="pt")["input_ids"])
        seen.append(
            {
                part: [
                    torch.cat(side).detach().double().numpy() for side in zip(*rows, strict=True)
                ]
                for part, rows in caught.items()
            }
        )
    one, other = seen
    unit = next(u for u in alignment.units if u.name == "layer 1 mlp")
    stored = [load_file(f / "model.safetensors") for f in (folders[0], tmp_path / "aligned")]
    alike = np.zeros(32)
    for slot in unit.slots:
        a, b = (by_unit(m[slot.tensor].double(), slot, 32).numpy() for m in stored)
        alike += (a * b).sum(1)
    kept = split(alike, 0.25)

    def wide(a, b):
        parts = (0.7 * a + 0.3 * b)[:, kept.merged], a[:, kept.apart], b[:, kept.apart]
        return np.concatenate(parts, 1)

    def mean(a, b):
        return 0.7 * a + 0.3 * b

    plain, fitted = (load_file(tmp_path / f / "model.safetensors") for f in ("plain", "out"))
    for part, of_input, of_output in (("down", wide, mean), ("up", mean, wide)):
        inputs = of_input(one[part][0], other[part][0])
        outputs = of_output(one[part][1], other[part][1])
        name = f"model.layers.1.mlp.{part}_proj.weight"
        begun = plain[name].double().numpy()
        root = np.sqrt(RIDGE * (inputs**2).sum(0).mean())
        rows = np.concatenate([inputs, root * np.eye(inputs.shape[1])])
        wanted = np.linalg.lstsq(rows, np.concatenate([outputs, root * begun.T]), rcond=None)[0].T
        assert np.allclose(fitted[name].numpy(), wanted, atol=1e-4)
        assert not np.allclose(begun, wanted, atol=1e-2)
        errors = [((inputs @ w.T - outputs) ** 2).sum() for w in (begun, wanted)]
        assert errors[1] < errors[0]


def test_fitting_needs_texts(tmp_path):
    a, b = (str(tiny_llama(tmp_path / str(s), s)) for s in (0, 1))
    for text in (None, "", "w1"):
        if text is not None:
            (tmp_path / "texts.txt").write_text(text)
        words = ["widen", a, b, str(tmp_path / "out"), "--texts", str(tmp_path / "texts.txt")]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 2 and "texts.txt" in done.output
        assert not (tmp_path / "out").exists()
