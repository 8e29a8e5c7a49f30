"""Each merge method against its formula, written out in float64 over whole vectors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from evomerge.kernels.chances import keep_by_rank, rank_levels
from evomerge.kernels.masked import Masked
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.sources.safetensors_file import read_header
from evomerge.sources.source import Source
from evomerge.testing import merge_arrays

SHAPES = st.sampled_from([(1,), (17,), (6, 5), (2, 3, 4)])
SEEDS = st.integers(0, 60)


def arrays(seed, shape, count, spread=0.1):
    """A base and models, float32; task vectors in float64 as the engine sees them."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    models = [base + rng.normal(size=shape).astype(np.float32) * spread for _ in range(count)]
    return base, models, [(m - base).astype(np.float64) for m in models]


def dots(vectors):
    flat = np.stack([v.ravel() for v in vectors])
    return flat @ flat.T


@given(
    seed=SEEDS,
    shape=SHAPES,
    density=st.floats(0.0, 1.0),
    gamma=st.floats(0.0, 1.0),
    elect=st.booleans(),
)
@example(seed=0, shape=(1,), density=1.0, gamma=0.0, elect=False)
def test_breadcrumbs(seed, shape, density, gamma, elect):
    base, models, taus = arrays(seed, shape, 3)
    weight = (0.5, 1.0, -0.7)
    values = {"weight": weight, "density": density, "gamma": gamma, "scale": 1.2}
    got = merge_arrays("breadcrumbs", base, models, options={"elect": elect}, **values)
    parts = []
    for tau, w in zip(taus, weight, strict=True):
        order = np.argsort(-np.abs(tau).ravel(), kind="stable")
        top = int(gamma * tau.size)
        keep = order[top : top + int(density * tau.size)]
        left = np.zeros(tau.size)
        left[keep] = tau.ravel()[keep]
        parts.append(w * left.reshape(shape))
    total = sum(parts)
    if elect:
        total = sum(p * (np.sign(p) == np.sign(sum(parts))) for p in parts)
    clear = np.abs(sum(parts)) > 1e-6  # elsewhere an elected sign depends on rounding
    assert np.allclose(got[clear], (base + 1.2 * total)[clear], atol=1e-5)


@given(seed=SEEDS, shape=SHAPES, share=st.floats(0.0, 1.0))
def test_sce(seed, shape, share):
    base, models, taus = arrays(seed, shape, 3)
    got = merge_arrays("sce", base, models, density=share, scale=0.8)
    stack = np.stack(taus)
    spread = np.stack([t.astype(np.float32) for t in taus]).var(0)
    k = int(share * (spread > 0).sum())
    order = np.sort(spread.ravel())[::-1]
    mask = np.ones(shape, bool) if share == 1 else spread >= (order[k - 1] if k else np.inf)
    stack = stack * mask
    energy = (stack**2).reshape(3, -1).mean(1)
    weights = (energy / (energy.sum() or 1)).reshape(-1, *[1] * len(shape))
    total = (weights * stack).sum(0)
    agree = (np.sign(stack) == np.sign(total)) & (stack != 0)
    divisor = (weights * agree).sum(0)
    wanted = (weights * stack * agree).sum(0) / np.where(divisor > 0, divisor, 1)
    near_tie = k and k < spread.size and np.isclose(order[k - 1], order[k], rtol=1e-5)
    clear = (np.abs(total) > 1e-7) | ~mask
    if not near_tie:
        assert np.allclose(got[clear], (base + 0.8 * wanted)[clear], atol=1e-5)


@given(seed=SEEDS, shape=SHAPES)
def test_magmax_takes_the_largest(seed, shape):
    base, models, taus = arrays(seed, shape, 4)
    weight = (1.0, 0.5, 2.0, 1.0)
    got = merge_arrays("magmax", base, models, weight=weight, scale=0.7)
    parts = np.stack([w * t for w, t in zip(weight, taus, strict=True)])
    largest = np.take_along_axis(parts, np.abs(parts).argmax(0)[None], 0)[0]
    assert np.allclose(got, base + 0.7 * largest, atol=1e-5)


def test_magmax_takes_the_later_of_equals():
    base = np.zeros(3, np.float32)
    models = [base + 1, base - 1]
    assert (merge_arrays("magmax", base, models, scale=1.0) == -1).all()


@given(seed=SEEDS, shape=SHAPES, least=st.sampled_from([1.0, 2.0, 3.0]))
def test_consensus(seed, shape, least):
    base, models, taus = arrays(seed, shape, 3)
    threshold = (0.2, 0.4, 0.6)
    values = {"threshold": threshold, "least": least, "scale": 0.3}
    got = merge_arrays("consensus", base, models, **values)
    total = sum(taus)
    gaps = [np.abs(t) - h * np.abs(total - t) for t, h in zip(taus, threshold, strict=True)]
    votes = sum((g > 0).astype(int) for g in gaps)
    clear = np.min(np.abs(gaps), axis=0) > 1e-6
    wanted = base + 0.3 * total * (votes >= least)
    assert np.allclose(got[clear], wanted[clear], atol=1e-5)


@pytest.mark.parametrize("base_given", [False, True])
def test_multislerp_is_the_exponential_map_at_the_normalized_mean(base_given):
    base, models, taus = arrays(3, (7, 9), 3)
    weight = np.array([0.2, 0.5, 0.9])
    got = merge_arrays("multislerp", base, models, weight=tuple(weight), based=base_given)
    share = weight / weight.sum()
    vectors = taus if base_given else [m.astype(float) for m in models]
    norms = [np.linalg.norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = sum(s * u for s, u in zip(share, units, strict=True))
    mean /= np.linalg.norm(mean)
    tangent = sum(s * (u - (u * mean).sum() * mean) for s, u in zip(share, units, strict=True))
    far = np.linalg.norm(tangent)
    point = np.cos(far) * mean + (np.sin(far) * tangent / far if far > 1e-12 else 0)
    wanted = point * (share @ norms) + (base if base_given else 0)
    assert np.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("base_given", [False, True])
def test_karcher_is_where_the_logarithms_cancel(base_given):
    base, models, taus = arrays(5, (40,), 4, spread=0.8)
    weight = np.array([0.1, 0.2, 0.3, 0.4])
    got = merge_arrays("karcher", base, models, weight=tuple(weight), based=base_given)
    vectors = taus if base_given else [m.astype(float) for m in models]
    point = got.astype(float) - (base if base_given else 0)
    assert np.linalg.norm(point) == pytest.approx(
        sum(w * np.linalg.norm(v) for w, v in zip(weight, vectors, strict=True)), rel=1e-5
    )
    point /= np.linalg.norm(point)
    pull = 0
    for w, v in zip(weight, vectors, strict=True):
        unit = v / np.linalg.norm(v)
        angle = math.acos(unit @ point)
        pull = pull + w * angle / math.sin(angle) * (unit - (unit @ point) * point)
    assert np.linalg.norm(pull) < 1e-5


def test_karcher_of_two_is_half_way_along_the_circle():
    rng = np.random.default_rng(1)
    a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 30)))
    got = merge_arrays("karcher", a, [a, b], weight=(0.5, 0.5), based=False)
    assert np.allclose(got, merge_arrays("slerp", a, [a, b], t=0.5), atol=1e-6)


@pytest.mark.parametrize("base_given", [False, True])
def test_nuslerp_keeps_the_norm_of_task_vectors(base_given):
    base, models, taus = arrays(8, (11, 4), 2)
    got = merge_arrays("nuslerp", base, models, weight=(1.0, 3.0), based=base_given)
    a, b = taus if base_given else [m.astype(float) for m in models]
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    w, t = math.acos(cosine), 0.75
    wanted = (math.sin((1 - t) * w) * a + math.sin(t * w) * b) / math.sin(w)
    assert np.allclose(got, wanted + (base if base_given else 0), atol=1e-5)
    halves = merge_arrays("nuslerp", base, models, weight=(1.0, -1.0), based=True)
    equal = merge_arrays("nuslerp", base, models, weight=(1.0, 1.0), based=True)
    assert np.array_equal(halves, equal)


def test_model_stock_is_its_papers_ratio():
    base, models, taus = arrays(2, (9, 9), 3)
    shared = np.random.default_rng(9).normal(size=(9, 9)).astype(np.float32) * 0.1
    models = [m + shared for m in models]
    taus = [(m - base).astype(float) for m in models]
    gram = dots(taus)
    norms = np.sqrt(np.diag(gram))
    cosine = (gram / np.outer(norms, norms))[np.triu_indices(3, 1)].mean()
    t = 3 * cosine / (1 + 2 * cosine)
    wanted = t * np.mean(models, 0) + (1 - t) * base
    assert np.allclose(merge_arrays("model_stock", base, models), wanted, atol=1e-5)
    right_angles = [base + np.eye(9, dtype=np.float32)[i][None] * 0.1 for i in range(3)]
    assert np.allclose(merge_arrays("model_stock", base, right_angles), base, atol=1e-6)


def test_model_stock_of_one_model_is_that_model():
    base, (model,), _ = arrays(2, (5,), 1)
    assert np.allclose(merge_arrays("model_stock", base, [model]), model, atol=1e-6)


@given(seed=SEEDS, shape=st.sampled_from([(1,), (9,), (4, 7)]), density=st.floats(0.2, 0.8))
def test_della_chances_rise_with_the_rank_in_the_row(seed, shape, density):
    """Within a step of the 256 levels; what is kept is divided by its own chance."""
    tau = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    how = Masked(np.ones(1), np.full(1, density), "ranked", rescale=True, epsilon=0.15)
    thresholds, inverses = keep_by_rank(density, how)
    levels, n = rank_levels(tau).reshape(-1, shape[-1]), shape[-1]
    for row, level in zip(tau.abs().reshape(-1, n), levels, strict=True):
        chances = thresholds[level.numpy()] / 2**16
        order = np.argsort(row.numpy(), kind="stable")
        wanted = density - 0.15 + 0.3 * np.arange(n) / (n - 1) if n > 1 else [density]
        assert np.allclose(chances[order], wanted, rtol=0, atol=0.15 / 255 + 2.0**-16)
        assert np.allclose(inverses[level.numpy()] * chances, 1.0)


def test_della_keeps_the_expected_task_vector():
    base = np.zeros((3, 400), np.float32)
    tau = np.linspace(0.5, 1.5, 1200, dtype=np.float32).reshape(3, 400)
    values = {"weight": (1.0,), "density": 0.4, "epsilon": 0.2}
    merged = [merge_arrays("della", base, [tau], seed=s, **values) for s in range(150)]
    mean = np.mean(merged, 0)
    # of one element the standard error is tau sqrt((1 - p) / p / 150) <= 0.17 tau
    assert abs((mean / tau).mean() - 1) < 0.02
    share = np.mean(merged, 0) > 0
    assert share.all()
    kept = (np.array(merged) != 0).mean(0)
    assert np.allclose(kept.mean(), 0.4, atol=0.01)
    assert kept[:, -40:].mean() - kept[:, :40].mean() == pytest.approx(0.36, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.3, 0.77, 1.0])
def test_ties_over_the_whole_task_vector(tmp_path, dtype, density):
    """One threshold for all tensors together: here the second's updates are ten times larger."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"model.layers.0.a.weight": (30, 7), "model.layers.1.a.weight": (50,)}
    files = {}
    for name in ("base", "x", "y"):
        files[name] = {
            k: torch.randn(s, generator=generator) * (1 if name == "base" else 0.1 * 10**i)
            for i, (k, s) in enumerate(shapes.items())
        }
    for name in ("x", "y"):
        files[name] = {k: t + files["base"][k] for k, t in files[name].items()}
    opened = {}
    for name, tensors in files.items():
        files[name] = {k: t.to(dtype) for k, t in tensors.items()}
        file = tmp_path / f"{name}.safetensors"
        save_file(files[name], file)
        opened[name] = Source(name, tmp_path, {}, read_header(file), {})
    group = Group(None, None, {"weight": (1.0, 0.5), "density": (density, 1.0)})
    recipe = ParametersRecipe(
        "ties", ("x", "y"), (group,), "base", "float32", options={"whole": True}
    )
    got = dict(Merger(opened, dict.fromkeys(files, "")).stream(recipe))

    def flat(name):
        return torch.cat([files[name][k].float().flatten() for k in shapes]).double().numpy()

    taus = [(flat(n) - flat("base")).astype(np.float32) for n in ("x", "y")]
    if dtype == torch.bfloat16:
        taus = [torch.tensor(t).bfloat16().float().numpy() for t in taus]
    k = int(density * len(taus[0]))
    ranked = np.sort(np.abs(taus[0]))[::-1]
    thinned = taus[0] * (np.abs(taus[0]) >= (ranked[k - 1] if k else np.inf))
    parts = np.stack([thinned, 0.5 * taus[1]])
    agree = (np.sign(parts) == np.sign(parts.sum(0))) & (parts != 0)
    share = (agree * np.array([[1.0], [0.5]])).sum(0)
    wanted = flat("base") + (parts * agree).sum(0) / np.where(share > 0, share, 1)
    ours = torch.cat([got[k].flatten() for k in shapes]).double().numpy()
    clear = np.abs(parts.sum(0)) > 1e-6
    assert np.allclose(ours[clear], wanted[clear], atol=1e-5)
