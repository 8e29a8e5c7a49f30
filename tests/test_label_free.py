"""Fitness without labels: entropy and agreement, against float64 sums and transformers itself."""

import functools
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sql import query

from evomerge.archive.archive import Archive
from evomerge.campaign.build import checked
from evomerge.campaign.estimate import estimate
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.campaign.source_hashes import hash_sources
from evomerge.environment import cache_folder
from evomerge.errors import BadInput
from evomerge.scoring.kept_predictions import divergence, keep
from evomerge.workers.protocol import Job
from evomerge.workers.worker import Worker

PROMPTS = [f"w{n % 28} w{(n * 7) % 28} w{(n * n) % 28}"[: 2 + 4 * (n % 3) + 3] for n in range(24)]


@pytest.fixture
def write(campaign_file):
    """Write a campaign of one entry, and its prompts."""

    def file(entry, **changes):
        entries = entry if isinstance(entry, list) else [entry]
        options = {"compute_dtype": "float32", "budget": {"evaluations": 2}, "finals": 0, **changes}
        path = campaign_file(fitness=entries, **options)
        rows = [{"prompt": prompt} for prompt in PROMPTS]
        (path.parent / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return path

    return file


def sure(**changes):
    return {"name": "sure", "entropy": "prompt", "prompts": "prompts.jsonl", **changes}


def agrees(**changes):
    return {"name": "agrees", "agreement": "a", "prompts": "prompts.jsonl", **changes}


@functools.cache
def model_of(name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(name)


def read_by_transformers(name, tokens, temperature=1.0):
    """Log-probabilities after each token of one text alone, (positions, vocabulary) float64."""
    model, _ = model_of(name)
    with torch.inference_mode():
        out = model(torch.tensor([tokens]), output_hidden_states=True)
    return (out.logits[0].double() / temperature).log_softmax(-1), out.hidden_states


def greedy(name, tokens, most):
    """The tokens that a model answers, each the likeliest after all before, its end among them."""
    model, tokenizer = model_of(name)
    said = []
    while len(said) < most and (not said or said[-1] != tokenizer.eos_token_id):
        with torch.inference_mode():
            said.append(int(model(torch.tensor([[*tokens, *said]])).logits[0, -1].argmax()))
    return said


def tokens_of(name, ordinal):
    return model_of(name)[1](PROMPTS[ordinal])["input_ids"]


def scored(file, *labels):
    """Run a campaign; return ordinal -> score of held-out items, of baselines by label."""
    directory = file.parent / "run"
    assert run_campaign(file, directory=directory, observer=Silent())
    archive = Archive(directory / "archive.db")
    (name,) = [objective.name for objective in archive.objectives]
    rows = query(directory, "SELECT ordinal FROM items WHERE split = 'heldout' ORDER BY ordinal")
    ordinals = [row["ordinal"] for row in rows]
    found = []
    for label in labels:
        candidate = 1 + ["base", "a", "b", "c"].index(label)
        values = archive.item_scores(candidate, name, "heldout")
        found.append(dict(zip(ordinals, values.tolist(), strict=True)))
    return found


def mean_entropy(logs):
    return float(-(logs.exp() * logs).sum(-1).mean())


def mean_divergence(expert, candidate):
    """The mean KL(expert || candidate) of (positions, vocabulary) float64 log-probabilities."""
    return float((expert.exp() * (expert - candidate)).sum(-1).mean())


def test_entropy_of_prompts_is_that_of_transformers_predictions(write):
    (scores,) = scored(write(sure(batch_size=5)), "a")
    expected = {o: mean_entropy(read_by_transformers("a", tokens_of("a", o))[0]) for o in scores}
    assert len(scores) == 12 and np.ptp(list(scores.values())) > 0.01
    assert scores == pytest.approx(expected, abs=1e-4)


def test_entropy_of_answers_is_taken_at_each_token_that_is_answered(write, here):
    (scores,) = scored(write(sure(entropy="answer", max_tokens=3)), "a")
    said = query(here / "run", "SELECT ordinal, answer FROM answers WHERE candidate_id = 2")
    assert sorted(row["ordinal"] for row in said) == sorted(scores)  # they are kept to be read
    expected = {}
    for ordinal in scores:
        tokens = tokens_of("a", ordinal)
        answered = greedy("a", tokens, 3)
        logs, _ = read_by_transformers("a", [*tokens, *answered[:-1]])
        expected[ordinal] = mean_entropy(logs[-len(answered) :])
    assert scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_agreement_over_prompts_is_minus_the_divergence(write, temperature):
    entry = agrees(where="prompt", temperature=temperature, batch_size=7)
    own, others = scored(write(entry), "a", "b")
    assert max(map(abs, own.values())) < 1e-6
    expected = {}
    for ordinal in others:
        tokens = tokens_of("a", ordinal)
        expert, candidate = (read_by_transformers(n, tokens, temperature)[0] for n in "ab")
        expected[ordinal] = -mean_divergence(expert, candidate)
    assert max(others.values()) < -1e-3
    assert others == pytest.approx(expected, abs=1e-4)


def test_agreement_over_answers_reads_what_the_expert_answers(write):
    own, others = scored(write(agrees(max_tokens=4)), "a", "b")
    assert max(map(abs, own.values())) < 1e-6
    expected = {}
    for ordinal in others:
        tokens = tokens_of("a", ordinal)
        answered = greedy("a", tokens, 4)
        text = [*tokens, *answered[:-1]]
        expert, candidate = (read_by_transformers(n, text, 3.0)[0] for n in "ab")
        last = -len(answered)
        expected[ordinal] = -mean_divergence(expert[last:], candidate[last:])
    assert others == pytest.approx(expected, abs=1e-4)


def test_agreement_of_hidden_states_is_minus_their_relative_distance(write):
    entry = agrees(where="prompt", measure="hidden", layers=[1, -1])
    own, others = scored(write(entry), "a", "b")
    assert max(map(abs, own.values())) < 1e-5  # directions are kept in float16
    expected = {}
    for ordinal in others:
        tokens, apart = tokens_of("a", ordinal), []
        expert, candidate = (read_by_transformers(n, tokens)[1] for n in "ab")
        for layer in (1, -1):
            target, found = expert[layer][0].double(), candidate[layer][0].double()
            apart.append((found - target).square().sum(-1) / target.square().sum(-1))
        expected[ordinal] = -float(torch.stack(apart).mean())
    assert others == pytest.approx(expected, rel=2e-3)


# --- predictions that are kept small ---------------------------------------------------------


def predictions(vocabulary, seed, spread, positions=24):
    """Logits of an expert, some tokens far likelier, and of a candidate near it or far from it."""
    generator = torch.Generator().manual_seed(seed)
    expert = torch.randn(positions, vocabulary, generator=generator) * 2.0
    expert += 8.0 * (torch.rand(positions, vocabulary, generator=generator) < 2e-3)
    return expert, expert + spread * torch.randn(positions, vocabulary, generator=generator)


def whole_divergence(expert, candidate, temperature):
    logs = [(logits.double() / temperature).log_softmax(-1) for logits in (expert, candidate)]
    return (logs[0].exp() * (logs[0] - logs[1])).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_few_tokens_stand_for_a_vocabulary(temperature, spread):
    expert, candidate = predictions(20_000, seed=5, spread=spread)
    whole = whole_divergence(expert, candidate, temperature)
    offsets = np.random.default_rng(3).random(len(expert))
    found = divergence(keep(expert, temperature, 256, offsets), candidate, temperature)
    assert found.mean().item() == pytest.approx(whole.mean().item(), rel=0.1)
    # and candidates are told apart better than that, as all are compared on the same tokens
    _, other = predictions(20_000, seed=5, spread=1.5 * spread)
    kept = keep(expert, temperature, 256, offsets)
    assert (divergence(kept, other, temperature) > divergence(kept, candidate, temperature)).all()


def test_what_is_drawn_is_right_on_average():
    expert, candidate = predictions(3000, seed=1, spread=0.7, positions=2)
    found = []
    for seed in range(200):
        kept = keep(expert, 3.0, 32, np.random.default_rng(seed).random(2))
        found.append(divergence(kept, candidate, 3.0).numpy())
    whole = whole_divergence(expert, candidate, 3.0).numpy()
    # the coefficient of the control variate is found on the same draws, which costs a little
    np.testing.assert_allclose(np.mean(found, 0), whole, rtol=0.08)


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.3, 1.0, 3.0]),
    st.sampled_from([2, 16, 40, 300]),
    st.floats(0.0, 30.0),
)
def test_a_divergence_is_finite_and_none_of_a_model_from_itself(seed, temperature, size, spread):
    expert, candidate = predictions(size, seed, spread, positions=3)
    kept = keep(expert, temperature, 16, np.random.default_rng(seed).random(3))
    assert divergence(kept, expert, temperature).abs().max() < 1e-5
    found = divergence(kept, candidate, temperature)
    assert found.isfinite().all() and (found > -1e-5).all()
    if size <= 16:
        whole = whole_divergence(expert, candidate, temperature)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_a_candidate_that_bets_on_what_was_not_kept_is_far_off_and_no_less():
    expert, _ = predictions(3000, seed=2, spread=0.0, positions=4)
    candidate = expert.clone()
    candidate[:, expert.argmin(1)] += 60.0
    kept = keep(expert, 1.0, 32, np.full(4, 0.5))
    whole = whole_divergence(expert, candidate, 1.0)
    torch.testing.assert_close(divergence(kept, candidate, 1.0), whole, rtol=0.2, atol=0.0)


# --- what an expert says is asked once -------------------------------------------------------


def test_what_an_expert_says_is_asked_once_and_mended_where_it_is_broken(write, here, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "own"))
    file = write(agrees(max_tokens=2))
    (first,) = scored(file, "b")
    (kept,) = cache_folder("experts").glob("*.npz")
    before = kept.stat().st_mtime_ns, kept.read_bytes()
    shutil.rmtree(here / "run")
    (again,) = scored(file, "b")
    assert again == first and kept.read_bytes() == before[1]
    kept.write_bytes(before[1][:100])
    shutil.rmtree(here / "run")
    (mended,) = scored(file, "b")
    assert mended == first and kept.read_bytes() == before[1]
    # other words are another question
    (here / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in PROMPTS[::-1]))
    shutil.rmtree(here / "run")
    scored(file, "b")
    assert len([*cache_folder("experts").glob("*.npz")]) == 2


def test_a_resume_notices_that_prompts_have_changed(write, here):
    file = write(agrees(max_tokens=2))
    scored(file, "b")
    text = (here / "prompts.jsonl").read_text()
    (here / "prompts.jsonl").write_text(text.replace("w1 ", "w2 "))
    with pytest.raises(BadInput, match=r"fitness.0.prompts: .*prompts.jsonl has changed"):
        run_campaign(
            file, directory=here / "run", observer=Silent(), settings=["budget.evaluations=9"]
        )


def test_a_part_of_the_items_is_scored_as_it_is_among_all(write):
    (campaign,) = checked(write([agrees(), sure(entropy="answer", max_tokens=3)]))
    worker = Worker(hash_sources(campaign).worker)
    recipe = campaign.space.first
    whole = worker.evaluate(Job(1, recipe, "search"))
    search = campaign.splits["agrees"].search
    few = {name: search[2:7] for name in ("agrees", "sure")}
    part = worker.evaluate(Job(2, recipe, "search", ordinals=few))
    assert whole.status == part.status == "ok", (whole.reason, part.reason)
    for name, scores in part.scores.items():
        np.testing.assert_allclose(scores, whole.scores[name][2:7], atol=1e-5)


def test_they_steer_a_search_as_objectives_and_as_constraints(write, here):
    entries = [
        agrees(max_tokens=2),
        agrees(name="of_b", agreement="b", max_tokens=2, constraint=">= -5"),
        sure(weight=0.5),
    ]
    file = write(entries, budget={"evaluations": 12}, scoring={"kind": "batches", "items": 5})
    assert run_campaign(file, directory=here / "run", observer=Silent())
    archive = Archive(here / "run" / "archive.db")
    assert [o.direction for o in archive.objectives] == ["maximize", "maximize", "minimize"]
    found = query(here / "run", "SELECT status, count(*) AS n FROM outcomes GROUP BY status")
    assert {row["status"] for row in found} <= {"ok", "stopped"}


def test_routed_candidates_are_compared_by_their_logits(write, here):
    space = {"kind": "routing"}
    file = write(agrees(max_tokens=2), space=space, budget={"evaluations": 3}, controller=None)
    own, others = scored(file, "a", "b")
    assert max(map(abs, own.values())) < 1e-6 and max(others.values()) < -1e-4


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "changes", "said"),
    [
        (agrees(agreement="aa"), {}, "fitness.0.agreement: there is no source 'aa'; did you mean"),
        (agrees(direction="minimize"), {}, "fitness.0.direction: the best agreement is 0"),
        (
            agrees(measure="hidden", layers=[-3, 3]),
            {},
            "fitness.0.layers: there is no layer 3: 'base' has 2; write 0 to 2",
        ),
        (agrees(kept=2), {}, "fitness.0.kept: "),
        (agrees(temperature=0.0), {}, "fitness.0.temperature: "),
        (agrees(), {"workers": {"engine": "vllm"}}, "fitness.0.agreement: .*vllm has none"),
        (sure(), {"workers": {"engine": "vllm"}}, "fitness.0.entropy: .*vllm has none"),
        (sure(entropy="words"), {}, "fitness.0.entropy: "),
        (sure(), {"heldout": {"split": "test"}}, "no validation and test split of its own"),
        (
            agrees(measure="hidden"),
            {"space": {"kind": "routing"}, "controller": None},
            "fitness.0.measure: layers of a routed candidate",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(write, entry, changes, said):
    with pytest.raises(BadInput, match=said):
        checked(write(entry, **changes))


def test_an_encoder_decoder_is_read_by_none_of_them(write, here):
    from transformers import T5Config, T5ForConditionalGeneration

    from evomerge.testing.tiny import WORDS, tiny_tokenizer

    config = T5Config(
        vocab_size=len(WORDS), d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    for seed, name in enumerate(("t", "u")):
        torch.manual_seed(seed)
        T5ForConditionalGeneration(config).save_pretrained(here / name)
        tiny_tokenizer().save_pretrained(here / name)
    sources = {"models": {"t": "t", "u": "u"}}
    space = {"kind": "mixture"}
    file = write(sure(), sources=sources, space=space, controller={"kind": "niches"})
    with pytest.raises(BadInput, match=r"fitness.0.entropy: what is read token by token needs"):
        checked(file)


def test_check_tells_of_the_memory_that_predictions_take(write):
    (with_one,) = checked(write(agrees(max_tokens=10)))
    (without,) = checked(write(sure()))
    kept = 24 * 10 * 256 * 8
    assert with_one.fitness["agrees"].bytes == kept
    assert estimate(with_one)["memory_bytes"] - estimate(without)["memory_bytes"] == kept


def test_a_plan_with_experts_travels_to_another_process(write):
    (campaign,) = checked(write(agrees(max_tokens=2)))
    plan = hash_sources(campaign).worker
    copy = pickle.loads(pickle.dumps(plan))
    recipe = campaign.space.first
    found = [Worker(p).evaluate(Job(1, recipe, "search")).scores["agrees"] for p in (plan, copy)]
    assert found[0].tolist() == found[1].tolist()
