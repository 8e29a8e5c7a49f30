"""A small file of prompts, for examples and tests."""

import json
import tempfile
from pathlib import Path

from evomerge.scoring.prompts import PromptsFitness, PromptsSection
from evomerge.testing.campaigns import example_folder
from evomerge.testing.tiny import WORDS, tiny_tokenizer


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


def example_reward_model(labels: int = 1) -> Path:
    """Save a tiny random reward model; return its directory.

    >>> (example_reward_model() / "model.safetensors").is_file()
    True
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    directory = Path(tempfile.mkdtemp(dir=example_folder())) / "reward"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.5,
            pad_token_id=0,
        )
        config.num_labels = labels
        LlamaForSequenceClassification(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
