"""Engines answer the same questions: the tokens of lm-eval's HFLM, whatever makes answers of them.

The one in vLLM is asked in tests/test_vllm.py, by `make test-vllm`, as vLLM needs an environment of
its own; here its questions are answered by plain transformers, prompt by prompt.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.campaign.build import checked
from evomerge.campaign.source_hashes import hash_sources
from evomerge.cli.main import main
from evomerge.engines import ENGINES, EngineOptions
from evomerge.engines.alike import check_alike
from evomerge.engines.asking_ahead import AskingAhead
from evomerge.errors import BadInput, EvomergeError
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import single
from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.lm_eval_vllm import VllmLM
from evomerge.scoring.outcome import Outcome
from evomerge.sources.lora import Adapter, LowRank
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source, open_source
from evomerge.testing.campaigns import example_archive_of, example_campaign
from evomerge.testing.lm_eval_tasks import example_live
from evomerge.workers.engine_trial import quickest, trial
from evomerge.workers.pool import InlinePool
from evomerge.workers.protocol import Job

LONGEST = 64  # tokens that the tiny models take


class Logprob(NamedTuple):
    """As vLLM has it."""

    logprob: float
    rank: int


class ByTransformers:
    """Answers what `VllmLM` asks, one prompt after the other; keeps what it was asked."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.options = model, tokenizer, []

    def __call__(self, prompts, options):
        self.options += options
        pairs = zip(prompts, options, strict=True)
        return [self.one(prompt, some) for prompt, some in pairs]

    def one(self, prompt, options):
        ids = torch.tensor([prompt])
        if options.get("prompt_logprobs") is not None:
            likelihoods = self.model(ids).logits[0].float().log_softmax(-1)
            found = [None]
            for token, row in zip(prompt[1:], likelihoods, strict=False):
                rank = int((row > row[token]).sum()) + 1
                found.append({token: Logprob(float(row[token]), rank)})
            return found
        for _ in range(options["max_tokens"]):
            following = self.model(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, following[None, None]], dim=1)
            said = ids[0, len(prompt) :].tolist()
            text = self.tokenizer.decode(said, skip_special_tokens=False)
            if any(stop in text for stop in options["stop"]):
                break
        return said


@pytest.fixture(scope="module")
def pair():
    """HFLM, and VllmLM with the same model behind it."""
    model, tokenizer = example_live()
    model.float()  # lm-eval adds up likelihoods in the model's dtype
    hflm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    return hflm, VllmLM(ByTransformers(model, tokenizer), model, tokenizer, LONGEST)


def instances(kind, arguments):
    return [Instance(kind, {}, args, 0, metadata=("t", i, 1)) for i, args in enumerate(arguments)]


@pytest.mark.parametrize(
    "options",
    [
        {"until": ["</s>"], "max_gen_toks": 4, "do_sample": False},
        {"until": ["w7", "w1 w"], "max_gen_toks": 6},
        {"max_gen_toks": 3},
    ],
)
def test_generated_answers_are_those_of_lm_eval(pair, options):
    hflm, lm = pair
    prompts = [" ".join(f"w{i * k % 20}" for k in range(1, 2 + i % 4)) for i in range(6)]
    prompts.append(" ".join(f"w{i % 20}" for i in range(100)))  # longer than the model takes
    requests = instances("generate_until", [(prompt, dict(options)) for prompt in prompts])
    with torch.inference_mode():
        wanted = hflm.generate_until(requests, disable_tqdm=True)
        assert list(map(str, lm.generate_until(requests, disable_tqdm=True))) == wanted
    assert len(set(wanted)) > 1
    asked = lm._ask.options[-1]
    assert asked["temperature"] == 0.0 and asked["max_tokens"] == options["max_gen_toks"]


def test_likelihoods_are_those_of_lm_eval(pair):
    hflm, lm = pair
    texts = [(f"w{i} w{i * 3 % 20}", f" w{i * 7 % 20} w{i % 5}") for i in range(10)]
    greedy = hflm.generate_until(
        instances("generate_until", [("w1 w2", {"max_gen_toks": 1, "until": []})]),
        disable_tqdm=True,
    )
    texts.append(("w1 w2", f" {greedy[0].strip()}"))
    requests = instances("loglikelihood", texts)
    rolling = instances("loglikelihood_rolling", [(f"{a}{b}",) for a, b in texts])
    with torch.inference_mode():
        wanted = hflm.loglikelihood(requests, disable_tqdm=True)
        found = lm.loglikelihood(requests, disable_tqdm=True)
        assert np.allclose([w[0] for w in wanted], [f[0] for f in found], atol=1e-4)
        assert [bool(w[1]) for w in wanted] == [f[1] for f in found]
        assert {f[1] for f in found} == {True, False}
        wanted = hflm.loglikelihood_rolling(rolling, disable_tqdm=True)
        assert np.allclose(wanted, lm.loglikelihood_rolling(rolling, disable_tqdm=True), atol=1e-4)


def test_lengths_are_of_the_tokens_before_the_stop(pair):
    _, lm = pair
    requests = instances("generate_until", [("w1 w2", {"max_gen_toks": 5, "until": []})])
    with torch.inference_mode():
        (said,) = lm.generate_until(requests)
    assert lm.length(said) == 5
    cut = said.split(str(said)[-2:])[0]
    assert lm.length(cut) < 5


def test_what_vllm_cannot_generate_is_said(pair):
    _, lm = pair
    requests = instances("generate_until", [("w1", {"max_gen_toks": 2, "num_beams": 2})])
    with pytest.raises(ValueError, match="no generation argument 'num_beams'; leave it out"):
        lm.generate_until(requests)
    with pytest.raises(ValueError, match="leaves no room for a prompt: the model takes 64 tokens"):
        lm.generate_until(instances("generate_until", [("w1", {"max_gen_toks": 64})]))


def test_sampling_arguments_go_through(pair):
    hflm, _ = pair
    seen = []

    def ask(prompts, options):
        seen.extend(options)
        return [[5]] * len(prompts)

    lm = VllmLM(ask, hflm.model, hflm.tokenizer, LONGEST)
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_gen_toks": 2}
    lm.generate_until(instances("generate_until", [("w1", sampled)]))
    assert seen[0]["temperature"] == 0.7 and seen[0]["top_p"] == 0.9
    assert "do_sample" not in seen[0]


def test_the_transformers_engine_is_the_model_it_was_filled_with(world):
    """A live model is made without memory and gets every weight, tied ones too."""
    from transformers import AutoModelForCausalLM

    names = [str(world / name) for name in "ab"]
    opened = {name: open_source(name) for name in names}
    merger = Merger(opened, dict.fromkeys(names, ""))
    engine = ENGINES.get("transformers").open(opened[names[0]], EngineOptions("float32"))
    for name in (*names, names[0]):
        recipe = single(name, "bfloat16")
        digests = merger.fill(recipe, engine.direct)
        others = [tensor for tensor in merger.shapes(recipe) if tensor not in digests]
        engine.load(merger.stream(recipe, others, digests))
        plain = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
        ids = torch.arange(10)[None]
        with torch.inference_mode():
            assert torch.equal(engine.model(ids).logits, plain(ids).logits)
    parameters = dict(engine.model.named_parameters(remove_duplicate=False))
    head, embedding = parameters["lm_head.weight"], parameters["model.embed_tokens.weight"]
    assert head.data_ptr() == embedding.data_ptr()  # one tensor still


VLLM = {"workers": {"engine": "vllm"}}
TASK = [{"name": "said", "task": "generation.yaml", "metric": "exact_match"}]


@pytest.mark.parametrize(
    "changes, key",
    [
        ({}, "fitness.0.function"),
        ({"fitness": [{"name": "size", "cost": "parameters"}]}, "fitness.0.cost"),
        ({"fitness": TASK, "space": {"kind": "routing"}}, "space.kind"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_anything_is_loaded(campaign_file, changes, key):
    from evomerge.config.validate import read_plan

    with pytest.raises(BadInput) as caught:
        read_plan(campaign_file(**VLLM, **changes))
    (line,) = [str(fault) for fault in caught.value.faults if key in str(fault)]
    assert "write workers.engine: transformers" in line


def test_an_engine_that_is_not_installed_is_named_with_its_extra(campaign_file, monkeypatch):
    from evomerge.campaign import engine_check
    from evomerge.campaign.build import read_and_check

    monkeypatch.setattr(engine_check, "find_spec", lambda name: None)
    file = campaign_file(**VLLM, fitness=TASK)
    plan = read_and_check(file, [], None)
    from evomerge.campaign.build import checked_campaigns

    with pytest.raises(BadInput, match=r"workers.engine: vllm is not installed.*evomerge\[vllm\]"):
        checked_campaigns(plan, None, True)


@pytest.fixture
def measured(monkeypatch):
    """Let vLLM seem to be there, and to have answered in some seconds."""
    from evomerge.campaign import engine_choice

    asked = []

    def trial_on(cluster, plan, engines, ordinals):
        asked.append(ordinals)
        return {
            "transformers": {"generate_until": 6.8, "loglikelihood": 5.0, "update": 0.1},
            "vllm": {"generate_until": 2.3, "loglikelihood": 11.0, "update": 0.2},
        }

    monkeypatch.setattr(engine_choice, "find_spec", lambda name: True)
    monkeypatch.setattr(engine_choice, "trial_on", trial_on)
    return asked


def test_the_engines_that_were_measured_once_are_archived(measured, campaign_file, here, silent):
    from evomerge.archive.archive import Archive
    from evomerge.campaign.build import checked
    from evomerge.campaign.engine_choice import with_engine
    from evomerge.campaign.resume import begin

    scoring = {"kind": "batches", "items": 6}
    file = campaign_file(fitness=TASK, workers={"engine": "auto"}, scoring=scoring)
    (campaign,) = checked(file)
    hashes = dict.fromkeys(campaign.worker.sources, "")
    campaign = replace(campaign, worker=replace(campaign.worker, hashes=hashes))
    archive = Archive(here / "archive.db", write=True)
    begin(archive, campaign, here)
    found = with_engine(campaign, archive, silent).worker
    chosen = {"generate_until": "vllm", "loglikelihood": "transformers"}
    assert (found.engine, found.by_request) == ("auto", chosen)
    assert archive.engine == "transformers and vllm"
    assert silent.said[1] == "generate_until: vllm (6.80 s by transformers, 2.30 s by vllm)"
    assert len(measured[0]["said"]) == 6  # as many items as a candidate is scored on
    assert with_engine(campaign, archive, silent).worker == found
    assert len(measured) == 1
    archive.close()


@pytest.mark.parametrize(
    "changes, engines",
    [
        ({"fitness": TASK}, ["transformers", "vllm"]),
        ({}, ["transformers"]),  # a function alone is given transformers' model
        ({"fitness": TASK, "space": {"kind": "routing"}}, ["transformers"]),
    ],
)
def test_what_auto_may_choose_from(measured, campaign_file, changes, engines):
    from evomerge.campaign.build import checked
    from evomerge.campaign.engine_choice import possible

    (campaign,) = checked(campaign_file(workers={"engine": "auto"}, **changes))
    assert possible(campaign) == engines


def test_a_function_keeps_the_engine_that_has_a_model():
    seconds = {
        "transformers": {"generate_until": 6.8, "update": 0.1},
        "vllm": {"generate_until": 2.3, "update": 0.2},
    }
    assert quickest(seconds) == {"generate_until": "vllm"}
    chosen = quickest(seconds, model="transformers")
    assert chosen == {"generate_until": "vllm", "model": "transformers"}
    # what one engine more would save has to be worth its memory
    seconds["transformers"]["generate_until"] = 2.5
    assert quickest(seconds, model="transformers")["generate_until"] == "transformers"


def test_an_engine_that_fails_when_it_is_tried_is_left_out(caplog, monkeypatch):
    class Broken(ENGINES.get("transformers")):
        @classmethod
        def open(cls, source, options):
            raise RuntimeError("the device has no memory left")

    monkeypatch.setitem(ENGINES._entries, "broken", Broken)
    worker = example_campaign(hashed=True).worker
    with caplog.at_level("WARNING", logger="evomerge"):
        assert list(trial(worker, ["transformers", "broken"], {})) == ["transformers"]
    assert "broken is left out: RuntimeError: the device has no memory left" in caplog.text
    with pytest.raises(RuntimeError):
        trial(worker, ["broken", "transformers"], {})


def test_a_finished_search_stays_finished_where_transformers_cannot_be_asked(monkeypatch, silent):
    from evomerge.campaign import agreement
    from evomerge.campaign.runner import never

    campaign = example_campaign(hashed=True)
    archive = example_archive_of(campaign)
    archive.set_values({c.id: (float(c.id), 0.0) for c in archive.baselines()})
    best, heldout = archive.best(), len(campaign.splits["likely"].heldout)
    scores = {"likely": np.zeros(heldout, np.float32)}
    archive.record_final(best, Outcome("ok", scores=scores))
    monkeypatch.setattr(agreement, "make_pool", lambda *given: 1 / 0)
    plain = replace(campaign, worker=replace(campaign.worker, engine="transformers"))
    assert agreement.compare_best(plain, archive, silent, never) and not silent.said

    def failing(*given):
        raise EvomergeError("workers do not start: no room")

    monkeypatch.setattr(agreement, "make_pool", failing)
    other = replace(campaign, worker=replace(campaign.worker, engine="vllm"))
    assert agreement.compare_best(other, archive, silent, never)
    assert silent.said[-1] == (
        f"warning: candidate {best} could not be scored by transformers: EvomergeError: workers do"
        " not start: no room"
    )
    monkeypatch.undo()
    other = replace(campaign, worker=replace(campaign.worker, engine="twin"))
    assert agreement.compare_best(other, archive, silent, never)
    found = archive.agreement(best)["likely"]
    assert (found.items, found.mean) == (heldout, 0.0) and found.by_transformers != 0.0


def test_an_engine_with_other_weights_is_noticed(world, monkeypatch):
    monkeypatch.chdir(world)
    section = TaskSection(name="x", task="generation.yaml", metric="exact_match")
    engines = [
        ENGINES.get("transformers").open(open_source(name), EngineOptions("float32"))
        for name in "ab"
    ]
    opened = {name: open_source(name) for name in "ab"}
    merger = Merger(opened, dict.fromkeys("ab", ""))
    for engine in engines:
        engine.become(merger, single("a", "float32"))
    assert check_alike("vllm", *engines, section, ["w1 w2 w3"], "float32") == 0.0
    engines[0].become(merger, single("b", "float32"))
    wrong = r"workers.engine: vllm reads otherwise than transformers with the same weights"
    with pytest.raises(BadInput, match=rf"{wrong} \(.* nats a token apart\); write workers.engine"):
        check_alike("vllm", *engines, section, ["w1 w2 w3"], "float32")


def test_how_transformers_scores_the_best_is_told(tmp_path):
    from evomerge.archive.reader import BY_TRANSFORMERS
    from evomerge.testing.archives import example_archive

    archive = example_archive(tmp_path / "archive.db")
    best = archive.best()
    scores = archive.item_scores(best, "accuracy", "heldout")
    other = scores.copy()
    other[0] = 1.0 - other[0]
    archive.record_by_transformers(best, Outcome("ok", scores={"accuracy": other}))
    found = archive.agreement(best)["accuracy"]
    assert (found.items, found.differing) == (len(scores), 1)
    assert (found.mean, found.by_transformers) == (scores.mean(), other.mean())
    assert archive.means(best, BY_TRANSFORMERS) == {"accuracy": other.mean()}
    told = CliRunner().invoke(main, ["front", str(tmp_path)]).output
    assert f"by transformers: accuracy {other.mean():.3f} (1 of {len(scores)} items fall" in told
    archive.close()


def test_a_campaign_keeps_its_engine(campaign_file):
    from evomerge.campaign.resume import differences
    from evomerge.config.validate import read_plan

    before = read_plan(campaign_file(fitness=TASK))
    after = read_plan(campaign_file(fitness=TASK, **VLLM))
    assert differences(before, after) == ["workers.engine"]
    more = read_plan(campaign_file(fitness=TASK, workers={"threads": 2}))
    assert differences(before, more) == []


def test_what_is_asked_of_several_is_asked_once():
    """Each gets its own answers; those that are sampled or follow a failure are asked for alone."""
    calls, broken = [], set()

    def generate(prompts, options, models):
        calls.append(list(models))
        if broken & set(models):
            raise RuntimeError("out of memory")
        return [f"{model} {prompt[0]}" for prompt, model in zip(prompts, models, strict=True)]

    asking = AskingAhead(generate)
    asking.expect("abc")
    greedy, sampled = [{"temperature": 0.0}] * 2, [{"temperature": 0.7}] * 2
    for model in "abc":
        asking.become(model)
        assert asking.ask([[1], [2]], greedy) == [f"{model} 1", f"{model} 2"]
        assert asking.ask([[3], [4]], sampled) == [f"{model} 3", f"{model} 4"]
        assert asking.ask([], []) == []
    assert [call for call in calls if call] == [list("aabbcc"), ["a"] * 2, ["b"] * 2, ["c"] * 2]

    calls.clear()
    broken.add("b")
    asking.expect("abc")
    asking.become("a")
    assert asking.ask([[1]], greedy[:1]) == ["a 1"]
    asking.become("b")
    with pytest.raises(RuntimeError, match="out of memory"):
        asking.ask([[1]], greedy[:1])
    asking.become("c")
    assert asking.ask([[1]], greedy[:1]) == ["c 1"]
    assert calls == [["a", "b", "c"], ["a"], ["b"], ["c"]]


def test_several_jobs_are_taken_and_come_back_one_by_one(campaign_file):
    """What is asked the same is announced to the engine together, whatever the order of jobs."""
    (campaign,) = checked(campaign_file())
    plan = replace(hash_sources(campaign).worker, candidates_each=4)
    pool = InlinePool(plan)
    heard = []
    pool._worker._engine.expect = lambda merger, recipes: heard.append(len(recipes))
    sides = ["search", "heldout", "search", "search"]
    for number, side in enumerate(sides):
        pool.submit(Job(number, single("abc"[number % 3], "bfloat16"), side))
    assert (pool.idle, pool.busy, pool.workers[0].others) == (0, 4, 3)
    events = [pool.next_finished() for _ in sides]
    assert [event.job.candidate for event in events] == [0, 1, 2, 3] and heard == [3]
    assert [len(event.outcome.scores["likely"]) for event in events] == [20] * 4
    first, _, _, fourth = [event.outcome for event in events]
    assert np.array_equal(first.scores["likely"], fourth.scores["likely"])  # of one model
    assert pool.next_finished() is None and pool.idle == 4
    pool.close()


LORA = {"workers": {"engine": "vllm-lora"}}


@pytest.mark.parametrize(
    "changes, wrong",
    [
        ({}, "'a' is no LoRA adapter of 'base'"),
        ({"space__method": "ties"}, "ties makes no weighted sum of its models"),
        (
            {"space__method": "nuslerp", "sources": {"models": {"a": "a", "b": "b"}}},
            "weights of nuslerp need not sum",
        ),
        (
            {"space": {"kind": "mixture"}, "controller": {"kind": "niches"}},
            "a recipe of kind mixture is no weighted sum",
        ),
    ],
)
def test_merges_that_are_no_adapters_are_refused_before_anything_is_loaded(
    campaign_file, changes, wrong
):
    with pytest.raises(BadInput) as caught:
        checked(campaign_file(**LORA, fitness=TASK, **changes))
    lines = [str(fault) for fault in caught.value.faults if "workers.engine" in str(fault)]
    assert any(f"vllm-lora cannot: {wrong}" in line for line in lines), lines


def test_a_pool_that_vllm_takes_no_adapters_of_is_refused():
    def source(name, rank, module):
        stored = Tensor("F32", (rank, rank), Path(name), "lora_A", 0, 0)
        factors = {f"{module}.weight": LowRank(stored, stored, 1.0, False, module)}
        return Source(name, Path("base"), {}, {}, {}, Adapter(Path(name), factors, {}))

    engine, name = ENGINES.get("vllm-lora"), "model.layers.0.q_proj"
    assert list(engine.unfit([source("a", 256, name), source("b", 256, name)])) == []
    (wide,) = engine.unfit([source("a", 256, name), source("b", 257, name)])
    assert wide == "the adapters' ranks sum to 513 in one weight, and vLLM takes 512 at most"
    (head,) = engine.unfit([source("a", 8, "lm_head")])
    assert "changes the head" in head


def test_candidates_at_once_and_stages_are_for_engines_that_can(campaign_file):
    from evomerge.config.validate import read_plan

    with pytest.raises(BadInput, match=r"candidates_each: the engine vllm holds one candidate"):
        read_plan(campaign_file(workers={"engine": "vllm", "candidates_each": 2}, fitness=TASK))
    assert read_plan(campaign_file(**LORA, fitness=TASK)).workers.at_once == 8
    plain = read_plan(campaign_file(fitness=TASK))
    assert plain.workers.at_once == 1
