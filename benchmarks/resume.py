"""How long the ledger takes: appending, looking, and resuming, at given numbers of candidates.

    python benchmarks/resume.py --candidates 1000 10000 100000 --items 500

Outcomes are synthetic; proposals, archive, controller and replay are the real code.
"""

import argparse
import os
import tempfile
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tabulate import tabulate

from evomerge.archive import summary
from evomerge.archive.archive import Archive
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.runner import Runner
from evomerge.config.validate import check_plan
from evomerge.scoring.items import Split
from evomerge.scoring.outcome import Outcome
from evomerge.search.objectives import Objective
from evomerge.search.spaces import SPACES, Sources
from evomerge.workers.protocol import Finished, WorkerPlan


class SyntheticPool:
    """Scores a recipe at once: items solved with a probability that its weights decide."""

    def __init__(self, items: int):
        self._items, self._jobs = items, deque()
        self._rng = np.random.default_rng(0)

    idle = property(lambda self: 1 - len(self._jobs))
    busy = property(lambda self: len(self._jobs))

    def submit(self, job) -> None:
        self._jobs.append(job)

    def next_finished(self, timeout=None) -> Finished | None:
        if not self._jobs:
            return None
        job = self._jobs.popleft()
        weights = [w for g in job.recipe["groups"] for w in g["weight"]]
        skill = float(np.clip(1 - np.std(weights), 0.05, 0.95))
        rng = self._rng
        scores = {n: (rng.random(self._items // 2) < skill).astype(np.float32) for n in "xy"}
        return Finished(job, Outcome("ok", "", scores, 0.01, 0.1, "0" * 32, "synthetic"))


def make_campaign(candidates: int, items: int, **options) -> Campaign:
    axes = {"weight": {"low": 0.0, "high": 1.5}}
    models = {"a": "a", "b": "b", "c": "c"}
    plan = check_plan(
        {
            "name": "resume",
            "sources": {"base": "base", "models": models},
            "space": {
                "kind": "parameters",
                "method": "task_arithmetic",
                "layer_groups": 7,
                "axes": axes,
            },
            "controller": {"kind": "cmaes", **options},
            "fitness": [{"name": n, "function": "synthetic"} for n in "xy"],
            "budget": {"evaluations": candidates},
        },
        "benchmark",
    )
    shape = Sources("base", tuple(models), tuple(models), 24, "bfloat16", 0)
    split = Split(tuple(range(items // 2)), ())
    names = {n: n for n in ("base", "a", "b", "c")}
    worker = WorkerPlan(
        sources=names, hashes=names, frame="base", dtype="bfloat16", compute_dtype="bfloat16",
        fitness={}, splits={}, first={}, threads=1,
    )  # fmt: skip
    fitness = SimpleNamespace(hashes=[f"{i:016x}" for i in range(items)], definition="")
    return Campaign(
        plan=plan,
        space=SPACES.get("parameters")(plan["space"], shape),
        objectives=(Objective("x"), Objective("y")),
        splits={"x": split, "y": split},
        sources={},
        fitness={"x": fitness, "y": fitness},
        worker=worker,
        labels={"base": "base", "a": "a", "b": "b", "c": "c"},
    )


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(candidates: int, items: int) -> dict:
    campaign = make_campaign(candidates, items)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.db"
        archive = Archive(path, write=True)
        archive.begin("resume", campaign.plan, campaign.provenance(), campaign.items())
        runner = Runner(campaign, archive, SyntheticPool(items))
        append = timed(runner.run)
        archive.close()
        size = path.stat().st_size
        again = Archive(path, write=True)
        resume = timed(Runner(campaign, again, SyntheticPool(items)).run)
        return {
            "candidates": candidates,
            "ask, archive, tell (ms each)": f"{1000 * append / candidates:.2f}",
            "resume (s)": f"{resume:.2f}",
            "status (s)": f"{timed(lambda: summary.status(folder)):.3f}",
            "front (s)": f"{timed(lambda: summary.front(folder)):.3f}",
            "on it": len(again.front()),
            "MB": f"{size / 1e6:.1f}",
            "bytes each": size // candidates,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, nargs="+", default=[2000])
    parser.add_argument("--items", type=int, default=500, help="of both objectives together")
    options = parser.parse_args()
    dimension = make_campaign(1, 2).space.dimension
    print(f"{os.cpu_count()} cores; cmaes, {dimension} genes, {options.items} items a candidate")
    rows = [measure(n, options.items) for n in options.candidates]
    print(tabulate(rows, headers="keys", disable_numparse=True))


if __name__ == "__main__":
    main()
