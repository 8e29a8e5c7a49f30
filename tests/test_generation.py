"""Generated answers and when a batch has stopped, against lm-eval's own."""

import itertools

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import MultiTokenEOSCriteria

from evomerge.scoring.generation import AllStopped, StopString
from evomerge.scoring.lm_eval_transformers import TransformersLM
from evomerge.testing.lm_eval_tasks import example_live

MODEL, TOKENIZER = example_live()


def asked(count, **options):
    """Requests with prompts of one to four words."""
    prompts = [" ".join(f"w{i * k % 20}" for k in range(1, 2 + i % 4)) for i in range(count)]
    return [
        Instance("generate_until", {}, (prompt, dict(options)), 0, metadata=("t", i, 1))
        for i, prompt in enumerate(prompts)
    ]


def theirs(requests, batch_size):
    lm = HFLM(pretrained=MODEL, tokenizer=TOKENIZER, batch_size=batch_size, device="cpu")
    torch.manual_seed(0)
    return lm.generate_until(requests, disable_tqdm=True)


def ours(engine, requests):
    torch.manual_seed(0)
    return [str(said) for said in engine.generate_until(requests, disable_tqdm=True)]


REQUESTS = {
    "greedy": asked(20, until=["</s>"], max_gen_toks=4, do_sample=False),
    "defaults": asked(5, max_gen_toks=3),
    "a stop string": asked(20, until=["w7", "w1 w"], max_new_tokens=6),
    "a text as stop": asked(7, until="w1", max_gen_toks=6),
    "sampled": asked(9, until=[], max_gen_toks=4, do_sample=True, temperature=0.7),
    "penalized": asked(9, max_gen_toks=4, repetition_penalty=1.5),
    "beams": asked(6, max_gen_toks=4, num_beams=2),
    "several": asked(9, until=["w3"], max_gen_toks=4) + asked(9, until=["</s>"], max_gen_toks=2),
}


@pytest.mark.parametrize(
    "kind, batch_size",
    [
        *((kind, 4) for kind in REQUESTS),
        ("a stop string", 1),
        ("a stop string", 64),
        ("several", 64),
    ],
)
def test_answers_are_those_of_lm_eval_however_often_they_are_asked_for(kind, batch_size):
    engine, requests = TransformersLM(MODEL, TOKENIZER, batch_size), REQUESTS[kind]
    wanted = theirs(requests, batch_size)
    assert [ours(engine, requests) for _ in range(3)] == [wanted] * 3
    assert len(set(wanted)) > 1


def test_answers_are_those_of_the_weights_there_are(restored):
    engine, requests = TransformersLM(MODEL, TOKENIZER, 4), REQUESTS["greedy"]
    first = ours(engine, requests)
    with torch.no_grad():
        for weight in MODEL.parameters():
            weight.mul_(-0.5)
    assert ours(engine, requests) == theirs(requests, 4) != first


@pytest.fixture
def restored():
    state = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    yield
    MODEL.load_state_dict(state)


def test_few_lists_of_requests_are_kept():
    engine = TransformersLM(MODEL, TOKENIZER, 4)
    requests = REQUESTS["greedy"]
    wanted = theirs(requests, 4)
    for first in range(12):  # each in a batch of its own
        assert ours(engine, requests[first : first + 1])
    assert len(engine._batches) == 8
    assert ours(engine, requests) == wanted
    assert ours(engine, requests[::-1]) == wanted[::-1]


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused():
    engine = TransformersLM(MODEL, TOKENIZER, 4)
    with pytest.raises(ValueError, match=r"an answer of 9999 tokens leaves no room for a prompt"):
        engine.generate_until(asked(1, max_gen_toks=9999))


class Letters:
    """A tokenizer that generates letters, and encodes a text as fewer tokens than that."""

    def encode(self, text, add_special_tokens):
        return [*range(len(text) // 2)]

    def decode(self, tokens):
        return "".join("ab"[token] for token in tokens)

    def batch_decode(self, rows):
        return [self.decode(row) for row in rows]


@pytest.mark.parametrize("text", ["", "a", "ab", "aba", "abba", "ababa"])
def test_a_batch_has_stopped_when_lm_eval_says_so(text):
    rows = torch.tensor([*itertools.product([0, 1], repeat=7)])  # two of a prompt
    pairs = torch.stack([rows, rows.flip(0).roll(5, 1)], dim=1)
    for batch in [*rows[:, None], *pairs]:
        mine = AllStopped(StopString(text, Letters()), start=2)
        lm_evals = MultiTokenEOSCriteria(text, Letters(), 2, len(batch))
        for end in range(3, 8):
            assert mine(batch[:, :end]) == lm_evals(batch[:, :end], None)
