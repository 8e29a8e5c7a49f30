"""How much a model says: tokens of its greedy answer, at most 32. Less is better.

An example of a fitness in Python: `items` lists whatever is scored, in a fixed order, and `score`
gives one finite number an item.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # items are listed without a wait for transformers
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST = 32  # tokens of an answer
PROMPTS = Path(__file__).parent / "crosslingual" / "maths_en.jsonl"


def items() -> list[str]:
    """Return the prompts: 200 sums in English."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:200]]


def score(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", items: list[str]
) -> list[float]:
    """Return the length of the model's answer to each prompt, in tokens."""
    lengths = []
    for prompt in items:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        outputs = model.generate(**inputs, max_new_tokens=MOST, do_sample=False)
        lengths.append(float(outputs.shape[1] - inputs["input_ids"].shape[1]))
    return lengths
