"""KnOTS and LoRA-LEGO within adapters' factors, against dense float64; what they export."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.cluster import KMeans
from test_adapters import adapted
from test_joined_adapters import assert_alike, merged_by_peft, pool
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.config.validate import read_plan
from evomerge.errors import BadInput
from evomerge.export.model_directory import merge_to
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.philox import philox
from evomerge.merging.joined_adapter import adapter_faults, join_adapters
from evomerge.merging.k_means import k_means
from evomerge.merging.merger import Merger
from evomerge.merging.methods import METHODS
from evomerge.merging.methods.lora_lego import clusters
from evomerge.merging.shared_basis import shared_basis
from evomerge.merging.source_weights import SourceWeights
from evomerge.merging.statistics import mask_key
from evomerge.merging.update import Update
from evomerge.merging.validation import group_index
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT talks of tied weights
ROOT = Path(__file__).parents[1]
FACTORED = sorted(name for name, m in METHODS.all().items() if m.family == "factored")
SEEDS = st.integers(0, 50)
RANKS = st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any)


def updates_of(seed, ranks, shape=(11, 7), dtype=torch.float64):
    """Factors of random updates; those of rank 0 add nothing."""
    rng = np.random.default_rng(seed)
    updates = []
    for rank in ranks:
        left = torch.from_numpy(rng.normal(size=(shape[0], rank))).to(dtype)
        right = torch.from_numpy(rng.normal(size=(rank, shape[1]))).to(dtype)
        updates.append(Update(left, right, float(rng.uniform(0.5, 3.0))))
    return tuple(updates)


def dense(update):
    return (update.left.double() @ update.right.double() * update.scale).numpy()


def largest(values, density):
    """The `density` largest of the magnitudes stay."""
    k = int(density * values.size)
    cut = np.sort(np.abs(values).ravel())[::-1][k - 1] if k else np.inf
    return values * (np.abs(values) >= cut) if k < values.size else values


def elected(parts, weight, normalize):
    """TIES' election, of thinned parts: written as the paper has it, on whole arrays."""
    weighted = np.array([w * part for w, part in zip(weight, parts, strict=True)])
    agree = (np.sign(weighted) == np.sign(weighted.sum(0))) & (weighted != 0)
    total = (weighted * agree).sum(0)
    divisor = (np.abs(weight)[:, None, None] * agree).sum(0)
    return total / np.where(divisor > 0, divisor, 1.0) if normalize else total


def knots(taus, weight, density, scale=1.0, normalize=True, thin=largest):
    """KnOTS-TIES by one decomposition of the dense updates side by side."""
    u, s, v = np.linalg.svd(np.hstack(taus), full_matrices=False)
    real = s > 1e-9
    coordinates = np.diag(s[real]) @ v[real]
    coordinates[np.abs(coordinates) < 1e-12] = 0.0  # rounding, which has a sign as well
    parts = np.split(coordinates, len(taus), axis=1)
    thinned = [thin(part, d) for part, d in zip(parts, density, strict=True)]
    return u[:, real] @ elected(thinned, np.asarray(weight), normalize) * scale


# --- KnOTS -----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(seed=SEEDS, ranks=RANKS, shape=st.sampled_from([(11, 7), (5, 12), (3, 40)]))
def test_the_basis_is_that_of_the_dense_updates_side_by_side(seed, ranks, shape):
    """Also where their ranks' sum is more than the matrix bears."""
    updates = updates_of(seed, ranks, shape)
    shared = shared_basis(updates)
    wide = np.hstack([dense(update) for update in updates])
    rank = np.linalg.matrix_rank(wide)
    assert shared.basis.shape == (shape[0], rank)
    assert np.allclose(shared.basis.T @ shared.basis, np.eye(rank), atol=1e-12)
    coordinates = []
    for update, turn in zip(updates, shared.turns, strict=True):
        coordinates.append(turn @ update.right)
        assert np.allclose(shared.basis @ coordinates[-1], dense(update), atol=1e-10)
    sizes = torch.cat(coordinates, 1).norm(dim=1)  # the rows of S V: V's have length 1
    assert np.allclose(sizes, np.linalg.svd(wide)[1][:rank], atol=1e-10)


@settings(max_examples=25)
@given(
    seed=SEEDS,
    ranks=RANKS,
    density=st.sampled_from([0.0, 0.2, 0.55, 1.0]),
    normalize=st.booleans(),
)
def test_knots_ties_is_its_papers(seed, ranks, density, normalize):
    updates = updates_of(seed, ranks)
    weight = np.random.default_rng(seed).uniform(-0.5, 1.5, len(ranks))
    densities = np.array([density, *[0.8] * len(ranks)])[: len(ranks)]
    made = METHODS.get("knots_ties").function(
        shared_basis(updates),
        updates,
        weight=weight,
        density=densities,
        scale=1.3,
        normalize=normalize,
    )
    wanted = knots(list(map(dense, updates)), weight, densities, 1.3, normalize)
    assert np.allclose(dense(made), wanted, atol=1e-5)  # the kernel's divisors are float32
    assert made.rank <= min(sum(ranks), 11)


@settings(max_examples=10)
@given(seed=SEEDS, ranks=RANKS)
def test_knots_dare_ties_drops_by_the_seed_alone(seed, ranks):
    updates = updates_of(seed, ranks)
    keys = [mask_key(seed, f"model {i}", "w") for i in range(len(ranks))]
    weight, density = np.linspace(0.5, 1.0, len(ranks)), np.full(len(ranks), 0.6)
    drawn = iter(keys)

    def dropped(part, share):
        draws = philox(part.size, next(drawn), torch.device("cpu")).numpy().reshape(part.shape)
        threshold = int(share * 2.0**16)
        return part * (draws < threshold) * (65536 / threshold)

    wanted = knots(list(map(dense, updates)), weight, density, thin=dropped)
    method = METHODS.get("knots_dare_ties").function
    made = method(shared_basis(updates), updates, keys, weight=weight, density=density)
    assert np.allclose(dense(made), wanted, atol=1e-5)  # 65536 / threshold is in float32


def test_what_is_equal_is_found_in_one_basis_and_what_is_zero_in_none():
    (one,) = updates_of(1, [2])
    shared = shared_basis([one, one, one])
    assert shared.basis.shape == (11, 2)
    merged = METHODS.get("knots_ties").function(
        shared, (one,) * 3, weight=np.ones(3), density=np.full(3, 0.5)
    )
    wanted = knots([dense(one)], np.ones(1), [0.5])
    assert np.allclose(dense(merged), wanted, atol=1e-10)  # an average of equal ones is each
    none = Update(one.left * 0.0, one.right)
    assert shared_basis([none]).basis.shape == (11, 0)


def test_updates_that_share_nothing_do_not_disturb_each_other():
    """A mean over those who agree is each one's own: rounding elects no sign."""
    q = torch.linalg.qr(torch.randn(11, 6, generator=torch.Generator().manual_seed(3)).double())[0]
    updates = updates_of(4, [2, 2, 2])
    updates = tuple(u._replace(left=q[:, 2 * i : 2 * i + 2]) for i, u in enumerate(updates))
    weight = np.array([1.0, 1.0, 1.0])
    made = METHODS.get("knots_ties").function(
        shared_basis(updates), updates, weight=weight, density=np.ones(3)
    )
    assert np.allclose(dense(made), sum(map(dense, updates)), atol=1e-9)


# --- LoRA-LEGO -------------------------------------------------------------------------------


def inertia(points, labels):
    return sum(
        ((points[labels == k] - points[labels == k].mean(0)) ** 2).sum() for k in set(labels)
    )


@settings(max_examples=25)
@given(seed=SEEDS, count=st.integers(1, 7), clustered=st.integers(1, 3))
def test_k_means_finds_the_best_of_all_partitions(seed, count, clustered):
    """Where clusters lie apart; and wherever, each point is nearest to its own cluster's mean."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 2))
    labels = k_means(points, clustered)
    assert labels[0] == 0 and set(labels) == set(range(min(count, clustered)))
    means = np.array([points[labels == k].mean(0) for k in range(labels.max() + 1)])
    assert np.array_equal(((points[:, None] - means) ** 2).sum(2).argmin(1), labels)
    apart = points + 20.0 * rng.integers(0, clustered, count)[:, None]
    every = itertools.product(range(clustered), repeat=count)
    best = min(inertia(apart, np.array(each)) for each in every)
    assert inertia(apart, k_means(apart, clustered)) <= best + 1e-9


@settings(max_examples=5)
@given(seed=SEEDS)
def test_k_means_is_as_good_as_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal(size=(12, 30)) + 3 * rng.normal(size=30) for _ in range(5)])
    theirs = KMeans(8, n_init=10, random_state=seed).fit(points)
    assert inertia(points, k_means(points, 8)) <= theirs.inertia_ * 1.02
    far = KMeans(5, n_init=10, random_state=seed).fit(points).labels_
    ours = k_means(points, 5)
    assert len(set(zip(ours, far, strict=True))) == 5  # the same clusters, however numbered


def test_k_means_of_equal_points():
    assert k_means(np.ones((4, 2)), 2).max() <= 1
    assert k_means(np.ones((2, 2)), 5).tolist() == [0, 1]


def lego(updates, labels, weight, scale=1.0, k=None):
    """As the paper says it, part by part."""
    parts, owner = [], []
    for i, update in enumerate(updates):
        for a, b in zip(update.right.numpy(), update.left.numpy().T, strict=True):
            parts.append((a * update.scale**0.5, b * update.scale**0.5))
            owner.append(i)
    merged = 0.0
    for cluster in set(labels):
        members = np.flatnonzero(labels == cluster)
        pulls = np.array([weight[owner[j]] for j in members])
        if not pulls.any():
            continue
        a = sum(p * parts[j][0] for p, j in zip(pulls, members, strict=True)) / pulls.sum()
        b = sum(p * parts[j][1] for p, j in zip(pulls, members, strict=True)) / pulls.sum()
        norms = [max(np.abs(parts[j][0]).max(), np.abs(parts[j][1]).max()) for j in members]
        grow = (pulls * norms).sum() / pulls.sum() / max(np.abs(a).max(), np.abs(b).max())
        merged = merged + pulls.mean() * np.outer(grow * b, grow * a)
    own = np.mean([u.rank for u in updates if u.rank])
    return merged * scale * np.sqrt(own / len(set(labels)))


@settings(max_examples=25)
@given(seed=SEEDS, ranks=RANKS, rank=st.integers(0, 5), equal=st.booleans())
def test_lora_lego_is_its_papers(seed, ranks, rank, equal):
    updates = updates_of(seed, ranks)
    rng = np.random.default_rng(seed)
    weight = np.full(len(ranks), 0.7) if equal else rng.uniform(0, 1.5, len(ranks)).round(1)
    found = clusters(updates, rank=rank)
    k = min(rank or max(ranks), sum(ranks))
    assert set(found.label) == set(range(k))
    made = METHODS.get("lora_lego").function(found, updates, weight=weight, scale=0.9)
    assert made.rank == k
    assert np.allclose(dense(made), lego(updates, found.label, weight, 0.9), atol=1e-9)


@settings(max_examples=10)
@given(seed=SEEDS, ranks=RANKS)
def test_clusters_are_those_of_the_explicit_parts(seed, ranks):
    updates = updates_of(seed, ranks)
    sides = [
        torch.cat([u.right.T * u.scale**0.5, u.left * u.scale**0.5]).T.numpy() for u in updates
    ]
    points = np.concatenate(sides)
    found = clusters(updates, rank=2).label
    assert inertia(points, found) == pytest.approx(inertia(points, k_means(points, 2)), rel=1e-9)


def test_as_many_clusters_as_parts_give_the_sum_and_a_weight_of_zero_leaves_its_model_out():
    updates = updates_of(2, [2, 3])
    method, found = METHODS.get("lora_lego").function, clusters(updates, rank=9)
    first, second = map(dense, updates)
    for weight in ((0.4, 1.2), (0.0, 0.7), (0.0, 0.0)):
        made = method(found, updates, weight=np.array(weight))
        wanted = weight[0] * first + weight[1] * second
        assert np.allclose(dense(made), wanted * np.sqrt(2.5 / 5), atol=1e-12)
    negative = (updates[0], updates[1]._replace(scale=-updates[1].scale))
    made = method(clusters(negative, rank=9), negative, weight=np.ones(2))
    assert np.allclose(dense(made), (first - second) * np.sqrt(2.5 / 5), atol=1e-12)


# --- whole models ----------------------------------------------------------------------------


def recipe_by_groups(method, base, models, dtype="float32", **options):
    """Weights and densities that differ between layers and modules."""
    known, groups = METHODS.get(method).parameter, []
    places = [((0, 1), "self_attn"), ((1, 2), None), (None, None)]
    for number, (layers, modules) in enumerate(places):
        weight = tuple(0.3 + 0.4 * ((number + i) % 3) for i in range(len(models)))
        values = {"weight": weight, "scale": 1.0 + 0.1 * number}
        if "density" in known:
            values["density"] = tuple(1.0 - 0.2 * ((number + i) % 4) for i in range(len(models)))
        groups.append(Group(layers, modules, values))
    seed = 5 if METHODS.get(method).draws else None
    return ParametersRecipe(method, tuple(models), tuple(groups), base, dtype, seed, dict(options))


def merger_of(*names):
    opened = {name: open_source(name) for name in names}
    return Merger(opened, {name: f"hash of {name}" for name in names})


def changed_by(merger, models):
    return {name for m in models for name in merger.sources[m].adapter.factors}


@pytest.mark.parametrize("method", FACTORED)
@pytest.mark.parametrize(
    "variants",
    [("plain", "rank-stabilized", "patterns"), ("embeddings", "plain", "embeddings")],
    ids=["layers", "embeddings"],
)
def test_adapter_and_weights_are_one_merge_and_peft_makes_the_same(tmp_path, method, variants):
    """Ranks, scales and modules differ, some modules are one adapter's alone."""
    base, models = pool(tmp_path, *variants)
    recipe = recipe_by_groups(method, base, models)
    full = merge_to(recipe, tmp_path / "full")
    assert merge_to(recipe, tmp_path / "adapter", as_adapter=True) == full  # to the last bit
    assert_alike(tmp_path / "full", merged_by_peft(base, tmp_path / "adapter"))
    before = load_file(f"{base}/model.safetensors")
    after = load_file(tmp_path / "full" / "model.safetensors")
    touched = {name for name in after if not torch.equal(after[name], before[name])}
    assert touched == changed_by(merger_of(base, *models), models)


@pytest.mark.parametrize("method", FACTORED)
def test_the_models_logits_are_those_of_the_adapter_in_peft(tmp_path, method):
    base, models = pool(tmp_path, "plain", "patterns")
    recipe = recipe_by_groups(method, base, models)
    merge_to(recipe, tmp_path / "full")
    merge_to(recipe, tmp_path / "adapter", as_adapter=True)
    ids = torch.arange(12).view(2, 6)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "full").eval()
    with torch.no_grad():
        before = plain(ids).logits
        served = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, served, rtol=1e-4, atol=1e-5)
    assert (served - before).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["knots_ties", "lora_lego"])
def test_weights_that_are_stored_transposed(tmp_path, method):
    """GPT-2's: the basis is that of the outputs, whatever way the weight lies."""
    shape = {"vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    base, models = str(tmp_path / "base"), []
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(base)
    for seed in range(2):
        options = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "r": 3 + seed}
        adapted(GPT2LMHeadModel.from_pretrained(base), tmp_path / f"{seed}", options, seed)
        models.append(f"{base}+{tmp_path / str(seed)}")
    recipe = recipe_by_groups(method, base, models)
    full = merge_to(recipe, tmp_path / "full")
    assert merge_to(recipe, tmp_path / "adapter", as_adapter=True) == full
    assert_alike(tmp_path / "full", merged_by_peft(base, tmp_path / "adapter"))
    if method == "knots_ties":
        assert_knots(merger_of(base, *models), recipe)


def assert_knots(merger, recipe):
    """A merge by `knots_ties` is that of dense float64, weight by weight."""
    weights, merge = merger.weights, merger.resolved(recipe)
    seen = 0
    for name, tensor in merger.stream(recipe):
        taus = []
        for model in recipe.models:
            pair = merger.sources[model].adapter.factors.get(name)
            if pair is not None:
                a, b = weights.factors(pair, torch.float64)
                taus.append((b @ a * pair.scale).numpy())
            else:
                taus.append(None)
        shape = next((tau.shape for tau in taus if tau is not None), None)
        before = weights.tensor(recipe.base, name).double().numpy()
        wanted = np.zeros(before.shape)
        if shape is not None:
            taus = [np.zeros(shape) if tau is None else tau for tau in taus]
            group = recipe.groups[group_index(recipe, name)].values
            found = knots(taus, np.array(group["weight"]), group["density"], group["scale"])
            pairs = [merger.sources[m].adapter.factors.get(name) for m in recipe.models]
            transposed = next(pair for pair in pairs if pair is not None).transposed
            wanted, seen = found.T if transposed else found, seen + 1
            assert merge.is_composed(name)
        assert np.allclose(tensor.double().numpy() - before, wanted, atol=3e-6), name
    assert seen


@pytest.mark.parametrize(
    "variants",
    [("plain", "rank-stabilized", "patterns"), ("embeddings", "plain", "embeddings")],
    ids=["layers", "embeddings"],
)
def test_a_whole_models_merge_is_that_of_dense_updates(tmp_path, variants):
    base, models = pool(tmp_path, *variants)
    assert_knots(merger_of(base, *models), recipe_by_groups("knots_ties", base, models))


@pytest.mark.parametrize("method", FACTORED)
def test_a_live_model_gets_what_the_stream_gives(tmp_path, method, monkeypatch):
    """To the last bit, whatever the threads, after other recipes, in bfloat16 too."""
    base, models = pool(tmp_path, "plain", "patterns", "rank-stabilized")
    names = (base, *models)
    for dtype in ("float32", "bfloat16"):
        recipe = recipe_by_groups(method, base, models, dtype)
        merger = merger_of(*names)
        live = {n: torch.empty(t.shape) for n, t in merger.sources[base].tensors.items()}
        merger.prepare([recipe])
        assert merger.bytes_kept() > 0
        merger.fill(recipe_of("linear", models, base), live)
        digests = merger.fill(recipe, live)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: 3)
            again = dict(merger_of(*names).stream(recipe))
        for name, tensor in merger.stream(recipe):
            assert torch.equal(tensor, again[name])
            assert torch.equal(live[name], tensor.float())
            assert np.array_equal(digests[name], tile_digests(tensor))


@pytest.mark.parametrize("method", [*FACTORED, "task_arithmetic"])
def test_no_update_is_ever_made_dense_but_the_merged_one(tmp_path, method, monkeypatch):
    """Gates of adapters, too: one tensor a weight, the base's, is read from a model."""
    base, models = pool(tmp_path, "plain", "patterns")
    read, plain = set(), SourceWeights.tensor

    def noted(weights, source, name):
        read.add(source)
        return plain(weights, source, name)

    monkeypatch.setattr(SourceWeights, "tensor", noted)
    merger = merger_of(base, *models)
    recipe = recipe_by_groups(method, base, models)
    merger.prepare([recipe])
    dict(merger.stream(recipe))
    join_adapters(merger, recipe)
    assert read <= {base}


def test_methods_of_groups_may_be_factored_and_others(tmp_path):
    """Attention by one, the rest by another: still one adapter."""
    base, models = pool(tmp_path, "plain", "patterns")
    attention = Group(
        None, "self_attn", {"weight": (0.5, 0.9), "density": (0.5, 1.0)}, "knots_ties"
    )
    rest = Group(None, None, {"weight": (0.7, 0.2)})
    for other in ("task_arithmetic", "lora_lego"):
        recipe = ParametersRecipe(other, tuple(models), (attention, rest), base, "float32")
        full = merge_to(recipe, tmp_path / other)
        assert merge_to(recipe, tmp_path / f"{other} lora", as_adapter=True) == full
    dense = replace(recipe, method="ties", groups=(attention, rest))
    with pytest.raises(BadInput, match="method: ties makes no weighted sum"):
        merge_to(dense, tmp_path / "none", as_adapter=True)
    merge_to(dense, tmp_path / "dense")


def test_what_is_no_pool_of_adapters_says_why(tmp_path, world):
    base, models = pool(tmp_path, "plain", "replaced")
    other = str(world / "a")
    cases = {
        "models.1: knots_ties merges LoRA adapters alone: '.*lora1' puts whole tensors": (
            recipe_of("knots_ties", models, base)
        ),
        "models.0: lora_lego merges LoRA adapters alone: '.*' is no LoRA adapter of '.*base'": (
            recipe_of("lora_lego", [other], str(world / "base"))
        ),
        r"base: lora_lego merges .* alone: the base '.*lora0' is one itself; name the model": (
            recipe_of("lora_lego", models[1:], models[0])
        ),
        "models: knots_dare_ties merges LoRA adapters alone, and none of the models is one": (
            recipe_of("knots_dare_ties", [base], base)
        ),
        r"groups.0.weight: .*-0.5.* is out of range; stay within 0 to inf": (
            recipe_of("lora_lego", models[:1], base, weight=-0.5)
        ),
        r"options.rank: -1 is not a number from 0": (
            recipe_of("lora_lego", models[:1], base, options={"rank": -1})
        ),
    }
    for number, (message, recipe) in enumerate(cases.items()):
        with pytest.raises(BadInput, match=message) as error:
            merge_to(recipe, tmp_path / f"out{number}")
        assert len(str(error.value).splitlines()) == 1
        assert not (tmp_path / f"out{number}").exists()
    with pytest.raises(BadInput, match=r"models: knots_ties merges LoRA adapters alone"):
        next(merger_of(base, models[1]).stream(recipe_of("knots_ties", models[1:], base)))


def test_a_campaign_over_whole_models_is_refused_by_their_labels(campaign_file, here):
    """Every model is told of, in a line of its own, before any is loaded."""
    space = {
        "kind": "parameters",
        "method": "knots_ties",
        "axes": {"weight": {"low": 0, "high": 1}},
    }
    file = campaign_file(space=space)
    told = CliRunner().invoke(main, ["check", str(file)])
    assert told.exit_code == 2
    lines = [line for line in told.output.splitlines() if "merges LoRA adapters alone" in line]
    assert [line.split(": ")[1] for line in lines] == [f"sources.models.{x}" for x in "abc"]


@pytest.mark.parametrize("method", ["knots_ties", "knots_dare_ties", "lora_lego"])
def test_a_campaign_is_searched_resumed_and_exported_as_scored(campaign_file, here, silent, method):
    base, models = pool(here, "plain", "patterns")
    sources = {"base": base, "models": dict(zip("xy", models, strict=True))}
    axes = {"weight": {"low": 0.0, "high": 1.5}, "scale": {"low": 0.5, "high": 2.0}}
    if method != "lora_lego":
        axes["density"] = {"low": 0.2, "high": 1.0}
    space = {"kind": "parameters", "method": method, "layer_groups": 2, "axes": axes}
    options = {"sources": sources, "space": space}
    run_campaign(campaign_file(**options, budget__evaluations=2), observer=silent)
    run_campaign(campaign_file(**options, budget__evaluations=5), observer=silent)
    run = str(here / "runs" / "tiny")
    archive = Archive(here / "runs" / "tiny" / "archive.db")
    found = [candidate.id for candidate in archive.candidates(origin="search")]
    assert len(found) == 5
    command = CliRunner().invoke
    for candidate in found[:2]:
        for extra in ([], ["--as-adapter"]):
            out = str(here / f"out {candidate} {len(extra)}")
            told = command(main, ["export", run, out, "--pick", str(candidate), *extra])
            assert told.exit_code == 0, told.output
            assert archive.outcome(candidate)["weights_checksum"] in told.output
    config = json.loads((here / f"out {found[0]} 1" / "adapter_config.json").read_text())
    sources = [open_source(name) for name in (base, *models)]
    assert list(adapter_faults(archive.candidate(found[0]).recipe, sources)) == []
    ranks = [len(t) for n, t in factors(here / f"out {found[0]} 1").items() if "lora_A" in n]
    assert max(ranks) <= 4 + 8 and config["r"] in ranks


def factors(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_the_embedded_pool_is_searched_as_its_campaign_file_says(tmp_path, monkeypatch):
    """Gates and both methods, over trained adapters whose ranks, scales and modules differ."""
    monkeypatch.chdir(ROOT)
    told = CliRunner().invoke(main, ["check", "search_spaces/lora-pool.yaml"])
    assert told.exit_code == 0, told.output
    assert "16 genes" in told.output
    plan = read_plan(Path("search_spaces/lora-pool.yaml"))
    base, models = plan.sources.base, list(plan.sources.models.values())
    merger = merger_of(base, *models)
    adapters = [merger.sources[model].adapter for model in models]
    assert len({len(adapter.factors) for adapter in adapters}) > 1
    assert_knots(merger, recipe_by_groups("knots_ties", base, models))
    for method in ("task_arithmetic", "lora_lego"):
        recipe = recipe_of(method, models, base, weight=0.4)
        full = merge_to(recipe, tmp_path / method)
        assert merge_to(recipe, tmp_path / f"{method} lora", as_adapter=True) == full
