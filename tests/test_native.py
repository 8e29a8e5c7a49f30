"""The kernels in C++ give the eager kernels' bits; without a compiler, eager torch goes on."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.kernels import eager, native
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.eager import Kept
from evomerge.kernels.magnitude_histogram import MagnitudeTable
from evomerge.kernels.masked import Masked
from evomerge.merging.merger import Merger
from evomerge.merging.methods import OPERATORS
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of

SHAPES = [(), (1,), (0,), (17,), (33, 65), (3, 5, 7), (129, 1), (40_001,)]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


def tensors(count, shape, dtypes, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    made = [base] + [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    return [t.to(dtypes[i % len(dtypes)]) for i, t in enumerate(made)]


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def assert_same(batch, out, wanted):
    (digests,), (broken,) = batch.merge()
    assert np.array_equal(bits(out), bits(wanted.to(out.dtype)))
    assert np.array_equal(digests, tile_digests(wanted))
    assert broken == (not wanted.isfinite().all())


@given(
    count=st.integers(1, 8),
    shape=st.sampled_from(SHAPES),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    live=st.sampled_from(DTYPES),
    weights=st.lists(st.sampled_from([-1.0, 0.0, 0.3, 1.0, 1e30]), min_size=8, max_size=8),
    seed=st.integers(0, 9),
)
def test_weighted_sums(count, shape, dtypes, dtype, live, weights, seed):
    some, weights = tensors(count, shape, dtypes, seed)[1:], np.array(weights[:count])
    assert native.takes(some, dtype)
    wanted = eager.weighted_sum(some, weights, dtype)
    out = torch.empty(shape, dtype=live)
    batch = native.Batch(None, [some], [out], dtype)
    batch.weigh(slice(None), weights)
    assert_same(batch, out, wanted)


@pytest.mark.parametrize("thin", ["magnitude", "band", "random", "ranked", "votes", "variance"])
@given(
    count=st.integers(1, 8),
    shape=st.sampled_from(SHAPES),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=2),
    dtype=st.sampled_from(DTYPES),
    join=st.sampled_from(["sum", "elect", "largest"]),
    rescale=st.booleans(),
    normalize=st.booleans(),
    energy=st.booleans(),
    densities=st.lists(st.sampled_from([0.0, 0.2, 0.77, 1.0]), min_size=8, max_size=8),
    weights=st.lists(st.sampled_from([-0.5, 0.0, 0.3, 1.0]), min_size=8, max_size=8),
    seed=st.integers(0, 9),
)
def test_masked_sums(
    thin, count, shape, dtypes, dtype, join, rescale, normalize, energy, densities, weights, seed
):
    base, *models = tensors(count, shape, dtypes, seed)
    how = Masked(
        np.array(weights[:count]),
        np.array(densities[:count]),
        thin,
        join,
        rescale=rescale,
        normalize=normalize,
        energy=energy and thin == "variance",
        scale=1.3,
        epsilon=0.2,
        threshold=np.linspace(0.1, 2.0, count),
    )
    assert native.does(how)
    kept = []
    taus = [eager.task_vector(base, model) for model in models]
    spread = eager.variance([tau.float() for tau in taus])
    for i, tau in enumerate(taus):
        if thin in ("random", "ranked"):
            kept.append(Kept(key=(seed, 7 + i), levels=eager.rank_levels(tau)))
        elif thin == "votes":
            kept.append(Kept())
        elif thin == "variance":
            table, k = MagnitudeTable(spread), int(densities[0] * int((spread > 0).sum()))
            kept.append(Kept(table.largest(spread, k)))
        else:
            low = MagnitudeTable(tau).largest(tau, int(densities[i] * tau.numel()))
            kept.append(Kept(low, 0.15 if thin == "band" else float("inf")))
    out = torch.empty(shape, dtype=dtype)
    batch = native.Batch([base], [models], [out], dtype)
    batch.thin(slice(None), how)
    if thin == "variance" and k > 0:
        index, _, size = table.place(k)
        inside = np.sort(batch.variances({0: (index, size)})[0].numpy())
        upper = spread.reshape(-1).numpy().view(np.int32) >> 16
        wanted = spread.reshape(-1).numpy()[upper == index]
        assert np.array_equal(inside, np.sort(wanted[wanted > 0]))
    batch.keep(0, kept)
    if how.energy:
        batch.share([0], how)
    assert_same(batch, out, eager.masked_sum(base, models, how, kept, dtype))


@pytest.mark.parametrize(
    "dtype, largest", [(torch.bfloat16, 3.3895314e38), (torch.float16, 65504.0)]
)
def test_what_rounds_to_infinity_is_told(dtype, largest):
    """Also in the last lanes of a tensor, and beside those that are not there."""
    for size, at in itertools.product((1, 9, 70_000), (0, -1)):
        for factor, fine in ((1.0, True), (1.01, False), (float("nan"), False)):
            some = torch.zeros(size)
            some[at] = largest
            out = torch.empty(size, dtype=dtype)
            batch = native.Batch(None, [[some]], [out], dtype)
            batch.weigh(slice(None), np.array([factor]))
            _, (broken,) = batch.merge()
            assert broken == (not fine)


def test_one_tile_that_changes_is_the_one_whose_digest_does():
    some = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    before = tile_digests(some)
    some[50_000] += 1e-6
    changed = np.flatnonzero(tile_digests(some) != before)
    assert len(before) == 7 and changed.tolist() == [50_000 * 4 // 65_536]
    assert np.array_equal(tile_digests(some[1:]), tile_digests(some[1:].clone()))


@pytest.mark.parametrize("method", OPERATORS.all())
def test_a_live_model_gets_what_the_stream_gives(method, world, monkeypatch):
    """With threads and without a compiler; again with other numbers in the same tables.

    Two groups, the second's densities from everything to nothing.
    """
    names = [str(world / name) for name in ("base", "a", "b", "c")]
    opened = {n: open_source(n) for n in names}
    count = OPERATORS.get(method).models or len(names) - 1
    merger = Merger(opened, {n: n for n in names})
    live = {n: torch.empty(t.shape) for n, t in opened[names[0]].tensors.items()}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for densities in ((0.3, 0.8), (0.8, 1.0), (1.0, 0.3), (0.5, 0.0)):
        made = [recipe_of(method, names[1 : count + 1], names[0], density=d) for d in densities]
        groups = (replace(made[0].groups[0], modules="mlp"), made[1].groups[0])
        recipe = replace(made[0], groups=groups)
        digests = merger.fill(recipe, live)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            plain = dict(Merger(opened, {n: n for n in names}).stream(recipe))
        for name, tensor in merger.stream(recipe):
            assert torch.equal(tensor, plain[name])
            assert torch.equal(live[name], tensor.float())
            assert np.array_equal(digests[name], tile_digests(tensor))


def test_without_a_compiler_it_is_said_once(monkeypatch, tmp_path):
    said = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native.log, "warning", lambda text, *words: said.append(text % words))
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CXX", compiler)
        native.library.cache_clear()
        assert native.library() is None and native.library() is None
        assert not native.takes([torch.ones(3)], torch.float32)
    native.library.cache_clear()
    monkeypatch.undo()
    assert native.library() is not None
    assert len(said) == 2 and all("eager torch, which is slower" in line for line in said)
    assert "no-such-compiler" in said[0]
