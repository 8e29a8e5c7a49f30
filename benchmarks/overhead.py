"""Where a candidate's time goes: merging, forward passes, the rest of scoring, the ledger.

    python benchmarks/overhead.py search_spaces/crosslingual-maths.yaml --candidates 20

Runs real candidates of a campaign in this process (inline pool), with a clock around the
model's forward and around every write of the archive.

Prints milliseconds of a candidate and shares.
"""

import functools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import common
import numpy as np
import torch

from evomerge.archive.archive import Archive
from evomerge.campaign.build import open_campaign
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.observer import Silent
from evomerge.campaign.runner import Runner
from evomerge.campaign.source_hashes import hash_sources
from evomerge.config.validate import read_plan
from evomerge.search.controllers import Controller
from evomerge.workers.pool import InlinePool

P = ParamSpec("P")
T = TypeVar("T")

WRITES = ("propose", "record", "record_copy", "set_seconds")  # the archive's, in a search


class Clock:
    """Adds up the seconds spent in the functions it wraps."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def time(self, owner: object, *names: str) -> None:
        """Put a clock around methods of an object."""
        for name in names:
            setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return the function, timed; what it calls that is timed as well counts once."""

        @functools.wraps(function)
        def timed(*arguments: P.args, **options: P.kwargs) -> T:
            self._depth += 1
            started = time.perf_counter()
            try:
                result = function(*arguments, **options)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                return result
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - started

        return timed


@dataclass(frozen=True)
class TimedCampaign(Campaign):
    """A campaign with a clock around its controllers."""

    clock: Clock = field(default_factory=Clock)

    def controller(self, start: np.ndarray) -> Controller:
        """Return the controller, timed."""
        controller = super().controller(start)
        self.clock.time(controller, "ask", "tell")
        return controller


class SearchAlone(Runner):
    """Drives a campaign to the end of its search; nothing is scored on held-out items."""

    def _score_finals(self) -> None:
        pass


def measure(file: Path, candidates: int, threads: int, settings: Sequence[str]) -> str:
    """Run so many candidates of a campaign; return the table of where their time went."""
    settings = [
        f"budget={{evaluations: {candidates}}}",
        f"workers={{pool: inline, threads: {threads}}}",
        "heldout=0.5",
        *settings,
    ]
    campaign = hash_sources(open_campaign(read_plan(file, settings)))
    started = time.perf_counter()
    pool = InlinePool(campaign.worker)
    warm = time.perf_counter() - started
    forward, ledger, evaluate, ask = Clock(), Clock(), Clock(), Clock()
    worker = pool._worker
    forward.time(worker._engine.model, "forward")
    evaluate.time(worker, "evaluate")
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder) / "archive.db", write=True)
        plan = campaign.plan.model_dump(mode="json")
        archive.begin("overhead", plan, campaign.provenance(), campaign.items())
        ledger.time(archive, *WRITES)
        timed = TimedCampaign(**vars(campaign), clock=ask)
        timed.controller(np.full(campaign.space.dimension, 0.5))  # imports its library
        runner = SearchAlone(timed, archive, pool, Silent())
        started = time.perf_counter()
        runner.run()
        wall = time.perf_counter() - started
        scored, seconds = archive.counts()["ok"], archive.work_seconds()
    parts = {
        "forward passes": forward.seconds,
        "rest of scoring (batches, stop strings, metrics)": seconds["score"] - forward.seconds,
        "materialize": seconds["merge"],
        "ledger": ledger.seconds,
        "controller": ask.seconds,
        "everything else": wall - evaluate.seconds - ledger.seconds - ask.seconds,
    }
    body = [[k, 1000 * s / scored, f"{100 * s / wall:.1f} %"] for k, s in parts.items()]
    body.append(["whole", 1000 * wall / scored, ""])
    table = common.table(["", "ms per candidate", "share"], body, ("", ".2f", ""))
    started_in = f"requests built and warm in {warm:.1f} s"
    return f"{scored} candidates, {threads} threads; {started_in}\n{table}"


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = common.parsed(parser, candidates=2, threads=1)
    settings = common.fewer_items(options.file, 20) if options.short else []
    print(measure(options.file, options.candidates, options.threads, settings))


if __name__ == "__main__":
    main()
