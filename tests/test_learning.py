"""Learned coefficients: against finite differences, brute force, closed forms and known merges."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from evomerge.learning import live_merge as live_merge_module
from evomerge.learning.batches import Tokens, batch_of
from evomerge.learning.failure import Unlearnable
from evomerge.learning.learners import LEARNERS, LearningProblem
from evomerge.learning.learners.expert_merging import important_layers
from evomerge.learning.learners.fw_merging import oracle
from evomerge.learning.live_merge import LiveMerge
from evomerge.learning.losses import (
    answer_loss,
    distance_of_states,
    distance_to_teacher,
    entropy,
)
from evomerge.learning.parting import coarsened, parted
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.sections import parse
from evomerge.sources.source import open_source
from evomerge.sources.texts import Passage
from evomerge.testing import tiny_llama

BYS = ("model", "layer", "module", "tensor")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    base = tiny_llama(folder / "base", 0, dtype="float32")
    for seed, name in enumerate("ab", start=1):
        tiny_llama(folder / name, seed, near=base, spread=0.1, dtype="float32")
    untied = tiny_llama(folder / "untied", 5, tie=False, dtype="float32")
    tiny_llama(folder / "untied-a", 6, near=untied, spread=0.1, dtype="float32")
    return folder


def opened(folders, *names, **options):
    base, *models = [open_source(str(folders / name)) for name in names]
    return LiveMerge(base, models, **options)


def learned(kind, merge, texts, own=None, seed=3, **options):
    entry = LEARNERS.get(kind)
    problem = LearningProblem(merge, texts, seed, own or {})
    return entry.learn(problem, parse(entry.section, {"kind": kind, **options}))


BATCH = batch_of([Tokens([4, 9, 7, 12], 2), Tokens([5, 6, 8], 2), Tokens([20, 11], 1)], pad=0)
LOSSES = {
    "entropy": lambda merge: entropy(merge.run(BATCH).logits, BATCH),
    "everywhere": lambda merge: entropy(merge.run(BATCH).logits, BATCH, everywhere=True),
    "answers": lambda merge: answer_loss(merge.run(BATCH).logits, BATCH),
}


def norm_in_float64(self, states):
    """As transformers computes it, but without the float32 between."""
    mean = states.pow(2).mean(-1, keepdim=True)
    return self.weight * states * torch.rsqrt(mean + self.variance_epsilon)


@pytest.mark.parametrize("kept", [1 << 30, 0])
@pytest.mark.parametrize("by", BYS)
def test_gradients_are_finite_differences(folders, by, kept, monkeypatch):
    """In float64, of any coefficient; a tied embedding's two uses count together, once."""
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm_in_float64)
    merge = opened(folders, "base", "a", "b", dtype="float64", kept_bytes=kept)
    parting = parted(merge.names, by)
    merge.part(parting)
    rng = np.random.default_rng(1)
    point = torch.from_numpy(rng.normal(0.3, 0.2, (len(parting.cells), 2)))
    cells = range(len(parting.cells))
    some = [(cell, model) for cell in cells for model in range(2)]
    chosen = [some[n] for n in rng.permutation(len(some))[:6]]
    for loss in LOSSES.values() if kept else [LOSSES["answers"]]:
        merge.load(point)
        merge.backward(loss(merge))
        gradient = merge.gradient()
        for index in chosen:
            ends = []
            for step in (1e-5, -1e-5):
                moved = point.clone()
                moved[index] += step
                merge.load(moved)
                with torch.no_grad():
                    ends.append(float(loss(merge)))
            assert float(gradient[index]) == pytest.approx(
                (ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-9
            )


def test_gradients_are_those_of_autograd_through_the_merge(folders):
    """Against torch.func.functional_call on W_0 + sum c tau, all in one graph; untied heads too."""
    merge = opened(folders, "untied", "untied-a", "untied-a", dtype="float64")
    parting = parted(merge.names, "layer")
    merge.part(parting)
    point = torch.tensor(np.random.default_rng(0).normal(0.2, 0.1, (len(parting.cells), 2)))
    merge.load(point)
    merge.backward(LOSSES["answers"](merge))
    model, tuned = [
        AutoModelForCausalLM.from_pretrained(folders / name, dtype=torch.float64)
        for name in ("untied", "untied-a")
    ]
    leaf = point.clone().requires_grad_(True)
    weights, other = {}, dict(tuned.named_parameters())
    for name, base in model.named_parameters():
        vector = (other[name] - base).detach()
        weights[name] = base.detach() + leaf[parting.row[name]].sum() * vector
    output = torch.func.functional_call(
        model, weights, kwargs={"input_ids": BATCH.ids, "attention_mask": BATCH.mask}
    )
    answer_loss(output.logits, BATCH).backward()
    assert torch.allclose(merge.gradient(), leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kept", [1 << 30, 0])
def test_the_live_merge_is_the_recipes_merge(folders, kept):
    """What is learned on is what is scored: the same weights to rounding, each by its own code."""
    merge = opened(folders, "base", "a", "b", kept_bytes=kept)
    places = {name: str(folders / name) for name in ("base", "a", "b")}
    sources = {name: open_source(place) for name, place in places.items()}
    for by in BYS:
        parting = parted(merge.names, by)
        merge.part(parting)
        shape = (len(parting.cells), 2)
        found = np.random.default_rng(7).normal(0.4, 0.3, shape)
        recipe = parting.recipe(found, ("a", "b"), "base", "float32")
        merge.load(torch.from_numpy(found))
        for name, tensor in Merger(sources, dict.fromkeys(places, "")).stream(recipe):
            live = dict(merge.model.named_parameters())[name]
            assert torch.allclose(live, tensor, rtol=0, atol=1e-6)


def test_losses_are_their_definitions():
    rng = np.random.default_rng(0)
    logits, other = (torch.from_numpy(rng.normal(size=(3, 4, 6))) for _ in range(2))
    batch = batch_of([Tokens([4, 5, 2, 1], 2), Tokens([3, 1], 1), Tokens([2], 1)], pad=0)

    def probabilities(values):
        powers = [math.exp(v) for v in values]
        return [p / sum(powers) for p in powers]

    rows = logits.tolist()
    ends = [probabilities(rows[n][at]) for n, at in enumerate((1, 0, 0))]
    wanted = np.mean([-sum(p * math.log(p) for p in row) for row in ends])
    assert float(entropy(logits, batch)) == pytest.approx(wanted)
    answers = [(0, 1, 2), (0, 2, 1), (1, 0, 1)]  # text, position, the token that comes next
    wanted = np.mean([-math.log(probabilities(rows[n][at])[token]) for n, at, token in answers])
    assert float(answer_loss(logits, batch)) == pytest.approx(wanted)
    there = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0)]
    total = 0.0
    for n, at in there:
        p = probabilities([v / 3 for v in other[n, at].tolist()])
        q = probabilities([v / 3 for v in rows[n][at]])
        total += 9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = distance_to_teacher(logits, other, batch, 3.0)
    assert float(found) == pytest.approx(total / len(there))
    squares = [float((logits[n, at] - other[n, at]).square().mean()) for n, at in there]
    pair = distance_of_states((logits, logits), (other, logits), batch)
    assert float(pair) == pytest.approx(np.mean(squares) / 2)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6), st.floats(0.1, 5.0))
def test_the_oracle_is_the_best_corner_of_all(cells, models, seed, radius):
    """Of every combination of corners, and of random points inside."""
    gradient = np.random.default_rng(seed).normal(size=(cells, models))
    found = oracle(gradient, radius)
    corners = [np.zeros(models), *(radius * np.eye(models))]
    every = itertools.product(range(len(corners)), repeat=cells) if cells <= 2 else ()
    value = (gradient * found).sum()
    for choice in every:
        assert value <= (gradient * np.stack([corners[k] for k in choice])).sum() + 1e-12
    inside = np.random.default_rng(seed + 1).dirichlet(np.ones(models + 1), cells)[:, :models]
    assert value <= (gradient * inside * radius).sum() + 1e-12
    assert (found >= 0).all() and (found.sum(1) <= radius).all()


def test_frank_wolfe_goes_the_papers_way(folders):
    """Its points by hand, from a gradient that is asked of the merge afresh."""
    merge = opened(folders, "base", "a", "b", dtype="float64")
    texts = [Passage("w0 w1 w2", "w3"), Passage("w9 w4 w2", "w8")]
    found = learned("fw_merging", merge, texts, iterations=4, by="layer", radius=0.5, batch=1)
    parting, rows = found.parting, [Tokens([4, 5, 6, 7], 3), Tokens([13, 8, 6, 12], 3)]
    point, seen = np.zeros((len(parting.cells), 2)), []
    merge.part(parting)
    for t in range(5):
        merge.load(torch.from_numpy(point))
        loss = answer_loss(merge.run(batch_of(rows, 0)).logits, batch_of(rows, 0))
        seen.append((merge.backward(loss), point))
        slopes = merge.gradient().numpy()
        corner = np.zeros_like(point)
        for cell, row in enumerate(slopes):
            if row.min() < 0:
                corner[cell, row.argmin()] = 0.5
        point = (1 - 2 / (t + 2)) * point + 2 / (t + 2) * corner
    assert found.losses == pytest.approx([loss for loss, _ in seen])
    assert np.allclose(found.coefficients, min(seen, key=lambda s: s[0])[1])


def test_frank_wolfe_picks_the_expert_that_helps(folders, tmp_path):
    """Of a dozen, one was trained on the probe's answers; the others are noise."""
    texts = [Passage(f"w{n} w{n + 1}", "w27") for n in range(8)]
    names = []
    for seed in range(5):
        tiny_llama(tmp_path / f"n{seed}", seed, near=folders / "base", spread=0.1, dtype="float32")
        names.append(f"n{seed}")
    model = AutoModelForCausalLM.from_pretrained(folders / "base")
    batch = batch_of([Tokens([4 + n, 5 + n, 31], 2) for n in range(8)], 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        answer_loss(model(input_ids=batch.ids).logits, batch).backward()
        optimizer.step()
    for file in (folders / "base").iterdir():
        (tmp_path / "taught").mkdir(exist_ok=True)
        (tmp_path / "taught" / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path / "taught")
    (tmp_path / "base").symlink_to(folders / "base")
    merge = opened(tmp_path, "base", *names, "taught")
    found = learned("fw_merging", merge, texts, by="model", iterations=3)
    assert found.coefficients.argmax() == 5 and found.coefficients[0, 5] > 0.5
    assert min(found.losses) < 0.2 * found.losses[0]


def test_adamerging_finds_the_least_entropy_on_a_line(folders):
    """One coefficient: its optimum on a fine grid of float64 entropies."""
    merge = opened(folders, "base", "a", dtype="float64")
    texts = [Passage("w0 w1"), Passage("w7 w3 w2"), Passage("w9")]
    found = learned("adamerging", merge, texts, by="model", steps=150, rate=0.03)
    batch = batch_of([Tokens([4, 5], 2), Tokens([11, 7, 6], 3), Tokens([13], 1)], 0)

    def value(c):
        merge.load(torch.tensor([[c]]))
        with torch.no_grad():
            return float(entropy(merge.run(batch).logits, batch))

    c = float(found.coefficients[0, 0])
    near = [value(c + step) for step in np.linspace(-0.3, 0.3, 31)]
    assert abs(float(np.linspace(-0.3, 0.3, 31)[int(np.argmin(near))])) <= 0.021
    assert found.losses[-1] < found.losses[0] and value(c) == pytest.approx(min(near), abs=1e-3)


def test_self_positioning_minds_the_length(folders):
    """With a weight so large that the probe hardly counts, c is what halves a quadratic's slope."""
    merge = opened(folders, "base", "a", "b", dtype="float64")
    texts = [Passage("w0 w1", "w2")]
    long = learned("self_positioning", merge, texts, steps=60, rate=0.02, mu=0.0)
    short = learned("self_positioning", merge, texts, steps=60, rate=0.02, mu=5.0)
    merge.part(short.parting)
    gram = merge.gram().numpy()[0]
    c, d = short.coefficients[0], long.coefficients[0]
    assert c @ gram @ c < 0.5 * (d @ gram @ d)
    # at the optimum dL/dc = -mu d(c'Gc)/dc / unit
    batch = batch_of([Tokens([4, 5, 6], 2)], 0)
    merge.load(torch.from_numpy(short.coefficients))
    merge.backward(answer_loss(merge.run(batch).logits, batch))
    slope = merge.gradient().numpy()[0] + 5.0 * 2.0 * gram @ c / (np.trace(gram) / 2)
    assert np.abs(slope).max() < 0.02


def test_expert_merging_recovers_the_coefficients_of_a_merge(folders, tmp_path):
    """An expert that is itself 0.7 a + 0.2 b in the first layer, and 0.3 a + 0.6 b elsewhere."""
    merge = opened(folders, "base", "a", "b")
    wanted = {"model.layers.0.": (0.7, 0.2), "": (0.3, 0.6)}
    model, first, second = [
        AutoModelForCausalLM.from_pretrained(folders / name) for name in ("base", "a", "b")
    ]
    others = dict(first.named_parameters()), dict(second.named_parameters())
    with torch.no_grad():
        for name, base in model.named_parameters():
            c = next(c for start, c in wanted.items() if name.startswith(start))
            base += c[0] * (others[0][name] - base) + c[1] * (others[1][name] - base)
    # the third model is what the first two are aligned to, and its own vector is not in the merge
    for file in (folders / "base").iterdir():
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path / "made")
    made = open_source(str(tmp_path / "made"))
    reads = merge._weights
    reads.add({"made": made})

    def teach(index):
        with torch.no_grad():
            for name, target in merge._targets.items():
                target.copy_(reads.tensor("made", name))

    merge.load_model = teach
    rng = np.random.default_rng(0)
    texts = [Passage(" ".join(f"w{n}" for n in rng.integers(0, 28, 6))) for _ in range(32)]
    found = learned(
        "expert_merging",
        merge,
        texts,
        own={0: texts},
        by="layer",
        steps=250,
        rate=0.1,
        hidden=1.0,
        sparsity=0.0,
        temperature=1.0,
    )
    for name, row in found.parting.row.items():
        c = next(c for start, c in wanted.items() if name.startswith(start))
        if name != "model.norm.weight":
            assert np.allclose(found.coefficients[row], c, atol=0.06), (name, found.coefficients)
    assert found.losses[-1] < 0.02 * found.losses[0]


def test_expert_merging_takes_each_experts_own_texts_and_parts_important_layers(folders):
    merge = opened(folders, "base", "a", "b")
    texts = [Passage("w0 w1 w2"), Passage("w3 w4")]
    options = {"steps": 2, "by": "layer", "rate": 0.1}
    plain = learned("expert_merging", merge, texts, **options)
    finer = learned("expert_merging", merge, texts, chunks=0.5, **options)
    assert len(plain.parting.cells) == 4 and len(plain.losses) == 2 and len(finer.losses) == 4
    tensors = [n for n in merge.names if ".layers.0." in n]
    assert len(finer.parting.cells) == 3 + len(tensors)
    with pytest.raises(Unlearnable, match="no texts of any expert's own"):
        learned("expert_merging", merge, [], own={0: [Passage("")]})
    norms = np.array([[4.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    names = ["h.0.w", "h.1.w", "wte.weight"]
    found = plain._replace(
        parting=parted(names, "layer"), coefficients=np.array([[0.2, 0.9], [0.5, 0.5], [1, 1]])
    )
    assert important_layers(found, norms, names, 0.5) == [1]  # .2 x 2 against .5 + .5


def test_a_loss_that_is_not_finite_is_said(folders):
    merge = opened(folders, "base", "a")
    with pytest.raises(Unlearnable, match=r"the loss is nan at step \d"):
        learned("adamerging", merge, [Passage("w0 w1")], start=1e39, steps=3)
    with pytest.raises(Unlearnable, match="no text has an answer"):
        learned("self_positioning", merge, [Passage("w0 w1")])


def test_the_same_seed_learns_the_same(folders):
    texts = [Passage(f"w{n} w{n + 2}", f"w{n}") for n in range(10)]
    options = {"steps": 4, "batch": 3, "rate": 0.05}
    for kind in ("adamerging", "self_positioning", "expert_merging"):
        runs = [
            learned(kind, opened(folders, "base", "a", "b"), texts, seed=s, **options)
            for s in (1, 1, 2)
        ]
        assert np.array_equal(runs[0].coefficients, runs[1].coefficients)
        assert not np.array_equal(runs[0].coefficients, runs[2].coefficients)


def test_models_that_predict_no_next_token_are_refused(folders, monkeypatch):
    with pytest.raises(Unlearnable, match="no model differs from the base"):
        opened(folders, "base", "base")
    merge = opened(folders, "base", "a")
    with pytest.raises(Unlearnable, match="predicts no next tokens"):
        merge.model.forward = lambda **given: torch.zeros(1)
        learned("adamerging", merge, [Passage("w0")])
    monkeypatch.setattr(live_merge_module, "LiveModel", live_without_tokenizer(folders))
    with pytest.raises(Unlearnable, match="the base has no tokenizer"):
        opened(folders, "base", "a")


def live_without_tokenizer(folders):
    from evomerge.merging.live_model import LiveModel

    def opening(*given):
        live = LiveModel(*given)
        live.tokenizer = None
        return live

    return opening


@given(st.integers(1, 4), st.sampled_from(BYS), st.integers(0, 10**6))
def test_coarsening_keeps_every_groups_sum(layers, by, seed):
    """Over elements: a group's tensors together have the learned sum, whatever their grouping."""
    rng = np.random.default_rng(seed)
    elements = {"wte.weight": int(rng.integers(1, 50)), "ln_f.weight": 3}
    for n in range(layers):
        for part in ("attn.c_attn.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "ln_1.weight"):
            elements[f"h.{n}.{part}"] = int(rng.integers(1, 50))
    parting = parted(elements, by)
    found = parting.recipe(rng.normal(size=(len(parting.cells), 2)), ("a", "b"), "base", "float32")
    groups = [
        Group((n, n + 1), m, {"weight": (0.0, 0.0)}) for n in range(layers) for m in ("mlp", None)
    ]
    groups += [Group(part, None, {"weight": (0.0, 0.0)}) for part in ("embed", "norm", "head")]
    recipe = ParametersRecipe("task_arithmetic", ("b", "a"), tuple(groups), "base", "float32")
    coarse = coarsened(recipe, found, elements)

    def total(of, models):
        from evomerge.tensor_names import place

        sums = {}
        for name, size in elements.items():
            where = place(name)
            group = next(g for g in of.groups if g.holds(name, where))
            key = (where, "mlp" in name)
            weights = dict(zip(of.models, group.values["weight"], strict=True))
            sums[key] = sums.get(key, 0.0) + size * np.array([weights[m] for m in models])
        return sums

    before, after = total(found, "ab"), total(coarse, "ab")
    for key, value in before.items():
        assert np.allclose(value, after[key])
