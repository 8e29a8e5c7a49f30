"""Scores of a candidate in evomerge's worker against lm-eval's own command line, item by item.

    python benchmarks/smollm2/against_lm_eval.py runs/smollm2 --items 40

Exports the best candidate, asks `lm_eval run` for the first items of each task with the exported
directory, in float32 and at the same batch size, and compares with what a worker makes of the
recipe. All request types, with and without chat template, few-shot and generation arguments.

Prints a row a case: lm-eval's mean, how many items have equal scores, and the largest gap.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import common  # noqa: E402

from evomerge.archive.selection import pick  # noqa: E402
from evomerge.archive.summary import open_run  # noqa: E402
from evomerge.campaign.build import open_campaign  # noqa: E402
from evomerge.campaign.source_hashes import hash_sources  # noqa: E402
from evomerge.config.validate import read_plan  # noqa: E402
from evomerge.export.candidates import export_candidate  # noqa: E402
from evomerge.scoring.fitness import TaskSection  # noqa: E402
from evomerge.scoring.items import Split  # noqa: E402
from evomerge.workers.protocol import Job  # noqa: E402
from evomerge.workers.worker import Worker  # noqa: E402

BATCH = 20


class Case(NamedTuple):
    """One way to score a task."""

    task: str
    metric: str
    entry: Mapping[str, Any] = {}  # of a campaign's fitness
    words: tuple[str, ...] = ()  # of lm-eval's command line, for the same


SYSTEM = "You write dates."
CASES = {
    "generate": Case("dates", "exact_match"),
    "generate, 2-shot": Case("dates", "exact_match", {"fewshot": 2}, ("--num_fewshot", "2")),
    "generate, chat, 2-shot": Case(
        "dates",
        "exact_match",
        {"fewshot": 2, "chat_template": True, "system": SYSTEM},
        ("--num_fewshot", "2", "--apply_chat_template", "--system_instruction", SYSTEM),
    ),
    "generate, stop at 1": Case(
        "dates",
        "exact_match",
        {"generation": {"until": ["1"], "max_gen_toks": 5}},
        ("--gen_kwargs", '{"until": ["1"], "max_gen_toks": 5}'),
    ),
    "choose": Case("tickets", "acc"),
    "choose, chat": Case("tickets", "acc", {"chat_template": True}, ("--apply_chat_template",)),
    "rolling": Case("prose", "bits_per_byte"),
}
PLAIN = [name for name, case in CASES.items() if not case.words]  # one command scores them all


def by_lm_eval(model: Path, names: Iterable[str], items: int) -> dict[str, list[float]]:
    """Return the scores of cases that lm-eval's command line scores with the same words.

    Args:
        model: a model directory.
        names: of CASES.
        items: the first so many of each task.
    """
    cases = {name: CASES[name] for name in names}
    words = next(iter(cases.values())).words
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", "lm_eval", "run", "--model", "hf",
            "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu",
            "--tasks", ",".join(case.task for case in cases.values()),
            "--include_path", str(HERE), "--batch_size", str(BATCH),
            "--limit", str(items), "--log_samples", "--output_path", out, *words,
        ]  # fmt: skip
        environment = os.environ | {"LMEVAL_LOG_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        scores = {}
        for name, case in cases.items():
            file = next(Path(out).rglob(f"samples_{case.task}_*.jsonl"))
            samples = [json.loads(line) for line in file.read_text().splitlines()]
            samples.sort(key=lambda sample: sample["doc_id"])
            scores[name] = [score_of(sample[case.metric]) for sample in samples]
        return scores


def score_of(logged: float | list[float]) -> float:
    """Return an item's score: of bits per byte, lm-eval logs a document's nats and bytes."""
    if isinstance(logged, list):
        nats, size = logged
        return -nats / (size * math.log(2))
    return float(logged)


def by_worker(run: Path, names: Iterable[str], items: int, threads: int) -> dict[str, list[float]]:
    """Return the scores that a worker gives the best candidate of a run in these cases."""
    campaign = hash_sources(open_campaign(read_plan(run / "campaign.yaml")))
    entries = {
        name: TaskSection(
            name=name,
            task=str(HERE / f"{case.task}.yaml"),
            metric=case.metric,
            batch_size=BATCH,
            **case.entry,
        )
        for name, case in CASES.items()
        if name in names
    }
    splits = dict.fromkeys(entries, Split(tuple(range(items)), ()))
    plan = replace(campaign.worker, fitness=entries, splits=splits, compute_dtype="float32")
    worker = Worker(replace(plan, threads=threads))
    archive = open_run(run)
    best = archive.candidate(pick(archive, "best"))
    outcome = worker.evaluate(Job(best.id, best.recipe, "search"))
    if outcome.status != "ok":
        raise SystemExit(f"candidate {best.id} could not be scored: {outcome.reason}")
    return {name: scores.tolist() for name, scores in outcome.scores.items()}


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=40, help="of each task")
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = common.parsed(parser, items=4, cases=PLAIN, threads=1)
    with common.errors_as_lines(options.run):
        ours = by_worker(options.run, options.cases, options.items, options.threads)
    alike: dict[tuple[str, ...], list[str]] = {}  # lm-eval's words -> cases
    for name in options.cases:
        alike.setdefault(CASES[name].words, []).append(name)
    theirs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        export_candidate(options.run, model, "best")
        for names in alike.values():
            theirs |= by_lm_eval(model, names, options.items)
    rows = []
    for name in options.cases:
        pairs = list(zip(ours[name], theirs[name], strict=True))
        same = sum(abs(a - b) <= 1e-6 * abs(b) for a, b in pairs)
        mean = sum(b for _, b in pairs) / len(pairs)
        gap = max(abs(a - b) for a, b in pairs)
        task = CASES[name].task
        rows.append([name, task, f"{mean:.4f}", f"{same} of {len(pairs)}", f"{gap:.1e}"])
    headers = ["case", "task", "lm-eval's mean", "equal items", "largest gap"]
    print(common.table(headers, rows))


if __name__ == "__main__":
    main()
