"""Workers on a cluster of two nodes: starts that fail and hang, room that is short, grows, is lost.

The nodes are processes of this machine, by Ray's own utility.
"""

import os
import re
import time

import pytest

from evomerge.campaign.build import checked
from evomerge.campaign.run import run_campaign
from evomerge.campaign.run_log import logging_to
from evomerge.campaign.source_hashes import hash_sources
from evomerge.config.parts import WorkersSection
from evomerge.environment import cores
from evomerge.errors import BadInput, EvomergeError
from evomerge.recipes.parameters import single
from evomerge.workers.protocol import Job, Lost
from evomerge.workers.ray_cluster import RayCluster
from evomerge.workers.ray_pool import RayPool

pytestmark = pytest.mark.xdist_group("ray")

# The first worker to open it fails, the second one hangs; where a file "refuse" is, all fail.
HICCUP = """
import logging
import os
import time
from pathlib import Path

HERE = Path("FOLDER")


def number():
    for n in range(100):
        try:
            os.close(os.open(HERE / f"start-{n}", os.O_CREAT | os.O_EXCL))
            return n
        except FileExistsError:
            continue


if os.getpid() != DRIVER:
    if (HERE / "refuse").exists():
        raise RuntimeError("the disk is away")
    mine = number()
    if mine == 0:
        raise RuntimeError("a hiccup")
    if mine == 1:
        time.sleep(3600)


def items():
    return list(range(24))


def score(model, tokenizer, items):
    logging.getLogger("evomerge").warning("it is slow here")
    time.sleep(0.5 if not (HERE / "hang").exists() else 3600)
    return [1.0] * len(items)
"""


@pytest.fixture(scope="module")
def nodes():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def plan(nodes, here, campaign_file, monkeypatch):
    """A worker plan whose fitness has hiccups, with Ray's address in the environment."""
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    text = HICCUP.replace("FOLDER", str(here)).replace("DRIVER", str(os.getpid()))
    (here / "hiccup.py").write_text(text)
    entry = [{"name": "sum", "function": str(here / "hiccup.py"), "direction": "maximize"}]
    (campaign,) = checked(campaign_file(fitness=entry, workers={"pool": "ray", "count": 2}))
    return hash_sources(campaign).worker


def workers(**changes):
    return WorkersSection(**({"pool": "ray", "count": 2, "threads": 1} | changes))


def until(pool, done, seconds=100):
    """Let a pool work until something is so; return what came out of it."""
    events, end = [], time.monotonic() + seconds
    while not done(events):
        assert time.monotonic() < end, (events, pool.workers)
        if event := pool.next_finished(timeout=0.2):
            events.append(event)
    return events


def doing(pool):
    return [state.doing for state in pool.workers]


def test_what_does_not_fit_is_refused_before_anything_is_hashed(plan, here, campaign_file, silent):
    (here / "a").unlink()  # which would be said if it were opened after this
    wrong = {
        "cpus_each": (4, "no node of the cluster has 4 CPUs for a worker; write at most 1"),
        "threads": (3, "no node of the cluster has 3 CPUs for a worker; write at most 1"),
        "gpus_each": (1, "no node of the cluster has 1 GPUs for a worker; write 0, or add a node"),
    }
    (here / "a").symlink_to(here / "b")
    for key, (value, said) in wrong.items():
        file = campaign_file(workers={"pool": "ray", "count": 2, key: value})
        with pytest.raises(BadInput, match=re.escape(f"campaign.yaml: workers.{key}: {said}")):
            run_campaign(file, observer=silent)
    assert not (here / "runs").exists()


def test_starts_fail_hang_and_are_tried_again_while_nodes_come_and_go(
    plan, nodes, here, silent, monkeypatch
):
    monkeypatch.setattr(RayPool, "_ROOM_CHECK", 0.5)
    job = [Job(n, single("a", "bfloat16"), "search") for n in range(4)]
    run = logging_to(here / "log.txt", silent)
    with RayCluster(workers(count=3)) as cluster, run:
        assert cluster.warning().startswith("workers.count: 2 of 3 workers fit on the cluster's 2")
        pool = RayPool(plan, workers(count=3), cluster)
        try:
            assert pool.idle == 2, "the third one has no place"
            pool.submit(job[0])
            pool.submit(job[1])
            hanging = "preparing the items of sum"
            until(pool, lambda _: (here / "start-2").exists() and hanging in doing(pool))
            until(pool, lambda _: doing(pool).count("") == 1)  # the one that failed has started
            pool._start_timeout = 0.1
            until(pool, lambda _: hanging not in doing(pool))
            pool._start_timeout = 1800.0
            events = until(pool, lambda events: len(events) == 2)
            assert all(event.outcome.status == "ok" for event in events)

            # a third node joins, and is lost with the worker that came with it
            (here / "hang").touch()
            node = nodes.add_node(num_cpus=1)
            for one in job[:3]:
                pool.submit(one)
            until(pool, lambda _: len(pool._running) == 3)
            nodes.remove_node(node, allow_graceful=False)
            (lost,) = until(pool, lambda events: events)
            assert isinstance(lost, Lost) and not lost.blamed
            assert pool._present == 2 and pool._count == 3
        finally:
            pool.close()
    told = (here / "log.txt").read_text()
    assert re.search(
        r"WARNING worker \d did not start: .*a hiccup; mend the module; it is tried again in 2 s",
        told,
    )
    assert "nothing new for workers.start_timeout = 0.1 s, while preparing the items of sum" in told
    assert "INFO worker 1: opening the live model" in told
    assert re.search(rf"worker 1: this is \S+/cpu, with {cores()} threads", told)  # one on a node
    assert told.count("it is slow here") >= 2 and "WARNING worker 2: it is slow here" in told
    slow = [said for said in silent.said if "it is slow here" in said]
    assert len(slow) == 1 and slow[0].startswith("warning: worker ")


def test_a_campaign_ends_when_no_worker_starts_again_and_again(plan, here, monkeypatch, caplog):
    monkeypatch.setattr("evomerge.workers.starts.Attempts.FIRST", 0.1)
    monkeypatch.setattr(RayPool, "_START_FAILURES", 2)
    (here / "refuse").touch()
    pool = RayPool(plan, workers(count=1))
    try:
        pool.submit(Job(1, single("a", "bfloat16"), "search"))
        with pytest.raises(EvomergeError, match=r"workers do not start: .*the disk is away"):
            until(pool, lambda events: events)
    finally:
        pool.close()
    assert [r.message for r in caplog.records if "tried again in" in r.message]
