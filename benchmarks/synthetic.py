"""Campaigns whose outcomes are made up: sources, plan, archive and loop are the real ones."""

import contextlib
import heapq
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.campaign.build import open_campaign
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.observer import Silent
from evomerge.campaign.resume import begin
from evomerge.campaign.runner import Runner
from evomerge.campaign.source_hashes import hash_sources
from evomerge.config.validate import checked_plan
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.scoring.outcome import Outcome
from evomerge.testing import tiny_llama
from evomerge.workers.protocol import Finished, Job, WorkerState

SOURCES = ("base", "a", "b", "c")
BASELINES = len(SOURCES) + 1  # each source, and their average
OBJECTIVES = ("x", "y")
GROUPS = 7  # of layers; with what is outside them and three models, 24 genes
FITNESS = """
def items():
    return list(range({items}))


def score(model, tokenizer, items):
    raise NotImplementedError("a synthetic pool scores in its own way")
"""


@contextlib.contextmanager
def tiny_sources() -> Iterator[Path]:
    """Enter a temporary folder with tiny models on disk, named as SOURCES says."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for seed, name in enumerate(SOURCES):
            tiny_llama(name, seed, layers=GROUPS, hidden=8)
        yield Path(folder)


def make_campaign(candidates: int, items: int, **controller: Any) -> Campaign:
    """Open a campaign over the tiny sources, in whose folder this is called.

    Args:
        candidates: how many the controller is to propose.
        items: of both objectives together; none is held out.
        controller: options of cmaes.
    """
    Path("fitness.py").write_text(FITNESS.format(items=items // len(OBJECTIVES)))
    axes = {"weight": {"low": 0.0, "high": 1.5}}
    space = {"kind": "parameters", "method": "task_arithmetic", "layer_groups": GROUPS}
    plan = checked_plan(
        {
            "name": "synthetic",
            "sources": {"base": SOURCES[0], "models": {name: name for name in SOURCES[1:]}},
            "space": space | {"axes": axes},
            "controller": {"kind": "cmaes", **controller},
            "fitness": [{"name": name, "function": "fitness.py"} for name in OBJECTIVES],
            "heldout": 0.0,
            "budget": {"evaluations": candidates},
        }
    )
    return hash_sources(open_campaign(plan))


class SyntheticPool:
    """Workers that solve items with a probability that a recipe's weights decide.

    Time is simulated: the clock goes to the next job's end when that is waited for.

    Attributes:
        workers: what each does; nobody looks on.
    """

    workers: tuple[WorkerState, ...] = ()

    def __init__(self, items: int, count: int = 1, sigma: float = 0.0, barrier: bool = False):
        """
        Args:
            items: of all objectives together.
            count: of workers.
            sigma: of the logarithm of the seconds that a job takes; their median is 1.
            barrier: whether jobs are taken only when none is running.
        """
        self._items, self._count = items // len(OBJECTIVES), count
        self._sigma, self._barrier = sigma, barrier
        self._rng = np.random.default_rng(0)
        self._jobs: list[tuple[float, int, Job]] = []  # a heap by the time of the end
        self._now = self._worked = self._began = 0.0
        self._submitted = 0

    @property
    def idle(self) -> int:
        """How many jobs it can take now."""
        return 0 if self._barrier and self._jobs else self._count - len(self._jobs)

    @property
    def busy(self) -> int:
        """How many jobs it holds."""
        return len(self._jobs)

    @property
    def share(self) -> float:
        """The share of the workers' time since the baselines were scored that they have scored."""
        return self._worked / (self._count * (self._now - self._began))

    def submit(self, job: Job) -> None:
        """Take a job, which ends after a random time."""
        if self._submitted == BASELINES:
            self._began, self._worked = self._now, 0.0
        seconds = float(self._rng.lognormal(0.0, self._sigma))
        self._worked += seconds
        heapq.heappush(self._jobs, (self._now + seconds, self._submitted, job))
        self._submitted += 1

    def next_finished(self, timeout: float | None = None) -> Finished | None:
        """Turn the clock to the next end of a job; return it with its outcome."""
        if not self._jobs:
            return None
        self._now, _, job = heapq.heappop(self._jobs)
        assert isinstance(job.recipe, ParametersRecipe)
        weights = np.array([group.values["weight"] for group in job.recipe.groups])
        # Models weighed alike do well: a landscape that a controller can learn.
        skill = float(np.clip(1 - weights.std(), 0.05, 0.95))
        scores = {}
        for objective in OBJECTIVES:
            count = self._items if job.ordinals is None else len(job.ordinals.get(objective, ()))
            if count:
                scores[objective] = (self._rng.random(count) < skill).astype(np.float32)
        return Finished(job, Outcome("ok", "", scores, 0.01, 0.1, "0" * 32, "synthetic"))

    def close(self) -> None:
        """Drop what it holds."""
        self._jobs.clear()


def drive(campaign: Campaign, archive: Archive, pool: SyntheticPool) -> None:
    """Begin a campaign in a new archive, or continue it, and run it to its end."""
    begin(archive, campaign, archive.path.parent)
    Runner(campaign, archive, pool, Silent()).run()
