"""How much of their time simulated workers score, when scoring times vary.

    python benchmarks/utilisation.py --workers 8 64

The campaign's loop, archive and controller are the real ones; time is simulated, so that a pool of
any size takes seconds. Times are log-normal. `barrier` hands a new generation out only when the
last one is whole, population = workers; `steady` is what evomerge does. Baselines are left out.
"""

import argparse
import heapq
import os
import tempfile
from pathlib import Path

import numpy as np
from resume import make_campaign
from tabulate import tabulate

from evomerge.archive.archive import Archive
from evomerge.campaign.runner import Runner
from evomerge.scoring.outcome import Outcome
from evomerge.workers.protocol import Finished

ITEMS = 20


class SimulatedPool:
    """Workers whose clock is the next job's end."""

    def __init__(self, workers: int, sigma: float, barrier: bool):
        self._workers, self._sigma, self._barrier = workers, sigma, barrier
        self._rng = np.random.default_rng(0)
        self._jobs: list[tuple[float, int, object]] = []
        self.now = self.worked = self.began = 0.0
        self._submitted = 0

    @property
    def idle(self) -> int:
        return 0 if self._barrier and self._jobs else self._workers - len(self._jobs)

    @property
    def busy(self) -> int:
        return len(self._jobs)

    def submit(self, job) -> None:
        if self._submitted == 5:  # the baselines are scored
            self.began, self.worked = self.now, 0.0
        seconds = float(self._rng.lognormal(0.0, self._sigma))
        self.worked += seconds
        heapq.heappush(self._jobs, (self.now + seconds, self._submitted, job))
        self._submitted += 1

    def next_finished(self, timeout=None) -> Finished:
        self.now, _, job = heapq.heappop(self._jobs)
        scores = {n: self._rng.random(ITEMS // 2).astype(np.float32) for n in "xy"}
        return Finished(job, Outcome("ok", "", scores, 0.0, 0.0, "", "simulated"))

    @property
    def share(self) -> float:
        return self.worked / (self._workers * (self.now - self.began))


def share(workers: int, sigma: float, barrier: bool, generations: int) -> float:
    campaign = make_campaign(workers * generations, ITEMS, population=max(workers, 3))
    campaign.plan["finals"] = 0
    pool = SimulatedPool(workers, sigma, barrier)
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder) / "archive.db", write=True)
        archive.begin("x", campaign.plan, campaign.provenance(), campaign.items())
        Runner(campaign, archive, pool).run()
    return pool.share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.3, 0.6])
    parser.add_argument("--generations", type=int, default=60)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {options.generations} x workers candidates, the end included")
    rows = [
        [w, s, *(f"{share(w, s, barrier, options.generations):.3f}" for barrier in (False, True))]
        for w in options.workers
        for s in options.sigma
    ]
    print(tabulate(rows, headers=["workers", "sigma", "steady", "barrier"]))


if __name__ == "__main__":
    main()
