"""Prepared sources against transcriptions of their papers in float64; their cache."""

import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.cache.eviction import empty
from evomerge.campaign.build import checked
from evomerge.campaign.source_hashes import hash_sources
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, SourceChanged
from evomerge.kernels.magnitude_histogram import kth_largest
from evomerge.merging import task_vectors as prepare
from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS
from evomerge.merging.validation import method_of
from evomerge.sources.source import open_source
from evomerge.testing import merge_arrays, recipe_of
from evomerge.workers.protocol import Job
from evomerge.workers.worker import Worker

PREPARED = sorted(n for n, o in METHODS.all().items() if o.prepare and o.reads != "texts")
SEEDS = st.integers(0, 30)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def arrays(seed, shape, count):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    models = [base + rng.normal(size=shape).astype(np.float32) * 0.1 for _ in range(count)]
    return base, models, [(m - base).astype(np.float64) for m in models]


@settings(max_examples=10)
@given(seed=SEEDS, shape=st.sampled_from([(12, 9), (5, 16)]), count=st.integers(1, 3))
def test_tsv_m_keeps_orthonormal_singular_parts(seed, shape, count):
    base, models, taus = arrays(seed, shape, count)
    k = min(shape) // count
    left, right, sizes = [], [], []
    for tau in taus:
        u, s, v = np.linalg.svd(tau, full_matrices=False)
        left.append(u[:, :k])
        sizes.append(s[:k])
        right.append(v[:k].T)

    def polar(columns):  # X (X^T X)^(-1/2), the nearest matrix with orthonormal columns
        values, vectors = np.linalg.eigh(columns.T @ columns)
        return columns @ vectors @ np.diag(values**-0.5) @ vectors.T

    merged = polar(np.hstack(left)) @ np.diag(np.hstack(sizes)) @ polar(np.hstack(right)).T
    got = merge_arrays("tsv_m", base, models, weight=1.0)
    assert np.allclose(got - base, merged, atol=2e-5)


@settings(max_examples=10)
@given(seed=SEEDS, shape=st.sampled_from([(12, 9), (4, 11)]), ridge=st.sampled_from([0.1, 1.0]))
def test_wudi_is_where_the_ridged_gradient_vanishes(seed, shape, ridge):
    base, models, taus = arrays(seed, shape, 3)
    grams = [t.T @ t / (t**2).sum() for t in taus]
    strength = ridge * np.trace(sum(grams)) / shape[1]
    merged = merge_arrays("wudi", base, models, options={"ridge": ridge}).astype(float) - base
    pulls = [(merged - t) @ g for t, g in zip(taus, grams, strict=True)]
    assert np.abs(sum(pulls) + strength * (merged - sum(taus))).max() < 1e-6


@settings(max_examples=10)
@given(seed=SEEDS, ratio=st.sampled_from([0.1, 0.5]))
def test_pcb_is_its_papers(seed, ratio):
    base, models, taus = arrays(seed, (15, 20), 3)
    flat = np.array([t.ravel() for t in taus])
    size = np.abs(flat)  # fewer than 10,000 elements: nothing is clamped
    scaled = (size - size.min(1, keepdims=True)) / np.ptp(size, 1)[:, None]
    balance = np.exp(3 * scaled**2) * np.tanh(flat * flat.sum(0))
    cut = np.sort(balance, 1)[:, ::-1][:, int(ratio * 300) - 1][:, None]
    score = (np.maximum(balance, cut) - cut) / (balance.max(1, keepdims=True) - cut)
    share = score / np.maximum(score.sum(0), 1e-12)
    got = merge_arrays("pcb", base, models, weight=1.0, options={"ratio": ratio})
    assert np.allclose((got - base).ravel(), (flat * share).sum(0), atol=1e-4)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_widen_is_its_papers(seed):
    base, models, taus = arrays(seed, (8, 13), 2)
    wide = base.astype(float)

    def importance(moved):
        ranks = np.argsort(np.argsort(moved, 1), 1) / moved.shape[1]
        shared = np.exp(ranks) / np.exp(ranks).sum(0)
        return np.where(ranks * moved.shape[1] > (moved.shape[1] - 1) / 2 + 1e-9, 1.0, shared)

    def unit(x):
        return x / np.linalg.norm(x, axis=0)

    lengths = np.array([np.linalg.norm(wide + t, axis=0) for t in taus])
    turned = np.array([1 - (unit(wide + t) * unit(wide)).sum(0) for t in taus])
    both = importance(np.abs(lengths - np.linalg.norm(wide, axis=0))) + importance(turned)
    wanted = wide + sum(t * s / 2 for t, s in zip(taus, both, strict=True))
    got = merge_arrays("widen", base, models)
    assert np.allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("method", PREPARED)
def test_directions_are_weighed_linearly(method):
    base, models, _ = arrays(3, (6, 8), 3)
    parts = [
        merge_arrays(method, base, models, weight=tuple(map(float, row))) - base
        for row in np.eye(3)
    ]
    got = merge_arrays(method, base, models, weight=(0.3, -0.2, 0.9), scale=2.0)
    wanted = base + 2.0 * (0.3 * parts[0] - 0.2 * parts[1] + 0.9 * parts[2])
    assert np.allclose(got, wanted, atol=1e-5)


def merger_of(world):
    names = [str(world / name) for name in ("base", "a", "b", "c")]
    opened = {n: open_source(n) for n in names}
    return names, Merger(opened, {n: f"hash of {n}" for n in names})


def test_they_are_made_once_for_all_workers_and_runs(world, monkeypatch):
    """Four threads at once, then another merger; other options or sources are others."""
    made = []
    plain = prepare._write
    monkeypatch.setattr(prepare, "_write", lambda *given: (made.append(1), plain(*given)))
    names, first = merger_of(world)
    recipe = recipe_of("pcb", names[1:], names[0])
    mergers = [first] + [merger_of(world)[1] for _ in range(3)]
    found = [None] * 4

    def merge(i):
        found[i] = dict(mergers[i].stream(recipe))

    threads = [threading.Thread(target=merge, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(each[name].equal(found[0][name]) for each in found for name in found[0])
    list(first.stream(recipe_of("pcb", names[1:], names[0], options={"ratio": 0.3})))
    list(first.stream(recipe_of("pcb", names[2:], names[0])))
    assert len(made) == 3
    assert len(list(cache_folder("prepared").glob("*.tmp"))) == 0


def test_a_killed_preparation_leaves_nothing_that_is_taken_for_whole(world, monkeypatch):
    names, merger = merger_of(world)
    recipe = recipe_of("tsv_m", names[1:], names[0])
    plain = dict(merger.stream(recipe))
    shutil.rmtree(cache_folder("prepared"))

    def broken(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write", broken)
        with pytest.raises(KeyboardInterrupt):
            list(merger_of(world)[1].stream(recipe))
    again = dict(merger_of(world)[1].stream(recipe))
    assert all(again[name].equal(tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("damage", ["cut", "missing", "killed"])
def test_a_damaged_preparation_is_made_again(world, damage):
    names, merger = merger_of(world)
    recipe = recipe_of("widen", names[1:], names[0])
    plain = dict(merger.stream(recipe))
    (folder,) = (f for f in cache_folder("prepared").iterdir() if f.is_dir())
    if damage == "cut":
        data = (folder / "1.safetensors").read_bytes()
        (folder / "1.safetensors").write_bytes(data[:-40])
    elif damage == "missing":
        (folder / "2.safetensors").unlink()
    else:
        folder.rename(folder.with_suffix(".tmp"))
    again = dict(merger_of(world)[1].stream(recipe))
    assert all(again[name].equal(tensor) for name, tensor in plain.items())
    assert not list(cache_folder("prepared").glob("*.tmp"))


def test_they_are_held_and_room_is_made_for_them(world, monkeypatch):
    names, merger = merger_of(world)
    unused = cache_folder("candidates") / "unused"
    unused.mkdir(parents=True)
    monkeypatch.setenv("EVOMERGE_CACHE_GB", "0")
    plain = dict(merger.stream(recipe_of("pcb", names[1:], names[0])))
    (folder,) = (f for f in cache_folder("prepared").iterdir() if f.is_dir())
    assert not unused.exists()
    assert empty(("prepared",)).kept.keys() == {f"prepared/{folder.name}"}
    merger.prepare([recipe_of("widen", names[1:], names[0])])
    again = dict(merger.stream(recipe_of("pcb", names[1:], names[0])))
    assert folder.exists() and all(again[n].equal(tensor) for n, tensor in plain.items())


def test_a_preparation_that_somebody_removes_is_no_candidates_fault(world, campaign_file):
    """The campaign stops with a line, and the same command makes it again."""
    method = {"kind": "parameters", "method": "pcb", "axes": {"weight": {"low": 0, "high": 1}}}
    campaign = hash_sources(checked(campaign_file(space=method), [], {})[0], {})
    worker = Worker(campaign.worker)
    job = Job(1, campaign.space.first, "search")
    shutil.rmtree(cache_folder("prepared"))
    with pytest.raises(SourceChanged, match=r"0\.safetensors is gone; run the same again"):
        worker.evaluate(job)
    assert Worker(campaign.worker).evaluate(job).status == "ok"


def test_tsv_m_is_not_turned_by_a_model_that_left_a_matrix_alone():
    """Singular vectors of what is zero, or of rounding, are anybody's."""
    base, (model, _), (tau, _) = arrays(1, (12, 10), 2)
    got = merge_arrays("tsv_m", base, [model, base], weight=1.0) - base
    u, s, v = np.linalg.svd(tau)
    assert np.allclose(got, u[:, :5] * s[:5] @ v[:5], atol=1e-5)


@given(zeros=st.integers(0, 40), others=st.integers(0, 5), k=st.integers(0, 50))
def test_kth_largest_among_many_zeros(zeros, others, k):
    values = np.concatenate([np.zeros(zeros), -np.linspace(1e-40, 1.0, others)])
    parts = [torch.tensor(part, dtype=torch.float32) for part in np.array_split(values, 3)]
    ranked = np.sort(np.abs(values.astype(np.float32)))[::-1]
    wanted = np.inf if k < 1 else 0.0 if k > len(ranked) else ranked[k - 1]
    assert kth_largest(lambda: parts, k) == wanted


def test_options_that_are_numbers_are_checked():
    recipe = recipe_of("pcb", ["a", "b"], "base", options={"ratio": 1.5})
    with pytest.raises(BadInput, match=r"options\.ratio: 1\.5 is not a number from 0 to 1"):
        method_of(recipe)
    with pytest.raises(BadInput, match=r"options\.ratoi: pcb has no option 'ratoi'; .*ratio"):
        method_of(recipe_of("pcb", ["a", "b"], "base", options={"ratoi": 0.5}))


# --- spectral methods and DOGE ---------------------------------------------------------------


@settings(max_examples=10)
@given(seed=SEEDS, shape=st.sampled_from([(12, 9), (5, 16)]), count=st.integers(1, 3))
def test_iso_c_has_the_sums_singular_vectors_and_one_singular_value(seed, shape, count):
    base, models, taus = arrays(seed, shape, count)
    u, s, v = np.linalg.svd(sum(taus), full_matrices=False)
    got = merge_arrays("iso", base, models, options={"common": 1.0}) - base
    assert np.allclose(got, s.mean() * u @ v, atol=2e-5)


@settings(max_examples=10)
@given(seed=SEEDS, common=st.sampled_from([0.3, 0.5, 0.8]))
def test_iso_cts_fills_the_rank_with_parts_of_single_models(seed, common):
    base, models, taus = arrays(seed, (14, 10), 2)
    each = round((10 - int(10 * common)) / 2)
    k = 10 - 2 * each
    u, s, v = np.linalg.svd(sum(taus), full_matrices=False)
    left, sizes, right = [u[:, :k]], [s[:k]], [v[:k].T]
    for tau in taus:
        rest = tau - u[:, :k] @ u[:, :k].T @ tau
        a, b, c = np.linalg.svd(rest, full_matrices=False)
        left.append(a[:, :each]), sizes.append(b[:each]), right.append(c[:each].T)

    def polar(columns):
        values, vectors = np.linalg.eigh(columns.T @ columns)
        return columns @ vectors @ np.diag(values**-0.5) @ vectors.T

    wanted = np.hstack(sizes).mean() * polar(np.hstack(left)) @ polar(np.hstack(right)).T
    got = merge_arrays("iso", base, models, options={"common": common}) - base
    assert np.allclose(got, wanted, atol=5e-5)


def test_iso_leaves_rounding_out():
    """A sum of rank one has one singular part; others are rounding and stay as small."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(9, 7)).astype(np.float32)
    step = np.outer(rng.normal(size=9), rng.normal(size=7)).astype(np.float32)
    got = merge_arrays("iso", base, [base + step, base + step], options={"common": 1.0}) - base
    assert np.allclose(got, 2 * step, atol=1e-4)


@settings(max_examples=10)
@given(seed=SEEDS, least=st.sampled_from([0.5, 1.0]), count=st.integers(1, 3))
def test_svc_divides_each_direction_by_how_often_it_is_counted(seed, least, count):
    base, models, taus = arrays(seed, (11, 8), count)
    u, s, v = np.linalg.svd(sum(taus), full_matrices=False)
    sizes = []
    for r in range(8):
        whole = u[:, r] @ sum(taus)
        slopes = [whole @ (u[:, r] @ t) / ((u[:, r] @ t) ** 2).sum() for t in taus]
        sizes.append(s[r] * count / sum(max(least, slope) for slope in slopes))
    got = merge_arrays("svc", base, models, options={"least": least}) - base
    assert np.allclose(got, u @ np.diag(sizes) @ v, atol=2e-5)


def test_svc_counts_what_all_share_once():
    """Of N equal models it leaves one; of models that share nothing, their sum."""
    base, (model,), _ = arrays(1, (6, 6), 1)
    assert np.allclose(merge_arrays("svc", base, [model] * 3), model, atol=1e-5)
    apart = [base + np.outer(row, row).astype(np.float32) for row in np.eye(6)[:3]]
    assert np.allclose(merge_arrays("svc", base, apart), sum(apart) - 2 * base, atol=1e-5)


@settings(max_examples=10)
@given(
    seed=SEEDS,
    used=st.sampled_from([0.3, 0.5, 0.9]),
    shape=st.sampled_from([(9, 12), (12, 9), (10, 10)]),
)
def test_opcm_is_its_papers_step_by_step(seed, used, shape):
    """As the paper has it: the merge is brought to the average length after each model."""
    base, models, taus = arrays(seed, shape, 3)
    merged, grown, lengths = taus[0], 1.0, [np.linalg.norm(taus[0])]
    for tau in taus[1:]:
        u, s, v = np.linalg.svd(merged)
        split = int(np.argmax(s.cumsum() / s.sum() > used))
        projected = u.T @ tau @ v.T
        np.fill_diagonal(projected, 0.0)
        projected[:split, :split] = 0.0
        lengths.append(np.linalg.norm(tau))
        whole = grown * merged + u @ projected @ v
        grown = np.linalg.norm(whole) / np.mean(lengths)
        merged = whole / grown
    got = merge_arrays("opcm", base, models, options={"used": used}) - base
    assert np.allclose(got, merged, atol=2e-5)
    assert np.linalg.norm(got) == pytest.approx(np.mean(lengths), rel=1e-4)


@settings(max_examples=5)
@given(seed=SEEDS, count=st.integers(2, 3))
def test_doge_is_its_papers(seed, count):
    """By autograd of the loss as it is written, in float64."""
    base, models, taus = arrays(seed, (14, 12), count)
    wide = torch.tensor(np.array(taus))
    factors = 0.5 / wide.flatten(1).norm(dim=1)
    lefts = [torch.linalg.svd(tau)[0][:, : 12 // count] for tau in wide]
    shared = torch.linalg.svd(torch.cat(lefts, 1))[0][:, :2]
    delta = torch.zeros(14, 12, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=1e-4)
    for _ in range(400):
        adam.zero_grad()
        merged = sum(f * (tau + delta) for f, tau in zip(factors, wide, strict=True))
        sum((tau * (tau - merged)).sum(1).pow(2).sum() for tau in wide).backward()
        delta.grad -= shared @ shared.T @ delta.grad
        adam.step()
    bounds = wide.abs().flatten(1).sort(descending=True)[0][:, int(0.4 * 14 * 12) - 1]
    wanted = sum(
        f * (tau.abs() >= bound) * (tau + delta.detach())
        for f, tau, bound in zip(factors, wide, bounds, strict=True)
    )
    options = {"length": 0.5, "kept": 0.4}
    got = merge_arrays("doge", base, models, options=options) - base
    off = np.abs(got - wanted.numpy())
    assert np.quantile(off, 0.99) < 1e-3  # a mask's edge may fall otherwise in float32
    assert float(delta.detach().abs().max()) > 1e-3  # it has moved


def test_varm_shares_each_tensor_by_its_movement():
    base, models, taus = arrays(4, (5, 6), 3)
    squares = np.array([(tau**2).mean() for tau in taus])
    wanted = sum(w * tau for w, tau in zip(squares / squares.sum(), taus, strict=True))
    assert np.allclose(merge_arrays("varm", base, models) - base, wanted, atol=1e-6)
    assert np.array_equal(merge_arrays("varm", base, [base, base]), base)
    weight = np.array([0.5, -1.0, 2.0])
    shares = weight * squares / np.abs(weight * squares).sum()
    wanted = sum(w * tau for w, tau in zip(shares, taus, strict=True))
    got = merge_arrays("varm", base, models, weight=tuple(weight)) - base
    assert np.allclose(got, wanted, atol=1e-6)


@settings(max_examples=10)
@given(seed=SEEDS, kept=st.sampled_from([0.05, 0.2, 1.0]))
def test_compeft_keeps_signs_of_the_largest(seed, kept):
    base, models, taus = arrays(seed, (15, 20), 2)
    wanted = np.zeros((15, 20))
    for tau in taus:
        bound = np.sort(np.abs(tau).ravel())[::-1][int(kept * 300) - 1]
        wanted += tau.std() * np.sign(tau) * (np.abs(tau) >= bound)
    got = merge_arrays("compeft", base, models, options={"kept": kept}) - base
    assert np.allclose(got, wanted, atol=1e-5)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_bitdelta_is_the_nearest_of_its_form(seed):
    base, (model,), (tau,) = arrays(seed, (7, 9), 1)
    got = merge_arrays("bitdelta", base, [model]) - base
    factor = (tau * np.sign(tau)).sum() / tau.size  # least squares of tau by its signs
    assert np.allclose(got, factor * np.sign(tau), atol=1e-6)


@settings(max_examples=10)
@given(seed=SEEDS, count=st.integers(2, 3))
def test_resm_shares_ranks_by_density_and_weakens_outliers(seed, count):
    base, models, _ = arrays(seed, (12, 9), count)
    models[0][0, 0] += 5.0  # an outlier: a sparser task vector, of which less is taken
    taus = [(m - base).astype(np.float64) for m in models]
    densities = [np.abs(t).sum() ** 2 / t.size / (t**2).sum() for t in taus]
    ranks = [int(9 * d / sum(densities)) for d in densities]
    kept = []
    for tau in taus:
        small = np.abs(tau) <= 3 * np.sqrt((tau**2).mean())
        kept.append((tau[small] ** 2).sum() / (tau**2).sum())
    parts = [np.linalg.svd(t, full_matrices=False) for t in taus]
    left = np.hstack([u[:, :k] for (u, _, _), k in zip(parts, ranks, strict=True)])
    right = np.hstack([v[:k].T for (*_, v), k in zip(parts, ranks, strict=True)])
    sizes = []
    for (_, s, _), k, share in zip(parts, ranks, kept, strict=True):
        sizes += [*(s[:k] * share / np.mean(kept))]
    polar = [np.linalg.svd(side, full_matrices=False) for side in (left, right)]
    lefts, rights = (u @ v for u, _, v in polar)
    got = merge_arrays("resm", base, models, weight=1.0)
    assert ranks[0] < min(ranks[1:])
    assert np.allclose(got - base, lefts * sizes @ rights.T, atol=1e-4)
