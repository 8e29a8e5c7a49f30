"""Where a candidate's time goes: merging, forward passes, the rest of scoring, the ledger.

    python benchmarks/overhead.py search_spaces/crosslingual-maths.yaml --candidates 20

Runs real candidates of a campaign in this process (inline pool), with a clock around the
model's forward and around every write of the archive. Prints seconds per candidate and shares.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate

from evomerge.archive.archive import Archive
from evomerge.campaign.build import prepare
from evomerge.campaign.runner import Runner
from evomerge.campaign.source_hashes import hash_sources
from evomerge.config import validate
from evomerge.workers import pool


class Clock:
    """Adds up the seconds spent in the functions it wraps."""

    def __init__(self):
        self.seconds, self._depth = 0.0, 0

    def wrap(self, function):
        def timed(*arguments, **options):
            self._depth += 1
            started = time.perf_counter()
            try:
                found = function(*arguments, **options)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                return found
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - started

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    settings = [
        f"budget={{evaluations: {options.candidates}}}",
        f"workers={{pool: inline, threads: {options.threads}}}",
        "heldout=0.5",
    ]
    file = str(options.file)
    campaign = hash_sources(prepare(validate.load(file, settings), file), file)
    started = time.perf_counter()
    inline = pool.InlinePool(campaign.worker)
    warm = time.perf_counter() - started
    forward, ledger, evaluate, ask = Clock(), Clock(), Clock(), Clock()
    model = inline._worker._resident.model
    model.forward = forward.wrap(model.forward)
    inline._worker.evaluate = evaluate.wrap(inline._worker.evaluate)
    for name in ("propose", "record", "record_copy", "set_seconds"):
        setattr(Archive, name, ledger.wrap(getattr(Archive, name)))
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder) / "archive.db", write=True)
        archive.begin("overhead", campaign.plan, campaign.provenance(), campaign.items())
        runner = Runner(campaign, archive, inline)
        runner._score_finals = lambda: None  # the search alone is measured
        made = campaign.controller
        campaign.controller = lambda start: _timed_controller(made(start), ask)
        started = time.perf_counter()
        runner.run()
        wall = time.perf_counter() - started
        scored = archive.counts()["ok"]
        merge, score = archive.work_seconds()["merge"], archive.work_seconds()["score"]
    parts = {
        "forward passes": forward.seconds,
        "rest of scoring (batches, stop strings, metrics)": score - forward.seconds,
        "materialize": merge,
        "ledger": ledger.seconds,
        "controller": ask.seconds,
        "everything else": wall - evaluate.seconds - ledger.seconds - ask.seconds,
    }
    print(
        f"{scored} candidates, {options.threads} threads; requests built and warm in {warm:.1f} s"
    )
    body = [[k, 1000 * s / scored, f"{100 * s / wall:.1f} %"] for k, s in parts.items()]
    body.append(["whole", 1000 * wall / scored, ""])
    print(tabulate(body, headers=["", "ms per candidate", "share"], floatfmt=".2f"))


def _timed_controller(controller, clock):
    controller.ask, controller.tell = clock.wrap(controller.ask), clock.wrap(controller.tell)
    return controller


if __name__ == "__main__":
    main()
