"""Engines answer the same questions: the tokens of lm-eval's HFLM, whatever makes answers of them.

The one in vLLM is asked in tests/test_vllm.py, by `make test-vllm`, as vLLM needs an environment of
its own; here its questions are answered by plain transformers, prompt by prompt.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.cli.main import main
from evomerge.engines import ENGINES, EngineOptions
from evomerge.engines.alike import check_alike
from evomerge.errors import BadInput
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import single
from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.lm_eval_vllm import VllmLM
from evomerge.sources.source import open_source
from evomerge.testing.lm_eval_tasks import example_live
from evomerge.workers.engine_trial import quickest

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
    from evomerge.scoring.outcome import Outcome
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
