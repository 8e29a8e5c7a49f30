"""The kernels against closed forms, published vectors and ten-line transcriptions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.kernels import eager, native
from evomerge.kernels.magnitude_histogram import MagnitudeHistogram
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import Kept
from evomerge.kernels.philox import philox, philox_rounds
from evomerge.kernels.task_vector import gram_matrix
from evomerge.merging.methods import METHODS
from evomerge.testing import merge_arrays

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


ONES, PI = 0xFFFFFFFF, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]


@pytest.mark.parametrize(
    "rounds, counter, key, draws",
    [
        (7, [0] * 4, (0, 0), [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        (7, [ONES] * 4, (ONES, ONES), [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (7, PI, (0xA4093822, 0x299F31D0), [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A]),
        (10, [0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (10, [ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (10, PI, (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
)
def test_philox_gives_the_known_answers_of_random123(rounds, counter, key, draws):
    words = [torch.tensor([c], dtype=torch.int64) for c in counter]
    assert [int(w) for w in philox_rounds(words, key, rounds)] == draws


def test_philox_elements_have_a_byte_of_their_own_and_one_of_their_group():
    """Each of a group's 128 bytes is one of its eight blocks' own, none twice, as documented."""
    whole = philox(300, (3, 4))
    zero = torch.zeros(1, dtype=torch.int64)
    seen = set()
    for element in range(128, 256):
        word, row = divmod(element - 128, 32)
        t, u, byte = row >> 2 & 1, row >> 3, row & 3
        block = 4 * t + u
        words = philox_rounds([zero + 8 + block, zero, zero, zero], (3, 4))
        assert int(whole[element]) >> 8 == int(words[word]) >> (8 * byte) & 0xFF
        seen.add((block, word, byte))
    assert len(seen) == 128
    first = int(philox_rounds([zero, zero, zero + 1, zero], (3, 4))[0])
    low = torch.tensor([first & 0xFF, first >> 8 & 0xFF, first >> 16 & 0xFF])
    assert torch.equal(whole & 0xFF, low.repeat_interleave(128)[:300])


@given(start=st.integers(0, 400), size=st.integers(0, 400))
def test_philox_may_start_anywhere(start, size):
    assert torch.equal(philox(size, (5, 6), start=start), philox(900, (5, 6))[start : start + size])


def test_philox_draws_are_uniform():
    """Pearson's chi-square over 256 bins, of a million high bytes and 40,000 groups' low ones."""
    draws, groups = philox(1 << 20, (11, 12)), philox(40_000 * 128, (11, 13))[::128]
    for byte in (draws >> 8, groups & 255):
        counts = torch.bincount(byte, minlength=256).double()
        expected = byte.numel() / 256
        assert 180 < ((counts - expected) ** 2 / expected).sum() < 340  # 255 +- 3.7 deviations


def test_a_group_shares_its_low_byte_and_the_chance_stays():
    """The means over keys of what is kept, of two groups and of an element, within 5 errors."""
    draws = torch.stack([philox(256, (key, 7)) for key in range(4000)])
    for chance in (0.003, 0.1, 0.4999):
        threshold = int(chance * 65536)
        kept = (draws < threshold).float()
        assert abs(kept.mean() - threshold / 65536) < 5 * (chance / kept.numel()) ** 0.5
        assert (kept.mean(0) - threshold / 65536).abs().max() < 5 * (chance / len(kept)) ** 0.5


# what reads texts needs a whole model: tests/test_observed.py
@pytest.mark.parametrize("method", [n for n, o in METHODS.all().items() if o.reads != "texts"])
def test_tiles_change_no_bit(method, monkeypatch):
    """Whatever the tile, also where it cuts a row or a group of draws."""
    rng = np.random.default_rng(2)
    count = METHODS.get(method).models or 3
    base = rng.normal(size=(9, 31)).astype(np.float32)
    models = [base + rng.normal(size=base.shape).astype(np.float32) * 0.1 for _ in range(count)]
    whole = merge_arrays(method, base, models, density=0.6)
    monkeypatch.setattr(native, "library", lambda: None)  # whose tiles are others
    for tile in (1, 7, 64):
        monkeypatch.setattr(eager, "TILE", tile)
        assert np.array_equal(merge_arrays(method, base, models, density=0.6), whole)


def test_random_masks_are_nested_and_keep_the_density():
    densities = (0.0, 0.1, 0.5, 1.0)
    masks = [philox(100_000, (1, 2)) < int(d * 2.0**16) for d in densities]
    assert masks[0].sum() == 0 and masks[3].all()
    for mask, density in zip(masks, densities, strict=True):
        assert abs(mask.float().mean().item() - density) < 0.006  # 4 standard errors
    assert (masks[1] <= masks[2]).all()
    assert not torch.equal(masks[2], philox(100_000, (1, 3)) < 2**15)


@given(
    size=st.integers(1, 300),
    density=st.floats(0.0, 1.0),
    dtype=st.sampled_from(sorted(FLOATS)),
    seed=st.integers(0, 99),
    coarse=st.booleans(),
)
def test_threshold_is_the_kth_largest_magnitude(size, density, dtype, seed, coarse):
    tau = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    tau = (tau.round() if coarse else tau).to(FLOATS[dtype])  # rounding makes many ties
    k = int(density * size)
    threshold = MagnitudeHistogram(tau).largest(tau, k)
    ranked = tau.float().abs().sort(descending=True).values
    kept = tau.float().abs() >= threshold
    if k == 0:
        assert not kept.any()
    elif k == size:
        assert kept.all()
    else:
        assert threshold == ranked[k - 1].item()
        assert kept.sum() >= k  # all that equal the k-th are kept


def test_threshold_of_all_zeros_keeps_harmlessly():
    tau = torch.zeros(8)
    assert MagnitudeHistogram(tau).largest(tau, 4) == 0.0


@given(
    count=st.integers(1, 8),
    shape=st.sampled_from([(), (1,), (5,), (3, 7), (2, 3, 4)]),
    dtype=st.sampled_from(sorted(FLOATS)),
    seed=st.integers(0, 99),
)
def test_weighted_sum_is_the_float64_sum_within_rounding(count, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    tensors = [torch.tensor(rng.normal(size=shape)).to(FLOATS[dtype]) for _ in range(count)]
    weights = rng.normal(size=count) * 2
    exact = sum(w * t.double().numpy() for w, t in zip(weights, tensors, strict=True))
    got = eager.weighted_sum(tensors, weights)
    assert got.dtype == torch.float32 and got.shape == torch.Size(shape)
    assert np.allclose(got.numpy(), exact, rtol=1e-5, atol=1e-5)


def test_weighted_sum_leaves_out_zero_terms():
    broken = torch.tensor([float("nan")])
    assert eager.weighted_sum([torch.tensor([2.0]), broken], np.array([0.5, 0.0])).item() == 1.0


def test_gram_matrix_is_numpys_in_float64():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(50, 40)) for _ in range(3)]
    tensors = [torch.tensor(a, dtype=torch.float32) for a in arrays]
    flat = np.stack([t.double().numpy().ravel() for t in tensors])
    assert np.allclose(gram_matrix(tensors, chunk=77), flat @ flat.T, rtol=1e-12)


def transcribed_ties(base, models, weight, density, scale, normalize):
    """TIES in float64, as its paper's algorithm 1 reads, trimming per tensor."""
    taus = []
    for model, d in zip(models, density, strict=True):
        tau = (model.astype(np.float32) - base.astype(np.float32)).astype(np.float64)
        k = int(d * tau.size)
        ranked = np.sort(np.abs(tau).ravel())[::-1]
        taus.append(tau * (np.abs(tau) >= ranked[k - 1]) if k else tau * 0)
    weighted = np.array([w * t for w, t in zip(weight, taus, strict=True)])
    sign = np.sign(weighted.sum(0))
    agree = (np.sign(weighted) == sign) & (weighted != 0)
    merged = (weighted * agree).sum(0)
    if normalize:
        share = (agree * np.abs(np.array(weight)).reshape(-1, *[1] * base.ndim)).sum(0)
        merged = merged / np.where(share > 0, share, 1)
    return base + scale * merged


@given(
    seed=st.integers(0, 50),
    count=st.integers(1, 4),
    shape=st.sampled_from([(1,), (17,), (6, 5)]),
    density=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    weight=st.lists(st.sampled_from([-0.5, 0.0, 0.3, 1.0, 1.5]), min_size=4, max_size=4),
)
def test_ties_is_its_papers(seed, count, shape, density, weight):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    models = [base + rng.normal(size=shape).astype(np.float32) * 0.1 for _ in range(count)]
    weight, density = tuple(weight[:count]), tuple(density[:count])
    got = merge_arrays("ties", base, models, weight=weight, density=density, scale=1.3)
    exact = transcribed_ties(base, models, weight, density, 1.3, True)
    # Where weighted updates nearly cancel, the elected sign depends on rounding.
    taus = [w * (m - base) for w, m in zip(weight, models, strict=True)]
    clear = np.abs(sum(taus)) > 1e-6
    assert np.allclose(got[clear], exact[clear], atol=1e-5)


def test_dare_keeps_the_expected_task_vector():
    """The mean over many seeds is the undropped sum, as the paper's rescaling promises."""
    base, tau = torch.zeros(4000), torch.linspace(0.5, 1.5, 4000)
    how = Masked(np.array([1.0]), np.array([0.25]), "random", rescale=True)
    merged = [eager.masked_sum(base, [tau], how, [Kept(key=(s, 0))]) for s in range(200)]
    mean = torch.stack(merged).mean(0)
    # standard error of one element: tau sqrt((1 - p) / p / 200) = 0.12 tau; of the mean ratio, less
    assert abs((mean / tau).mean().item() - 1.0) < 0.01
    kept = merged[0] != 0
    assert torch.allclose(merged[0][kept], tau[kept] / 0.25)


def test_slerp_walks_the_great_circle():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(9, 4))
    b = rng.normal(size=(9, 4))
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    angle = np.arccos((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
    for t in (0.0, 0.3, 1.0):
        got = merge_arrays("slerp", a, [a, b], t=t)
        exact = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
        assert np.allclose(got, exact, atol=1e-5)
        assert np.isclose(np.linalg.norm(got), np.linalg.norm(a), rtol=1e-5)


def test_slerp_of_near_parallel_tensors_is_the_chord():
    a = np.ones((4, 4), np.float32)
    b = a * 1.5
    assert np.allclose(merge_arrays("slerp", a, [a, b], t=0.25), 0.75 * a + 0.25 * b)


def test_task_arithmetic_extrapolates():
    base, model = np.zeros(3, np.float32), np.array([1.0, -2.0, 3.0], np.float32)
    got = merge_arrays("task_arithmetic", base, [model], weight=(1.5,), scale=2.0)
    assert np.allclose(got, 3.0 * model)


def test_linear_normalizes_its_weights():
    models = [np.full(2, v, np.float32) for v in (1.0, 4.0)]
    assert np.allclose(merge_arrays("linear", models[0], models, weight=(1.0, 2.0)), 3.0)
