"""Train the embedded tiny models and write the tasks on which they are scored.

A base that reads three languages and adds in English, and short, gentle fine-tunes of it on sums
in Japanese, in French, and in both. The seeds fix the data, and with the same number of threads on
the same kind of machine the weights as well.

    python search_spaces/tiny_models/make.py                 # everything
    python search_spaces/tiny_models/make.py --only tasks    # only fitness/crosslingual/*.jsonl
    python search_spaces/tiny_models/make.py --only scores   # the README's tables
"""

import argparse
import copy
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from num2words import num2words
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
TASKS = HERE.parents[1] / "fitness" / "crosslingual"

SEED = 7
LANGUAGES = ("en", "ja", "fr")
PLUS = {"en": " plus ", "ja": "たす", "fr": " plus "}
EQUALS = {"en": " is", "ja": "は", "fr": " font"}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PIECE = r"たす|[\p{Han}は]|[0-9+=]"  # cut off even where no space stands beside it
HELD_PAIRS = 1000
HELD_NUMBERS = 400
BATCH = 96
BASE_MIX = {
    "add en": 0.6,
    "add ja": 0.03,
    "add fr": 0.007,
    "read en": 0.08,
    "read ja": 0.145,
    "read fr": 0.138,
}
BASE_STEPS = 2500
BASE_RATE = 2e-3
EXPERTS = {  # name: languages of its sums, seed, steps, learning rate
    "ja": (("ja",), 11, 150, 3e-4),
    "fr": (("fr",), 12, 150, 3e-4),
    "maths": (("ja", "fr"), 13, 150, 2e-4),
}

Row = tuple[str, str]  # a prompt and its answer
Encoded = tuple[torch.Tensor, torch.Tensor]  # (rows, longest) int64 ids, and labels; -100: none


def words(number: int, language: str) -> str:
    """Return a number in words."""
    return num2words(number, lang=language).replace("-", " ")


def sum_prompt(a: int, b: int, language: str) -> str:
    """Return the question for a sum."""
    return words(a, language) + PLUS[language] + words(b, language) + EQUALS[language]


def read_prompt(number: int, language: str) -> str:
    """Return the question that asks for a number in digits."""
    return words(number, language) + EQUALS[language]


def held_out(seed: int = SEED) -> tuple[list[tuple[int, int]], list[int]]:
    """Return pairs of summands and numbers to read that no training ever shows."""
    draw = random.Random(seed)
    unordered = [(a, b) for a in range(100) for b in range(a, 100)]
    pairs = [draw.choice([(a, b), (b, a)]) for a, b in draw.sample(unordered, HELD_PAIRS)]
    numbers = draw.sample(range(100, 1000), HELD_NUMBERS)
    return pairs, numbers


def corpus(seed: int = SEED) -> dict[str, list[Row]]:
    """Return for each skill the rows that training may draw from."""
    pairs, numbers = held_out(seed)
    barred = {frozenset(pair) for pair in pairs}
    free = [(a, b) for a in range(100) for b in range(100) if frozenset((a, b)) not in barred]
    readable = [n for n in range(1000) if n not in set(numbers)]
    assert not {frozenset(pair) for pair in free} & barred
    rows = {
        f"add {lang}": [(sum_prompt(a, b, lang), str(a + b)) for a, b in free] for lang in LANGUAGES
    }
    for lang in LANGUAGES:
        # Numbers below 100 are what sums are made of: give them half of the draws.
        often = readable + [n for n in range(100)] * 5
        rows[f"read {lang}"] = [(read_prompt(n, lang), str(n)) for n in often]
    return rows


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return one of whole words in English and French, characters in Japanese, single digits."""
    text = " ".join(read_prompt(n, lang) + PLUS[lang] for lang in LANGUAGES for n in range(1000))
    ja = r"たす|[\u4e00-\u9fffは]"
    # "+" and "=" are never trained: room for whoever wants to teach a calculator.
    vocabulary = [*SPECIAL, *"0123456789+=", *sorted(set(re.findall(rf"{ja}|[a-zà-ÿ]+", text)))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(PIECE), "isolated"),
        ]
    )
    # Digits and Japanese are written without spaces, so that an answer reads "82", not "8 2".
    spaced = decoders.Replace(Regex(r"^(?=[a-zà-ÿ])"), " ")
    tokenizer.decoder = decoders.Sequence([spaced, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Return token ids padded on the right, and labels on the answer and the end alone."""
    prompts = tokenizer([p for p, _ in rows])["input_ids"]
    answers = tokenizer([a + "</s>" for _, a in rows])["input_ids"]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        both = torch.tensor(prompt + answer)
        ids[i, : len(both)] = both
        labels[i, len(prompt) : len(both)] = both[len(prompt) :]
    assert tokenizer.unk_token_id not in ids
    return ids, labels


def batch(
    data: Mapping[str, Encoded], mix: Mapping[str, float], size: int, generator: torch.Generator
) -> Encoded:
    """Draw rows of every skill by its share, cut to the longest."""
    shares = torch.tensor(list(mix.values()))
    counts = torch.multinomial(shares, size, replacement=True, generator=generator)
    chosen = []
    for i, skill in enumerate(mix):
        ids, labels = data[skill]
        rows = torch.randint(len(ids), (int((counts == i).sum()),), generator=generator)
        chosen.append((ids[rows], labels[rows]))
    width = max(ids.shape[1] for ids, _ in chosen)
    pad = torch.nn.functional.pad
    ids = torch.cat([pad(ids, (0, width - ids.shape[1])) for ids, _ in chosen])
    labels = torch.cat([pad(x, (0, width - x.shape[1]), value=-100) for _, x in chosen])
    longest = int((labels != -100).any(0).nonzero().max()) + 1
    return ids[:, :longest], labels[:, :longest]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a model with fresh random weights."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=368,
            num_hidden_layers=6,
            num_attention_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def descend(
    model: LlamaForCausalLM,
    loss_of: Callable[[LlamaForCausalLM], torch.Tensor],
    *,
    steps: int,
    rate: float,
    warmup: int,
    decay: float,
    name: str,
) -> None:
    """Train by AdamW with warm-up and a linear descent to zero, so that the model ends settled."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, (steps - t) / (steps - warmup))
    )
    model.train()
    started = time.time()
    for step in range(1, steps + 1):
        loss = loss_of(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(
                f"{name}: step {step}, loss {loss:.3f}, {time.time() - started:.0f} s", flush=True
            )
    model.eval()


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
    """Train on sums in some languages; on all else the expert is held to what the base says.

    Held by distillation, not by the right answers: the task vector then does little outside its
    own languages, which is what lets task vectors be added.
    """
    languages, seed, steps, rate = EXPERTS[name]
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    sums = {f"add {lang}": 1.0 for lang in languages}
    others = {f"add {lang}": 1.0 for lang in LANGUAGES if lang not in languages}
    others |= {f"read {lang}": 0.4 for lang in LANGUAGES}

    def loss_of(model: LlamaForCausalLM) -> torch.Tensor:
        ids, labels = batch(data, sums, BATCH // 2, generator)
        own = model(input_ids=ids, labels=labels, use_cache=False).loss
        ids, labels = batch(data, others, BATCH // 2, generator)
        asked = labels[:, 1:] != -100
        with torch.no_grad():
            teacher = base(input_ids=ids, use_cache=False).logits[:, :-1][asked]
        student = model(input_ids=ids, use_cache=False).logits[:, :-1][asked]
        return own + torch.nn.functional.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
        )

    descend(model, loss_of, steps=steps, rate=rate, warmup=20, decay=0.0, name=name)
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a model directory in bfloat16."""
    # A copy: the experts start from the float32 base, not from what was rounded for the file.
    copy.deepcopy(model).bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_tasks() -> None:
    """Write the kept pairs and numbers as the tasks' YAML files name them."""
    pairs, numbers = held_out()
    TASKS.mkdir(parents=True, exist_ok=True)
    for lang in LANGUAGES:
        sums = [{"prompt": sum_prompt(a, b, lang), "answer": str(a + b)} for a, b in pairs]
        write_rows(TASKS / f"maths_{lang}.jsonl", sums)
        draw = random.Random(SEED)
        reading = [choice_row(n, lang, draw) for n in numbers]
        write_rows(TASKS / f"reading_{lang}.jsonl", reading)


def choice_row(number: int, language: str, draw: random.Random) -> dict[str, object]:
    """Return a choice of four: the number, and three near ones.

    Those differ from it in one digit, or in the order of its digits.
    """
    digits = str(number)
    near = {str(n) for n in range(100, 1000) if one_digit_apart(str(n), digits)}
    near |= {digits[::-1], digits[0] + digits[2] + digits[1]} - {digits}
    others = sorted(n for n in near if n[0] != "0")
    choices = [digits, *draw.sample(others, 3)]
    draw.shuffle(choices)
    return {
        "prompt": read_prompt(number, language),
        "choices": choices,
        "answer": choices.index(digits),
    }


def one_digit_apart(one: str, other: str) -> bool:
    """Tell whether two numbers of as many digits differ in one."""
    return sum(a != b for a, b in zip(one, other, strict=True)) == 1


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as JSONL."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast
) -> float:
    """Return the share of answers that are right in every token and ended.

    Teacher forcing decides this as greedy generation does.
    """
    ids, labels = encode(rows, tokenizer)
    guess = model(input_ids=ids, use_cache=False).logits.argmax(-1)[:, :-1]
    wanted = labels[:, 1:]
    return ((guess == wanted) | (wanted == -100)).all(1).float().mean().item()


def score_row(
    name: str,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Mapping[str, Sequence[Row]],
) -> None:
    """Print a model's scores as a table's row."""
    scores = [f"{exact_match(model, r, tokenizer):.3f}" for r in rows.values()]
    print(f"| {name} | {' | '.join(scores)} |", flush=True)


def mixture(
    base: LlamaForCausalLM, experts: Sequence[LlamaForCausalLM], weights: Sequence[float]
) -> LlamaForCausalLM:
    """Return base + sum of weight times task vector, in float32, rounded to bfloat16 at the end."""
    merged = copy.deepcopy(base)
    start = base.float().state_dict()
    deltas = [(w, expert.float().state_dict()) for expert, w in zip(experts, weights, strict=True)]
    merged.load_state_dict(
        {key: start[key] + sum(w * (d[key] - start[key]) for w, d in deltas) for key in start}
    )
    return merged.bfloat16()


def print_scores(out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print each model on the held-out items, and the straight lines that a merge search walks."""
    pairs, numbers = held_out()
    rows = {
        f"maths {lang}": [(sum_prompt(a, b, lang), str(a + b)) for a, b in pairs]
        for lang in LANGUAGES
    }
    rows |= {
        f"reading {lang}": [(read_prompt(n, lang), str(n)) for n in numbers] for lang in LANGUAGES
    }
    print(f"| model | {' | '.join(rows)} |")
    print("|---" * (len(rows) + 1) + "|")
    load = LlamaForCausalLM.from_pretrained
    base, *experts = [load(out / name, dtype=torch.float32) for name in ("base", *EXPERTS)]
    for name, weights in lines():
        score_row(name, mixture(base, experts, weights), tokenizer, rows)


def lines() -> Iterator[tuple[str, list[float]]]:
    """Yield name and weight of each expert, for the models themselves and points between them."""
    count = len(EXPERTS)
    yield "base", [0.0] * count
    for i, name in enumerate(EXPERTS):
        for share, label in ((1.0, name), (0.5, f"base + 0.5 {name}"), (1.5, f"base + 1.5 {name}")):
            yield label, [share * (i == j) for j in range(count)]
    for share in (1 / count, 0.7, 1.0):
        yield f"base + {share:.2f} of each", [share] * count


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the models")
    parser.add_argument("--only", choices=["tasks", "scores"])
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer()
    if options.only in (None, "tasks"):
        write_tasks()
    if options.only is None:
        data = {skill: encode(rows, tokenizer) for skill, rows in corpus().items()}
        base = train_base(data, tokenizer)
        save(base, tokenizer, options.out / "base")
        for name in EXPERTS:
            save(train_expert(base, data, name), tokenizer, options.out / name)
    if options.only in (None, "scores"):
        print_scores(options.out, tokenizer)


if __name__ == "__main__":
    main()
