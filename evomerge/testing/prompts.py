"""A small file of prompts, for examples and tests."""

import json
import tempfile
from pathlib import Path

from evomerge.scoring.prompts import PromptsFitness, PromptsSection
from evomerge.testing.campaigns import example_folder


def example_prompts() -> Path:
    """Write 24 prompts; return the file.

    >>> example_prompts().name
    'prompts.jsonl'
    """
    file = Path(tempfile.mkdtemp(dir=example_folder())) / "prompts.jsonl"
    rows = [{"prompt": f"w{n} w{n + 1}"} for n in range(1, 25)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def example_prompts_fitness() -> PromptsFitness:
    """Return a fitness that asks them, of which nobody scores the answers.

    >>> example_prompts_fitness().direction
    'maximize'
    """
    return PromptsFitness(PromptsSection(name="x", prompts=str(example_prompts())))
