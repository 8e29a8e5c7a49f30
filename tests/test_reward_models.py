"""Reward models: their numbers are those of transformers, and what is none is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sql import query

from evomerge.archive.archive import Archive
from evomerge.campaign.build import checked
from evomerge.campaign.estimate import estimate
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.errors import BadInput
from evomerge.scoring.prompts import PromptsFitness, PromptsSection
from evomerge.testing.lm_eval_tasks import example_live
from evomerge.testing.prompts import example_reward_model

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"


@pytest.fixture(scope="module")
def reward(world):
    return example_reward_model()


@pytest.fixture
def write(campaign_file, reward):
    def file(**changes):
        rows = [{"prompt": f"w{n % 28} w{(n * 7) % 28}"} for n in range(24)]
        path = campaign_file(
            fitness=[
                {
                    "name": "liked",
                    "reward_model": str(reward),
                    "prompts": "prompts.jsonl",
                    "max_tokens": 3,
                    "reward_batch": 5,
                    **changes,
                }
            ],
            budget={"evaluations": 1},
            finals=0,
        )
        (path.parent / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return path

    return file


def directly(directory, texts) -> list[float]:
    """What transformers says, one text (or pair of texts) after the other."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found = []
    for text in texts:
        pair = (text,) if isinstance(text, str) else text
        ids = tokenizer(*pair, return_tensors="pt", add_special_tokens=len(pair) > 1)
        with torch.inference_mode():
            found.append(float(model(**ids).logits[0, 0]))
    return found


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_campaigns_scores_are_the_rewards_of_its_answers(write, reward, sigmoid):
    file = write(sigmoid=sigmoid)
    directory = file.parent / "run"
    assert run_campaign(file, directory=directory, observer=Silent())
    rows = query(directory, "SELECT ordinal, answer FROM answers WHERE candidate_id = 2")
    said = {row["ordinal"]: row["answer"] for row in rows}
    archive = Archive(directory / "archive.db")
    scores = archive.item_scores(2, "liked", "heldout")
    prompts = [json.loads(line)["prompt"] for line in (file.parent / "prompts.jsonl").open()]
    expected = np.array(directly(reward, [(prompts[o], said[o]) for o in sorted(said)]))
    if sigmoid:
        expected = torch.sigmoid(torch.tensor(expected)).numpy()
    assert len(scores) == 12 and np.ptp(scores) > 0.01
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_chat_template_of_the_reward_model_is_what_it_reads(write, reward, tmp_path):
    templated = Path(shutil.copytree(reward, tmp_path / "templated"))
    (templated / "chat_template.jinja").write_text(TEMPLATE)
    (campaign,) = checked(write(reward_model=str(templated)))
    fitness = campaign.fitness["liked"]
    fitness.prepare(example_live(), [0, 3])
    scores = fitness.score([0, 3])
    turns = zip((0, 3), fitness.answers([0, 3]), strict=True)
    texts = [f"user {fitness.prompts[o].text} </s> assistant {a} </s> " for o, a in turns]
    np.testing.assert_allclose(scores, directly(reward, texts), atol=1e-5)


def test_check_tells_of_its_memory_and_of_what_is_no_reward_model(write, reward, here):
    (campaign,) = checked(write())
    size = (reward / "model.safetensors").stat().st_size
    beside = campaign.fitness["liked"].bytes
    assert size * 0.8 < beside < size
    assert estimate(campaign)["memory_bytes"] > beside
    wrong = {
        "base": "'.*base' is a LlamaForCausalLM, which gives no reward",
        "nowhere": "there is no directory 'nowhere'",
        str(example_reward_model(labels=3)): "tells 3 labels apart",
    }
    for place, said in wrong.items():
        with pytest.raises(BadInput, match=f"fitness.0.reward_model: .*{said}"):
            checked(write(reward_model=place))


def test_a_prompts_words_are_its_conversation_and_a_good_answer(tmp_path):
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    rows = [{"prompt": "w3 w4", "reference": "w5"}, {"messages": turns}]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fitness = PromptsFitness(PromptsSection(name="x", prompts=str(file)))
    assert fitness.text(0) == ("w3 w4", "w5")
    assert fitness.text(1) == ("user: w1\n\nassistant: w2", "")
