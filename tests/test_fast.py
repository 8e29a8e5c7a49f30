"""The compiled kernels give the eager kernels' bits, and their absence is outlived."""

import numpy as np
import pytest
import torch

from evomerge.kernels import compiled, eager, native
from evomerge.kernels.magnitude_histogram import MagnitudeHistogram
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import (
    Kept,
    MaskedSums,
    MergePlan,
    Operands,
    SegmentedSums,
    WeightedSums,
)
from evomerge.kernels.task_vector import task_vector, variance

KERNELS = compiled.CompiledKernels()

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
            got = KERNELS.weighted_sum(some, weights, out)
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
        taus = [task_vector(base, m) for m in models]
        for densities in (rng.random(count), np.zeros(count), np.ones(count)):
            weight = rng.choice([-0.5, 0.0, 0.3, 1.0], size=count)
            options = {"normalize": normalize, "scale": 1.3, "rescale": True}
            how = Masked(weight, densities, thin, join, **options)
            kept = [
                Kept(MagnitudeHistogram(t).largest(t, int(d * t.numel())), key=(seed, i))
                for i, (t, d) in enumerate(zip(taus, densities, strict=True))
            ]
            got = KERNELS.masked_sum(base, models, how, kept, dtype)
            wanted = eager.masked_sum(base, models, how, kept, dtype)
            assert np.array_equal(bits(got), bits(wanted)), shape


def test_the_three_back_ends_agree_on_one_plan(everywhere):
    """Tensors of every kind of sum, as one plan, into narrower and wider targets."""
    shapes = {"sum": (33, 65), "mixture": (401,), "trimmed": (17,), "drawn": (300,), "sce": (9, 40)}
    drawn = {n: tensors(3, s, torch.bfloat16, i) for i, (n, s) in enumerate(shapes.items())}
    each = np.array([0.7, -0.4])

    def least(name, k):
        base, *models = drawn[name]
        taus = [task_vector(base, model) for model in models]
        return tuple(Kept(MagnitudeHistogram(tau).largest(tau, k)) for tau in taus)

    base, *models = drawn["sce"]
    spread = variance([task_vector(base, model).float() for model in models])
    place = MagnitudeHistogram(spread).place(100)
    plan = MergePlan(
        Operands({name: tuple(some) for name, some in drawn.items()}),
        torch.bfloat16,
        (
            WeightedSums(("sum",), np.array([[0.5, 0.2, 0.3]])),
            SegmentedSums(("mixture",), (np.array([0, 130, 131]),), (np.eye(3),)),
            MaskedSums(
                ("trimmed",),
                Masked(each, each, "magnitude", "elect", normalize=True),
                (least("trimmed", 8),),
            ),
            MaskedSums(
                ("drawn",),
                Masked(each, np.array([0.3, 0.9]), "random", rescale=True),
                ((Kept(key=(1, 2)), Kept(key=(3, 4))),),
            ),
            MaskedSums(
                ("sce",),
                Masked(each, each, "variance", "elect", normalize=True, energy=True),
                ((Kept(place=place),),),
            ),
        ),
    )
    for dtype in (torch.bfloat16, torch.float32):
        made = []
        for kernels in (eager.EagerKernels(), KERNELS, native.NativeKernels()):
            targets = {name: torch.full(shape, 9.0, dtype=dtype) for name, shape in shapes.items()}
            made.append((kernels.merge(plan, targets), targets))
        (digests, wanted), *others = made
        for other_digests, others_targets in others:
            for name in shapes:
                assert np.array_equal(digests[name], other_digests[name]), name
                assert np.array_equal(bits(wanted[name]), bits(others_targets[name])), name


def test_what_is_not_compiled_is_eager(everywhere):
    """Zero coefficients leave a source out; other joins and double precision have no fast form."""
    some = tensors(3, (9,), torch.float32, 1)
    weights = np.array([0.0, 1.0, 0.0])
    assert torch.equal(KERNELS.weighted_sum(some, weights, torch.float32), some[1])
    wide = [t.double() for t in some]
    got = KERNELS.weighted_sum(wide, np.ones(3), torch.float64)
    assert torch.equal(got, wide[0] + wide[1] + wide[2])
    how = Masked(np.ones(2), np.ones(2), "magnitude", "largest")
    got = KERNELS.masked_sum(some[0], some[1:], how, [Kept()] * 2, torch.float32)
    assert torch.equal(got, eager.masked_sum(some[0], some[1:], how, [Kept()] * 2))


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
        got = KERNELS.weighted_sum(some, np.ones(2), torch.float32)
        assert torch.equal(got, some[0] + some[1])
    (line,) = said
    assert "eager torch, which is slower: No working C++ compiler" in line
