"""What `check` says of a model that is another one written differently, and of a stranger."""

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_aligning import logits, save_shuffled

from evomerge.aligning.orders import by_unit
from evomerge.campaign.build import checked
from evomerge.cli.main import main
from evomerge.sources.invariants import attention, mlp
from evomerge.sources.kinship import strangers
from evomerge.sources.source import open_source
from evomerge.sources.units import layers_of
from evomerge.testing import tiny_llama
from evomerge.testing.decoders import tiny_decoder

FAMILIES = ["llama", "gpt2", "gpt_neox", "phi3", "qwen3"]


def rewritten(folder, out, change):
    """Save a model with its weights changed by name -> tensor."""
    stored = load_file(folder / "model.safetensors")
    change(stored)
    out.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".json":
            (out / file.name).write_bytes(file.read_bytes())
    kept = {n: t.contiguous() for n, t in stored.items()}
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    return out


def locked(folder, out, seed=0):
    """MergeLock for rotary positions: secret matrices between the factors of both products.

    Between queries and keys only what commutes with the rotation by positions may stand: each
    pair of entries turned by an angle and stretched. Between values and output anything may.
    """
    source = open_source(str(folder))
    generator = torch.Generator().manual_seed(seed)

    def change(stored):
        for layer in layers_of(source):
            size, shared = layer.query.block, layer.heads // layer.groups
            half = size // 2
            for group in range(layer.groups):
                angle = torch.rand(half, generator=generator) * 2 * torch.pi
                scale = torch.rand(half, generator=generator) + 0.5
                turn = torch.zeros(size, size, dtype=torch.float64)
                for i in range(half):
                    c, s = torch.cos(angle[i]) * scale[i], torch.sin(angle[i]) * scale[i]
                    turn[i, i], turn[i, i + half] = c, -s
                    turn[i + half, i], turn[i + half, i + half] = s, c
                mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
                k, v = (slice(group * size, (group + 1) * size) for _ in range(2))
                key, value = stored[layer.key.tensor], stored[layer.value.tensor]
                key[k], value[v] = torch.linalg.inv(turn).T @ key[k], mix @ value[v]
                for head in range(group * shared, (group + 1) * shared):
                    h = slice(head * size, (head + 1) * size)
                    query, outputs = stored[layer.query.tensor], stored[layer.out.tensor]
                    query[h] = turn @ query[h]
                    outputs[:, h] = outputs[:, h] @ torch.linalg.inv(mix)

    return rewritten(folder, out, change)


def scaled(folder, out):
    """PaRaMS's second half: heads of queries and keys times a number and its inverse."""
    source = open_source(str(folder))

    def change(stored):
        for layer in layers_of(source):
            for head in range(layer.groups):
                size, shared = layer.query.block, layer.heads // layer.groups
                rows = slice(head * shared * size, (head + 1) * shared * size)
                stored[layer.query.tensor][rows] *= 3.0
                stored[layer.key.tensor][head * size : (head + 1) * size] /= 3.0

    return rewritten(folder, out, change)


def tuned(folder, out, spread=0.02):
    def change(stored):
        generator = torch.Generator().manual_seed(5)
        for tensor in stored.values():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.add_(noise * spread)

    return rewritten(folder, out, change)


@pytest.fixture
def base(tmp_path):
    return tiny_decoder(tmp_path / "base", "llama, tied", 0)


def told(*folders):
    return strangers([open_source(str(folder)) for folder in folders])


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_a_protected_model_is_told(base, tmp_path, spread):
    model = locked(tuned(base, tmp_path / "tuned", spread), tmp_path / "locked")
    alone = logits(model), logits(tmp_path / "tuned")
    assert torch.allclose(*alone, rtol=0, atol=1e-9)  # it is a real lock: the function is the same
    (line,) = told(base, model)
    assert re.search(r"^'\S+locked' seems to be protected against merging", line)
    products, weights = map(float, re.findall(r"(?:W_V|cosine) (-?\d\.\d\d)", line))
    assert products > 0.95 and weights < 0.5
    assert told(base, tmp_path / "tuned") == []


def test_heads_that_were_scaled_are_protected_as_well(base, tmp_path):
    model = scaled(base, tmp_path / "scaled")
    assert torch.allclose(logits(model), logits(base), rtol=0, atol=1e-9)
    (line,) = told(base, model)
    assert "seems to be protected against merging" in line and "sizes up to 3.0 times" in line


@pytest.mark.parametrize("name", FAMILIES)
def test_units_in_another_order_are_told_from_a_stranger(name, tmp_path):
    folder = tiny_decoder(tmp_path / "base", name, 0)
    save_shuffled(folder, tmp_path / "moved", stream=False, seed=1)
    (line,) = told(folder, tmp_path / "moved")
    assert re.search(r"seems to have the (MLPs|heads) of .* in another order", line)
    assert f"`evomerge align {folder} {tmp_path / 'moved'} OUT`" in line
    other = tiny_decoder(tmp_path / "other", name, 1)
    (line,) = told(folder, other)
    assert "seem to be trained apart" in line and "evomerge align" in line


def test_a_stranger_that_was_aligned_is_not_told_to_be(tmp_path):
    a, b = (tiny_llama(tmp_path / s, n) for n, s in enumerate("ab"))
    words = ["align", str(a), str(b), str(tmp_path / "out")]
    assert CliRunner().invoke(main, words).exit_code == 0
    (line,) = told(a, tmp_path / "out")
    assert "trained apart" in line and "its units have been put in order" in line


def test_products_are_those_of_float64(tmp_path):
    """The whole products of small models, head by head, against a plain double loop."""
    folders = [tiny_llama(tmp_path / str(s), s, dtype="bfloat16") for s in (0, 1)]
    one, other = (open_source(str(folder)) for folder in folders)
    layer = layers_of(one)[0]
    found, neurons = attention(one, other, layer), mlp(one, other, layer)
    products = []
    for folder in folders:
        stored = {n: t.double() for n, t in load_file(folder / "model.safetensors").items()}
        query, out = (by_unit(stored[s.tensor], s, 2) for s in (layer.query, layer.out))
        key, value = (by_unit(stored[s.tensor], s, 1) for s in (layer.key, layer.value))
        size, hidden = layer.query.block, 16
        qk, ov = torch.zeros(hidden, hidden), torch.zeros(hidden, hidden)
        for head in range(2):
            q, k = query[head].view(size, hidden), key[0].view(size, hidden)
            o, v = out[head].view(size, hidden), value[0].view(size, hidden)
            qk, ov = qk + q.T @ k, ov + o.T @ v
        down = stored[layer.down.tensor]
        products.append([qk, ov, *(down @ stored[up.tensor] for up in layer.up)])
    cosines = [float((a * b).sum() / (a.norm() * b.norm())) for a, b in zip(*products, strict=True)]
    assert found.products == pytest.approx(min(cosines[:2]), abs=1e-5)
    assert neurons.products == pytest.approx(min(cosines[2:]), abs=1e-5)
    assert np.isfinite(found).all()


def test_check_warns_of_a_protected_source(campaign_file, here):
    tiny_llama(here / "plain", 11, near=here / "base", dtype="float32")
    stored = load_file(here / "plain" / "model.safetensors")
    save_file({n: t.double() for n, t in stored.items()}, here / "plain" / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    locked(here / "plain", here / "locked")
    wide = load_file(here / "locked" / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in wide.items()}, here / "locked" / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    (campaign,) = checked(campaign_file(sources__models={"a": "a", "locked": "locked"}))
    (line,) = campaign.warnings
    assert line.startswith("'locked' seems to be protected against merging")
