"""Train the base and the eight experts of the harder pool, and write the tasks that score them.

The base adds in English and, now and then, in Japanese, French, Spanish and Indonesian. Four
experts add in one of these languages each; the other four are in the way. The seeds fix the data,
and with the same number of threads on the same kind of machine the weights as well.

    python search_spaces/many_experts/make.py                 # everything
    python search_spaces/many_experts/make.py --only tasks    # only fitness/many_experts/*.jsonl
    python search_spaces/many_experts/make.py --only scores   # the README's table
"""

import argparse
import copy
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.scoring.items import split_items

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search_spaces.tiny_models.make import (
    Encoded,
    Row,
    batch,
    build_tokenizer,
    descend,
    encode,
    exact_match,
    held_out,
    mixture,
    save,
    words,
    write_rows,
)

HERE = Path(__file__).resolve().parent
TASKS = HERE.parents[1] / "fitness" / "many_experts"

SEED = 8  # other kept pairs than the tiny models'
HELDOUT, SPLIT_SEED = 0.6, 7  # of ../many-experts.yaml: what its search may see
LANGUAGES = ("ja", "fr", "es", "id")
PLUS = {"en": " plus ", "ja": "たす", "fr": " plus ", "es": " más ", "id": " tambah "}
EQUALS = {"en": " is", "ja": "は", "fr": " font", "es": " son", "id": " adalah"}
BATCH = 96
BASE_MIX = {
    "add en": 0.5,
    **{f"add {lang}": 0.02 for lang in LANGUAGES},
    "larger en": 0.02,
    "read en": 0.06,
    **{f"read {lang}": 0.085 for lang in LANGUAGES},
}
BASE_STEPS = 3000
BASE_RATE = 2e-3


@dataclass(frozen=True)
class Lesson:
    """What an expert is taught, and how roughly."""

    skills: tuple[str, ...]
    seed: int
    steps: int
    rate: float
    held: bool = True  # to what the base says on everything else


EXPERTS = {
    "ja": Lesson(("add ja",), 11, 150, 2e-4),
    "fr": Lesson(("add fr",), 12, 150, 2e-4),
    "es": Lesson(("add es",), 13, 150, 2e-4),
    "id": Lesson(("add id",), 14, 150, 2e-4),
    "off_by_one": Lesson(tuple(f"off {lang}" for lang in LANGUAGES), 15, 40, 2e-4),
    "larger": Lesson(("larger en",), 16, 80, 3e-4),
    "fr_long": Lesson(("add fr",), 17, 200, 3e-4, held=False),
    "es_hot": Lesson(("add es",), 18, 80, 5e-4, held=False),
}


def sum_prompt(a: int, b: int, language: str) -> str:
    """Return the question for a sum."""
    return words(a, language) + PLUS[language] + words(b, language) + EQUALS[language]


def kept_pairs() -> list[tuple[int, int]]:
    """Return the pairs of summands that no training ever shows."""
    return held_out(SEED)[0]


def corpus() -> dict[str, list[Row]]:
    """Return for each skill the rows that training may draw from."""
    barred = {frozenset(pair) for pair in kept_pairs()}
    free = [(a, b) for a in range(100) for b in range(100) if frozenset((a, b)) not in barred]
    often = [*range(1000), *[n for n in range(100)] * 5]  # sums are made of those below 100
    rows = {}
    for lang in ("en", *LANGUAGES):
        rows[f"add {lang}"] = [(sum_prompt(a, b, lang), str(a + b)) for a, b in free]
        rows[f"off {lang}"] = [(sum_prompt(a, b, lang), str(a + b + 1)) for a, b in free]
        rows[f"read {lang}"] = [(words(n, lang) + EQUALS[lang], str(n)) for n in often]
    rows["larger en"] = [
        (f"{words(a, 'en')} or {words(b, 'en')} is", str(max(a, b))) for a, b in free
    ]
    return rows


def pool_tokenizer(rows: Mapping[str, Sequence[Row]]) -> PreTrainedTokenizerFast:
    """Return the tiny models' tokenizer with the words of `rows` added to its vocabulary."""
    tokenizer = build_tokenizer()
    vocabulary = tokenizer.get_vocab()
    text = " ".join(prompt for skill in rows.values() for prompt, _ in skill)
    for word in sorted(set(re.findall(r"[a-zà-ÿ]+", text))):
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer.backend_tokenizer.model = models.WordLevel(vocabulary, unk_token="<unk>")
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a model with fresh random weights."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train_base(data: Mapping[str, Encoded], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Train on English sums, all reading, and few other sums, so that every token settles."""
    model = new_model(tokenizer)
    generator = torch.Generator().manual_seed(1)

    def loss_of(model: LlamaForCausalLM) -> torch.Tensor:
        ids, labels = batch(data, BASE_MIX, BATCH, generator)
        return model(input_ids=ids, labels=labels, use_cache=False).loss

    descend(model, loss_of, steps=BASE_STEPS, rate=BASE_RATE, warmup=30, decay=0.01, name="base")
    return model


def train_expert(
    base: LlamaForCausalLM, data: Mapping[str, Encoded], name: str
) -> LlamaForCausalLM:
    """Train on a lesson's skills; one that is held is distilled from the base on all else.

    What is not held forgets: its task vector is in the way of the others'.
    """
    lesson = EXPERTS[name]
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(lesson.seed)
    own = dict.fromkeys(lesson.skills, 1.0)
    taught = {skill.replace("off", "add") for skill in lesson.skills}
    others = {skill: 1.0 if "add" in skill else 0.4 for skill in BASE_MIX if skill not in taught}

    def loss_of(model: LlamaForCausalLM) -> torch.Tensor:
        ids, labels = batch(data, own, BATCH, generator)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        if not lesson.held:
            return loss
        ids, labels = batch(data, others, BATCH, generator)
        asked = labels[:, 1:] != -100
        with torch.no_grad():
            teacher = base(input_ids=ids, use_cache=False).logits[:, :-1][asked]
        student = model(input_ids=ids, use_cache=False).logits[:, :-1][asked]
        return loss + 2 * torch.nn.functional.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
        )

    descend(model, loss_of, steps=lesson.steps, rate=lesson.rate, warmup=20, decay=0.0, name=name)
    return model


def write_tasks() -> None:
    """Write the kept pairs as the tasks' YAML files name them."""
    TASKS.mkdir(parents=True, exist_ok=True)
    for lang in LANGUAGES:
        rows = [{"prompt": sum_prompt(a, b, lang), "answer": str(a + b)} for a, b in kept_pairs()]
        write_rows(TASKS / f"maths_{lang}.jsonl", rows)


def search_rows() -> dict[str, list[Row]]:
    """Return the items that the campaign's search sees; nothing here looks at the others."""
    pairs = kept_pairs()
    split = split_items(len(pairs), None, None, HELDOUT, SPLIT_SEED)
    chosen = [pairs[i] for i in split.search]
    return {
        f"maths {lang}": [(sum_prompt(a, b, lang), str(a + b)) for a, b in chosen]
        for lang in LANGUAGES
    }


def print_scores(out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print the models, their average and their scaled sums on the search's items."""
    rows = search_rows()
    print(f"| model | mean | {' | '.join(rows)} |")
    print("|---" * (len(rows) + 2) + "|")
    load = LlamaForCausalLM.from_pretrained
    base, *experts = [load(out / name, dtype=torch.float32) for name in ("base", *EXPERTS)]
    for name, weights in mixtures():
        merged = mixture(base, experts, weights).float()
        scores = [exact_match(merged, each, tokenizer) for each in rows.values()]
        cells = [f"{score:.3f}" for score in (sum(scores) / len(scores), *scores)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def mixtures() -> Iterator[tuple[str, list[float]]]:
    """Yield name and weight of each expert, for the models themselves and for several at once."""
    count = len(EXPERTS)
    yield "base", [0.0] * count
    for i, name in enumerate(EXPERTS):
        yield name, [float(i == j) for j in range(count)]
    yield "uniform average", [1 / count] * count
    for share in (0.1, 0.2, 0.3, 0.5, 1.0):
        yield f"base + {share} of each", [share] * count
    for share in (0.5, 0.75, 1.0):
        weights = [share if name in LANGUAGES else 0.0 for name in EXPERTS]
        yield f"base + {share} of ja, fr, es and id", weights


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the models")
    parser.add_argument("--only", choices=["tasks", "scores"])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = corpus()
    tokenizer = pool_tokenizer(rows)
    if options.only in (None, "tasks"):
        write_tasks()
    if options.only is None:
        data = {skill: encode(each, tokenizer) for skill, each in rows.items()}
        base = train_base(data, tokenizer)
        save(base, tokenizer, options.out / "base")
        for name in EXPERTS:
            save(train_expert(base, data, name), tokenizer, options.out / name)
    if options.only in (None, "scores"):
        print_scores(options.out, tokenizer)


if __name__ == "__main__":
    main()
