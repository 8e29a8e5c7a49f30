"""Items, splits, and lm-eval's own scores, item by item."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lm_evals_own
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import BadInput
from evomerge.scoring.any_fitness import AnyFitness
from evomerge.scoring.items import LastSection, TestSplitSection, split_items
from evomerge.scoring.lm_eval_model import LoadedModel
from evomerge.scoring.open_fitness import open_fitness
from evomerge.sections import parse

TASKS = {
    "generation.yaml": "exact_match",
    "choice.yaml": "acc",
    "likelihood.yaml": "acc",
}


def opened(own_test=False, **entry):
    """A fitness by its entry in a campaign file."""
    return open_fitness(parse(AnyFitness, {"name": "t"} | entry), own_test)


@given(n=st.integers(1, 200), share=st.floats(0, 0.99), seed=st.integers(0, 9), cut=st.integers(1))
def test_a_split_is_a_partition_of_the_items_taken(n, share, seed, cut):
    items = min(n, cut)
    split = split_items(n, None, items, share, seed)
    assert len(split.search) + len(split.heldout) == items
    assert len(split.heldout) == round(share * items)
    assert not set(split.search) & set(split.heldout)
    assert {*split.search, *split.heldout} <= set(range(n))
    assert split == split_items(n, None, items, share, seed)


def test_splits_depend_on_the_seed_and_agree_between_tasks_of_one_size():
    assert split_items(50, None, None, 0.5, 1) == split_items(50, None, None, 0.5, 1)
    assert split_items(50, None, None, 0.5, 1) != split_items(50, None, None, 0.5, 2)


def test_last_holds_out_in_order():
    split = split_items(50, None, 10, LastSection(last=0.2), 3)
    assert split.search == tuple(range(8)) and split.heldout == (8, 9)


def test_a_tasks_own_test_split_is_held_out(here):
    fitness = opened(own_test=True, task="generation.yaml", metric="exact_match")
    assert fitness.test_from == 20 and len(fitness.hashes) == 80
    split = split_items(80, fitness.test_from, 15, TestSplitSection(split="test"), 3)
    assert len(split.search) == 15 and max(split.search) < 20
    assert len(split.heldout) == 15 and min(split.heldout) >= 20


@pytest.fixture(scope="module")
def live(world):
    """A live model with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(world / "a", dtype=torch.bfloat16).eval()
    return model, AutoTokenizer.from_pretrained(world / "a")


def lm_evals_samples(live, task, **options):
    """What lm-eval's own evaluation says of each document, in their order."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = live
    found = lm_evals_own(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, device="cpu"),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        **options,
    )
    (samples,) = found["samples"].values()
    return sorted(samples, key=lambda s: s["doc_id"])


def scored(live, **spec):
    """The scores of every document, taken twice."""
    fitness = opened(**{"batch_size": 16} | spec)
    ordinals = list(range(len(fitness.hashes)))
    fitness.prepare(LoadedModel(*live), ordinals)
    ours = fitness.score(ordinals)
    assert np.array_equal(ours, fitness.score(ordinals))  # again, the responses cleared
    return ours, fitness.answers(ordinals)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("fewshot", [0, 2])
def test_scores_are_those_of_lm_evals_own_evaluation(here, live, task, fewshot):
    """Every document, in one batch size, item by item, against simple_evaluate."""
    metric = TASKS[task]
    ours, _ = scored(live, task=task, metric=metric, fewshot=fewshot)
    samples = lm_evals_samples(live, task, num_fewshot=fewshot)
    assert ours.tolist() == [float(s[metric]) for s in samples]
    assert 0 < ours.sum() < len(ours) or fewshot  # neither all right nor all wrong


CHAT = (
    "{% for m in messages %}{{ m['role'] == 'user' and 'w1' or 'w2' }} {{ m['content'] }} "
    "{% endfor %}{% if add_generation_prompt %}w3 {% endif %}"
)


@pytest.mark.parametrize("task", TASKS)
def test_chat_templates_systems_and_fewshot_are_lm_evals(here, live, task):
    model, tokenizer = live
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    options = {"chat_template": True, "system": "w4 w5", "fewshot": 2}
    ours, _ = scored((model, tokenizer), task=task, metric=TASKS[task], **options)
    samples = lm_evals_samples(
        (model, tokenizer),
        task,
        num_fewshot=2,
        apply_chat_template=True,
        system_instruction="w4 w5",
    )
    assert "w4 w5" in str(samples[0]["arguments"]) and "w1" in str(samples[0]["arguments"])
    assert ours.tolist() == [float(s[TASKS[task]]) for s in samples]


def test_generation_arguments_and_stop_strings_are_lm_evals(here, live):
    plain = {"until": ["</s>"], "max_gen_toks": 6}
    spec = {"task": "generation.yaml", "metric": "exact_match"}
    _, said = scored(live, generation=plain, **spec)
    first = said[0].split()
    assert len(first) > 2
    kwargs = {"until": [first[2]], "max_gen_toks": 6}
    ours, stopped = scored(live, generation=kwargs, **spec)
    samples = lm_evals_samples(live, "generation.yaml", num_fewshot=0, gen_kwargs=kwargs)
    assert stopped == [s["filtered_resps"][0] for s in samples]
    assert ours.tolist() == [s["exact_match"] for s in samples]
    assert first[2] in said[0] and first[2] not in stopped[0]


def test_rolling_likelihoods_are_bits_per_byte_of_each_document(here, live):
    ours, answers = scored(live, task="rolling.yaml", metric="bits_per_byte")
    samples = lm_evals_samples(live, "rolling.yaml")
    theirs = [s["bits_per_byte"] for s in samples]
    wanted = [-nats / (size * math.log(2)) for nats, size in theirs]
    assert ours.tolist() == pytest.approx(wanted, rel=1e-6) and min(wanted) > 0
    assert answers is None
    spec = {"name": "t", "task": "rolling.yaml", "metric": "bits_per_byte"}
    assert opened(**spec).direction == "minimize"
    with pytest.raises(BadInput, match="'word_perplexity' is no mean of items"):
        opened(**spec | {"metric": "word_perplexity"})


def test_scores_of_a_subset_belong_to_their_items(here, live):
    spec = {"name": "t", "task": "choice.yaml", "metric": "acc", "batch_size": 1}
    fitness = opened(**spec)
    wanted = [3, 50, 8, 21]
    fitness.prepare(LoadedModel(*live), range(60))
    whole = fitness.score(list(range(60)))
    fitness.prepare(LoadedModel(*live), wanted)
    assert np.array_equal(fitness.score(wanted), whole[wanted])


def test_direction_comes_from_the_metric(here):
    spec = {"name": "t", "task": "choice.yaml", "metric": "acc"}
    assert opened(**spec).direction == "maximize"
    assert opened(**spec | {"direction": "minimize"}).direction == "minimize"


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"task": "nowhere.yaml", "metric": "acc"}, "task: there is no file 'nowhere.yaml'"),
        ({"task": "choice.yaml", "metric": "accc"}, "has no metric 'accc'; did you mean 'acc'?"),
        ({"task": "aggregated.yaml", "metric": "f1"}, "'f1' is no mean of items"),
        ({"task": "likelihood.yaml", "metric": "perplexity"}, "'perplexity' is no mean of items"),
        ({"task": "choice.yaml", "metric": "acc,strict"}, "has no filter 'strict'"),
        (
            {"task": "choice.yaml", "metric": "acc", "generation": {"max_gen_toks": 3}},
            "generation: 'choice.yaml' generates nothing",
        ),
        ({"function": "nowhere.py"}, "function: there is no file 'nowhere.py'"),
    ],
)
def test_faults_of_a_fitness_entry(here, spec, message):
    with pytest.raises(BadInput) as error:
        opened(**spec)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.xdist_group("index")
def test_a_name_of_lm_evals_that_is_nearly_right(here, one_index):
    spec = {"task": "hellaswga", "metric": "acc"}
    test_faults_of_a_fitness_entry(here, spec, "no task 'hellaswga'; did you mean 'hellaswag'?")


@pytest.mark.parametrize(
    "text, message",
    [
        ("def items(:", "cannot be imported: SyntaxError"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("def items(): return [1]", "has no function score"),
        ("score = max\ndef items(): return 1 / 0", "items() failed with ZeroDivisionError"),
        ("def score(m, items): 0\ndef items(): return [1]", "score does not take 3 arguments"),
        ("score = max\ndef items(split): return [1]", "items does not take 0 arguments"),
    ],
)
def test_faults_of_a_python_fitness(here, text, message):
    (here / "mine.py").write_text(text)
    with pytest.raises(BadInput) as error:
        opened(**{"name": "t", "function": "mine.py"})
    assert message in str(error.value)


def test_a_broken_task_file_is_one_line(here):
    (here / "broken.yaml").write_text("task: x\noutput_type: nonsense\ntest_split: test\n")
    with pytest.raises(BadInput) as error:
        opened(**{"name": "t", "task": "broken.yaml", "metric": "acc"})
    assert "'broken.yaml' cannot be loaded" in str(error.value)
    assert "\n" not in str(error.value)


def test_brevity_is_the_number_of_tokens_of_a_greedy_answer(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    folder = "search_spaces/tiny_models/base"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fitness = opened(**{"name": "brevity", "function": "fitness/brevity.py"})
    ordinals = [0, 3, 5]
    fitness.prepare(LoadedModel(model, tokenizer), ordinals)
    with torch.inference_mode():
        found = fitness.score(ordinals)
        for count, prompt in zip(found, (fitness._items[i] for i in ordinals), strict=True):
            ids, steps = tokenizer(prompt, return_tensors="pt")["input_ids"], 0
            while steps < 32:
                token = model(ids).logits[0, -1].argmax()
                ids, steps = torch.cat([ids, token[None, None]], 1), steps + 1
                if token == model.config.eos_token_id:
                    break
            assert count == steps
    assert len(set(found)) > 1
