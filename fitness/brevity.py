"""How much a model says: tokens of its greedy answer, at most 32. Less is better.

An example of a fitness in Python: `items` lists whatever is scored, in a fixed order, and `score`
gives one finite number an item.
"""

import json
from pathlib import Path
from typing import Any

MOST = 32
PROMPTS = Path(__file__).parent / "crosslingual" / "maths_en.jsonl"


def items() -> list[str]:
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines[:200]]


def score(model: Any, tokenizer: Any, items: list[str]) -> list[float]:
    lengths = []
    for prompt in items:
        asked = tokenizer(prompt, return_tensors="pt").to(model.device)
        said = model.generate(**asked, max_new_tokens=MOST, do_sample=False)
        lengths.append(float(said.shape[1] - asked["input_ids"].shape[1]))
    return lengths
