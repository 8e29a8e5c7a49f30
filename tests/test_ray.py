"""The Ray pool with real processes: workers killed, candidates that hang, and that kill."""

import doctest
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from sql import query

from evomerge.archive.archive import Archive
from evomerge.campaign.build import checked
from evomerge.campaign.run import run_campaign
from evomerge.campaign.source_hashes import hash_sources
from evomerge.config.parts import WorkersSection
from evomerge.recipes.parameters import single
from evomerge.workers import ray_cluster, ray_pool
from evomerge.workers.protocol import Finished, Job, Lost
from evomerge.workers.ray_pool import RayPool

pytestmark = pytest.mark.xdist_group("ray")

# Scores the embeddings' sum. A file named after a trouble makes the next score have it.
TROUBLE = """
import os
import signal
import time
from pathlib import Path

def items():
    return list(range(24))


def score(model, tokenizer, items):
    weight = float(model.get_input_embeddings().weight.double().sum())
    with open("FOLDER/scored", "a") as file:
        file.write(f"{os.getpid()} {weight!r}\\n")
    slow = Path("FOLDER/slow")
    if slow.exists():
        time.sleep(float(slow.read_text()))
    deadly = Path("FOLDER/deadly")
    if deadly.exists() and deadly.read_text() == repr(weight):
        os.kill(os.getpid(), signal.SIGKILL)
    return [weight] * len(items)
"""


@pytest.fixture
def troubled(here, campaign_file):
    (here / "trouble.py").write_text(TROUBLE.replace("FOLDER", str(here)))

    def write(**changes):
        workers = {"pool": "ray", "count": 2, "threads": 1} | changes.pop("workers", {})
        entry = [{"name": "sum", "function": str(here / "trouble.py")}]
        return campaign_file(fitness=entry, workers=workers, **changes)

    return write


@pytest.fixture
def plan(troubled):
    """A worker plan over the tiny models, made as the commands make it."""
    (campaign,) = checked(troubled())
    return hash_sources(campaign).worker


def job(name, candidate=1):
    return Job(candidate, single(name, "bfloat16"), "search")


def wait(pool, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if event := pool.next_finished(timeout=1.0):
            return event
    raise AssertionError("no event came")


def test_a_killed_worker_is_lost_and_replaced_and_a_late_one_fails(plan, here):
    """One Ray start for the whole life of a pool: score, kill in mid-score, time out, score."""
    pool = RayPool(plan, WorkersSection(pool="ray", count=1, threads=1))
    try:
        pool.submit(job("a"))
        first = wait(pool)
        assert isinstance(first, Finished) and first.outcome.status == "ok"
        assert pool.idle == 1 and pool.busy == 0

        (here / "slow").write_text("600")
        pool.submit(job("b"))
        scored = here / "scored"
        lines = len(scored.read_text().splitlines())
        while len(scored.read_text().splitlines()) == lines:
            assert pool.next_finished(timeout=0.1) is None
        os.kill(int(scored.read_text().splitlines()[-1].split()[0]), signal.SIGKILL)
        lost = wait(pool)
        assert isinstance(lost, Lost) and lost.job == job("b")
        assert "\n" not in lost.reason

        pool._timeout = 3.0  # the same pool, told to lose patience
        pool.submit(lost.job)
        late = wait(pool)
        assert isinstance(late, Finished) and late.outcome.status == "failed"
        assert late.outcome.reason == "took longer than workers.timeout = 3 s"

        (here / "slow").unlink()
        pool.submit(job("a", 2))
        again = wait(pool)
        assert again.outcome.status == "ok"
        assert again.outcome.weights_checksum == first.outcome.weights_checksum
        assert np.array_equal(again.outcome.scores["sum"], first.outcome.scores["sum"])
    finally:
        pool.close()


def test_of_several_jobs_at_once_only_the_one_to_blame_is_lost_or_late(plan, here):
    """A worker that held three dies, and outlasts its time: each is done again by itself."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("b", dtype=torch.bfloat16)
    deadly = float(model.requires_grad_(False).get_input_embeddings().weight.double().sum())
    (here / "deadly").write_text(repr(deadly))
    pool = RayPool(replace(plan, candidates_each=3), WorkersSection(pool="ray", count=1, threads=1))
    try:
        assert pool.idle == 3
        for number, name in enumerate("abc"):
            pool.submit(job(name, number))
        assert (pool.idle, pool.busy) == (0, 3)
        events = sorted((wait(pool) for _ in "abc"), key=lambda event: event.job.candidate)
        assert [type(event) for event in events] == [Finished, Lost, Finished]
        assert events[0].outcome.status == events[2].outcome.status == "ok"
        assert events[1].blamed and (pool.idle, pool.busy) == (3, 0)
        lines = (here / "scored").read_text().splitlines()
        assert len(lines) == 2 + 3  # "a" and "b" at once, and each again

        (here / "deadly").unlink()
        (here / "slow").write_text("600")
        for number, name in enumerate("ac"):
            pool.submit(job(name, number))
        pool._timeout = 0.5
        while not pool._alone:
            assert pool.next_finished(timeout=0.1) is None
        (here / "slow").unlink()
        pool._timeout = None
        assert {wait(pool).outcome.status, wait(pool).outcome.status} == {"ok"}
    finally:
        pool.close()


def test_a_campaign_survives_a_candidate_that_kills_its_workers(troubled, here, silent):
    """It is retried once, then it has failed; everything else is scored as ever."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("b", dtype=torch.bfloat16)
    deadly = float(model.requires_grad_(False).get_input_embeddings().weight.double().sum())
    (here / "deadly").write_text(repr(deadly))
    assert run_campaign(troubled(budget__evaluations=6), observer=silent)
    archive = Archive(here / "runs" / "tiny" / "archive.db")
    (victim,) = [c for c in archive.baselines() if c.label == "b"]
    assert archive.outcome(victim.id)["status"] == "failed"
    assert archive.outcome(victim.id)["reason"].startswith("killed its worker 2 times")
    sql = "SELECT candidate_id FROM events WHERE kind = 'retry'"
    retries = [row["candidate_id"] for row in query(here / "runs" / "tiny", sql)]
    assert retries == [victim.id] * 2
    assert archive.counts() == {"ok": 10, "stopped": 0, "failed": 1, "running": 0}
    scored = [line.split()[1] for line in (here / "scored").read_text().splitlines()]
    assert scored.count(repr(deadly)) == 2


def test_the_examples_run():
    """Over a Ray that is up already, which they take as it is."""
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        for module in (ray_pool, ray_cluster):
            assert doctest.testmod(module).failed == 0
        assert ray.is_initialized()
    finally:
        ray.shutdown()
