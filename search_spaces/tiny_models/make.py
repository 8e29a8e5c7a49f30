"""Train the embedded tiny models and write the tasks on which they are scored.

A base that reads three languages and half adds, and experts fine-tuned from it. One seed fixes
the data, and with the same number of threads on the same kind of machine the weights as well.

    python search_spaces/tiny_models/make.py                 # everything
    python search_spaces/tiny_models/make.py --only tasks    # only fitness/crosslingual/*.jsonl
"""

import argparse
import json
import random
import re
import time
from pathlib import Path

import torch
from num2words import num2words
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
TASKS = HERE.parents[1] / "fitness" / "crosslingual"

SEED = 7
LANGUAGES = ("en", "ja", "fr")
PLUS = {"en": " plus ", "ja": "たす", "fr": " plus ", "digits": "+"}
EQUALS = {"en": " is", "ja": "は", "fr": " font", "digits": "="}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PIECE = r"たす|[\p{Han}は]|[0-9+=]"  # cut off even where no space stands beside it
HELD_PAIRS = 1000
HELD_NUMBERS = 400
BATCH = 192


def words(number, language):
    """The number as that language says it; plain digits for the language "digits"."""
    if language == "digits":
        return str(number)
    return num2words(number, lang=language).replace("-", " ")


def sum_prompt(a, b, language):
    return words(a, language) + PLUS[language] + words(b, language) + EQUALS[language]


def read_prompt(number, language):
    return words(number, language) + EQUALS[language]


def held_out(seed=SEED):
    """Pairs of summands and numbers to read that no training ever shows."""
    draw = random.Random(seed)
    unordered = [(a, b) for a in range(100) for b in range(a, 100)]
    pairs = [draw.choice([(a, b), (b, a)]) for a, b in draw.sample(unordered, HELD_PAIRS)]
    numbers = draw.sample(range(100, 1000), HELD_NUMBERS)
    return pairs, numbers


def corpus(seed=SEED):
    """For each skill the (prompt, answer) rows that training may draw from."""
    pairs, numbers = held_out(seed)
    barred = {frozenset(pair) for pair in pairs}
    free = [(a, b) for a in range(100) for b in range(100) if frozenset((a, b)) not in barred]
    readable = [n for n in range(1000) if n not in set(numbers)]
    assert not {frozenset(pair) for pair in free} & barred
    rows = {
        f"add {lang}": [(sum_prompt(a, b, lang), str(a + b)) for a, b in free]
        for lang in (*LANGUAGES, "digits")
    }
    for lang in LANGUAGES:
        # Numbers below 100 are what sums are made of: give them half of the draws.
        often = readable + [n for n in range(100)] * 5
        rows[f"read {lang}"] = [(read_prompt(n, lang), str(n)) for n in often]
    return rows


def build_tokenizer():
    """Whole words for English and French, characters for Japanese, single digits."""
    text = " ".join(read_prompt(n, lang) + PLUS[lang] for lang in LANGUAGES for n in range(1000))
    ja = r"たす|[\u4e00-\u9fffは]"
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


def encode(rows, tokenizer):
    """Token ids padded on the right, and labels on the answer and the end alone."""
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


def batch(data, mix, generator):
    """BATCH rows, each skill by its share, cut to the longest."""
    shares = torch.tensor(list(mix.values()))
    counts = torch.multinomial(shares, BATCH, replacement=True, generator=generator)
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


def train(model, data, mix, *, steps, rate, seed, warmup=30, name=""):
    """AdamW with warm-up and a linear descent to zero, so that the model ends settled."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, (steps - t) / (steps - warmup))
    )
    model.train()
    started = time.time()
    for step in range(steps):
        ids, labels = batch(data, mix, generator)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0:
            seconds = time.time() - started
            print(f"{name} step {step + 1} loss {loss:.3f} {seconds:.0f} s", flush=True)
    return model
