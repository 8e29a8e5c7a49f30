"""Texts such as the embedded experts were trained on, for methods that merge by data.

Sums in each expert's own languages with their answers, drawn by a seed from what training may draw
from: no item that scores anything is among them.
"""

import importlib
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKERS = {"demo": "search_spaces.tiny_models.make", "many": "search_spaces.many_experts.make"}
COUNT = 256  # of each expert, as RegMean and Fisher merging are mostly run


def write_texts(campaign: str, folder: Path, count: int = COUNT) -> dict[str, Path]:
    """Write the texts of every expert of a campaign's pool; return the files by expert."""
    sys.path.insert(0, str(ROOT))
    make = importlib.import_module(MAKERS[campaign])  # the script that made the models
    rows = make.corpus()
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for number, (name, lesson) in enumerate(make.EXPERTS.items()):
        if campaign == "demo":
            skills = [f"add {language}" for language in lesson[0]]
        else:
            skills = lesson.skills
        known = [row for skill in skills for row in rows[skill]]
        drawn = random.Random(number).sample(known, count)
        files[name] = folder / f"{campaign}-{name}.jsonl"
        lines = [json.dumps({"text": f"{prompt} {answer}"}) for prompt, answer in drawn]
        files[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files
