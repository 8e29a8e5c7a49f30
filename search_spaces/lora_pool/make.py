"""Train the embedded pool of LoRA adapters of the tiny models' base.

Four adapters that add in one language each or in two, with ranks, scales and modules of their own,
as adapters of several makers have. Data, base and tasks are the tiny models'; the seeds fix the
rest.

    python search_spaces/lora_pool/make.py
    python search_spaces/lora_pool/make.py --adapters ja fr      # these alone
    python search_spaces/lora_pool/make.py --adapters            # none: the scores of all
"""

import argparse
import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search_spaces.tiny_models.make import (
    BATCH,
    LANGUAGES,
    Encoded,
    batch,
    corpus,
    descend,
    encode,
    held_out,
    score_row,
    sum_prompt,
)

HERE = Path(__file__).resolve().parent
BASE = "search_spaces/tiny_models/base"
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Lesson:
    """What an adapter is taught, and its form."""

    languages: tuple[str, ...]
    modules: list[str]
    rank: int
    alpha: int
    seed: int
    steps: int = 300
    rate: float = 2e-3


ADAPTERS = {
    "ja": Lesson(("ja",), ATTENTION + MLP, 8, 16, 21),
    "fr": Lesson(("fr",), ATTENTION + MLP, 12, 12, 22, steps=200),
    "maths": Lesson(("ja", "fr"), MLP, 8, 8, 23, steps=150),
    "fr_hot": Lesson(("fr",), ["q_proj", "v_proj", *MLP], 4, 16, 24, steps=100, rate=6e-3),
}


def train(base: LlamaForCausalLM, data: Mapping[str, Encoded], name: str) -> PeftModel:
    """Train an adapter on sums; on all else it is held to what the base says, by distillation."""
    lesson, teacher = ADAPTERS[name], base
    torch.manual_seed(lesson.seed)
    config = LoraConfig(r=lesson.rank, lora_alpha=lesson.alpha, target_modules=lesson.modules)
    model = get_peft_model(copy.deepcopy(base), config)
    generator = torch.Generator().manual_seed(lesson.seed)
    sums = {f"add {lang}": 1.0 for lang in lesson.languages}
    others = {f"add {lang}": 1.0 for lang in LANGUAGES if lang not in lesson.languages}
    others |= {f"read {lang}": 0.4 for lang in LANGUAGES}

    def loss_of(model: PeftModel) -> torch.Tensor:
        ids, labels = batch(data, sums, BATCH // 2, generator)
        own = model(input_ids=ids, labels=labels, use_cache=False).loss
        ids, labels = batch(data, others, BATCH // 2, generator)
        asked = labels[:, 1:] != -100
        with torch.no_grad():
            said = teacher(input_ids=ids, use_cache=False).logits[:, :-1][asked]
        student = model(input_ids=ids, use_cache=False).logits[:, :-1][asked]
        return own + torch.nn.functional.kl_div(
            student.log_softmax(-1), said.log_softmax(-1), log_target=True, reduction="batchmean"
        )

    descend(model, loss_of, steps=lesson.steps, rate=lesson.rate, warmup=20, decay=0.0, name=name)
    return model


def save(model: PeftModel, folder: Path) -> None:
    """Write an adapter in bfloat16, with what a reader needs of its config."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    config = json.loads((folder / "adapter_config.json").read_text())
    kept = {key: config[key] for key in ("peft_type", "r", "lora_alpha", "bias", "fan_in_fan_out")}
    kept |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": BASE}
    kept["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(kept, indent=1) + "\n")


def print_scores(out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print the base and the base with each adapter on the held-out sums."""
    pairs, _ = held_out()
    rows = {
        f"maths {lang}": [(sum_prompt(a, b, lang), str(a + b)) for a, b in pairs]
        for lang in LANGUAGES
    }
    print(f"| model | {' | '.join(rows)} |")
    print("|---" * (len(rows) + 1) + "|")
    for name in ("base", *ADAPTERS):
        model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        if name != "base":
            model = PeftModel.from_pretrained(model, out / name).merge_and_unload()
        score_row(name, model.eval(), tokenizer, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the adapters")
    parser.add_argument("--adapters", nargs="*", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    if options.adapters:
        data = {skill: encode(rows, tokenizer) for skill, rows in corpus().items()}
        base = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
        for name in options.adapters:
            save(train(base, data, name), options.out / name)
    print_scores(options.out, tokenizer)


if __name__ == "__main__":
    main()
