"""Scores of a candidate in evomerge's worker against lm-eval's own command line, item by item.

    python benchmarks/smollm2/against_lm_eval.py runs/smollm2 --items 40

Exports the best candidate, asks `lm_eval run` for the first items of each task with the exported
directory, in float32 and at the same batch size, and compares with what a worker makes of the
recipe. All request types, with and without chat template, few-shot and generation arguments.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from evomerge.archive.archive import Archive
from evomerge.campaign.build import prepare
from evomerge.campaign.source_hashes import hash_sources
from evomerge.config import validate
from evomerge.export.candidates import export_candidate
from evomerge.recipes.parse import from_json
from evomerge.scoring.items import Split
from evomerge.workers.protocol import Job
from evomerge.workers.worker import Worker

HERE = Path(__file__).resolve().parent
BATCH = 20
CASES = {  # name: (task, metric, our entry, their words)
    "generate": ("dates", "exact_match", {}, []),
    "generate, 2-shot": ("dates", "exact_match", {"fewshot": 2}, ["--num_fewshot", "2"]),
    "generate, chat, 2-shot": (
        "dates",
        "exact_match",
        {"fewshot": 2, "chat_template": True, "system": "You write dates."},
        ["--num_fewshot", "2", "--apply_chat_template", "--system_instruction", "You write dates."],
    ),
    "generate, stop at 1": (
        "dates",
        "exact_match",
        {"generation": {"until": ["1"], "max_gen_toks": 5}},
        ["--gen_kwargs", '{"until": ["1"], "max_gen_toks": 5}'],
    ),
    "choose": ("tickets", "acc", {}, []),
    "choose, chat": ("tickets", "acc", {"chat_template": True}, ["--apply_chat_template"]),
    "rolling": ("prose", "bits_per_byte", {}, []),
}


def theirs(model: Path, task: str, metric: str, words: list[str], items: int) -> list[float]:
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", "lm_eval", "run", "--model", "hf",
            "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu",
            "--tasks", task, "--include_path", str(HERE), "--batch_size", str(BATCH),
            "--limit", str(items), "--log_samples", "--output_path", out, *words,
        ]  # fmt: skip
        environment = os.environ | {"LMEVAL_LOG_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        (file,) = Path(out).rglob("samples_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
    values = [s[metric] for s in sorted(samples, key=lambda s: s["doc_id"])]
    # lm-eval logs nats and bytes of a document; their quotient is its bits per byte
    return [-v[0] / (v[1] * math.log(2)) if isinstance(v, list) else float(v) for v in values]


def ours(run: Path, items: int) -> dict[str, list[float]]:
    file = run / "campaign.yaml"
    campaign = hash_sources(prepare(validate.load(file), str(file)), str(file))
    entries, splits = {}, {}
    for name, (task, metric, entry, _) in CASES.items():
        path = str(HERE / f"{task}.yaml")
        entries[name] = {"name": name, "task": path, "metric": metric, "batch_size": BATCH} | entry
        splits[name] = Split(tuple(range(items)), ())
    plan = replace(campaign.worker, fitness=entries, splits=splits, compute_dtype="float32")
    worker = Worker(replace(plan, threads=os.cpu_count()))
    with closing(Archive(run / "archive.db")) as archive:
        (best,) = archive.candidates("id = ?", (archive.best(),))
    outcome = worker.evaluate(Job(best.id, from_json(best.recipe).to_json(), "search"))
    assert outcome.status == "ok", outcome.reason
    return {name: scores.tolist() for name, scores in outcome.scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=40)
    options = parser.parse_args()
    found = ours(options.run, options.items)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        export_candidate(options.run, model, "best")
        for name, (task, metric, _, words) in CASES.items():
            wanted = theirs(model, task, metric, words, options.items)
            far = max(abs(a - b) for a, b in zip(found[name], wanted, strict=True))
            same = sum(
                abs(a - b) <= 1e-6 * abs(b) for a, b in zip(found[name], wanted, strict=True)
            )
            mean = sum(wanted) / len(wanted)
            rows.append([name, task, f"{mean:.4f}", f"{same} of {len(wanted)}", f"{far:.1e}"])
    print(tabulate(rows, headers=["case", "task", "lm-eval's mean", "equal items", "largest gap"]))


if __name__ == "__main__":
    main()
