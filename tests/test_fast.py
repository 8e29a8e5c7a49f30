"""The compiled kernels give the eager kernels' bits, and their absence is outlived."""

import numpy as np
import pytest
import torch

from evomerge.kernels import compiled, eager
from evomerge.kernels.magnitude_histogram import MagnitudeTable
from evomerge.kernels.masked import Masked

SHAPES = [(), (1,), (17,), (33, 65), (3, 5, 7), (70_001,)]


def tensors(count, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [(base + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)]


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


@pytest.fixture
def everywhere(monkeypatch):
    monkeypatch.setattr(compiled, "SMALLEST", 0)
    monkeypatch.setattr(compiled, "_broken", False)
    yield
    assert not compiled._broken  # nothing fell back to eager unseen


@pytest.mark.parametrize(
    "count, dtype, out",
    [
        (1, torch.bfloat16, torch.bfloat16),
        (4, torch.bfloat16, torch.bfloat16),
        (8, torch.float32, torch.float16),
    ],
)
def test_weighted_sums_have_the_same_bits(everywhere, count, dtype, out):
    rng = np.random.default_rng(0)
    for seed, shape in enumerate(SHAPES):
        some = tensors(count, shape, dtype, seed)
        for weights in (rng.normal(size=count), np.full(count, 1 / count), -np.ones(count)):
            got = compiled.weighted_sum(some, weights, out)
            wanted = eager.weighted_sum(some, weights, out)
            assert got.dtype == out and got.shape == wanted.shape
            assert np.array_equal(bits(got), bits(wanted)), shape


@pytest.mark.parametrize(
    "count, dtype, thin, join, normalize",
    [
        (3, torch.bfloat16, "magnitude", "elect", True),
        (2, torch.float32, "magnitude", "sum", False),
        (2, torch.bfloat16, "random", "elect", False),
    ],
)
def test_masked_sums_have_the_same_bits(everywhere, count, dtype, thin, join, normalize):
    rng = np.random.default_rng(0)
    for seed, shape in enumerate(SHAPES):
        base, *models = tensors(count + 1, shape, dtype, seed)
        taus = [eager.task_vector(base, m) for m in models]
        for densities in (rng.random(count), np.zeros(count), np.ones(count)):
            weight = rng.choice([-0.5, 0.0, 0.3, 1.0], size=count)
            options = {"normalize": normalize, "scale": 1.3, "rescale": True}
            how = Masked(weight, densities, thin, join, **options)
            kept = [
                eager.Kept(MagnitudeTable(t).largest(t, int(d * t.numel())), key=(seed, i))
                for i, (t, d) in enumerate(zip(taus, densities, strict=True))
            ]
            got = compiled.masked_sum(base, models, how, kept, dtype)
            wanted = eager.masked_sum(base, models, how, kept, dtype)
            assert np.array_equal(bits(got), bits(wanted)), shape


def test_what_is_not_compiled_is_eager(everywhere):
    """Zero coefficients leave a source out; other joins and double precision have no fast form."""
    some = tensors(3, (9,), torch.float32, 1)
    weights = np.array([0.0, 1.0, 0.0])
    assert torch.equal(compiled.weighted_sum(some, weights, torch.float32), some[1])
    wide = [t.double() for t in some]
    got = compiled.weighted_sum(wide, np.ones(3), torch.float64)
    assert torch.equal(got, wide[0] + wide[1] + wide[2])
    how = Masked(np.ones(2), np.ones(2), "magnitude", "largest")
    got = compiled.masked_sum(some[0], some[1:], how, [eager.Kept()] * 2, torch.float32)
    assert torch.equal(got, eager.masked_sum(some[0], some[1:], how, [eager.Kept()] * 2))


def test_without_a_compiler_it_is_said_once(monkeypatch):
    said = []

    def missing(*arguments, **options):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "SMALLEST", 0)
    monkeypatch.setattr(compiled, "_broken", False)
    monkeypatch.setattr(
        compiled, "_COMPILED", {compiled._weighted: missing, compiled._masked: missing}
    )
    monkeypatch.setattr(compiled.log, "warning", lambda text, *words: said.append(text % words))
    some = tensors(2, (50,), torch.float32, 1)
    for _ in range(3):
        got = compiled.weighted_sum(some, np.ones(2), torch.float32)
        assert torch.equal(got, some[0] + some[1])
    (line,) = said
    assert "eager torch, which is slower: No working C++ compiler" in line
