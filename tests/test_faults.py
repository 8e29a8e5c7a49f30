"""What workers, models, tasks, disks and clocks do to a campaign, with real processes.

What was archived stays; the campaign goes on, or stops with one clear line.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import warm
import yaml
from sql import query

from evomerge.archive import archive as archive_module
from evomerge.archive import summary
from evomerge.archive.reader import ArchiveReader
from evomerge.campaign.run import run_campaign
from evomerge.errors import BadInput, EvomergeError
from evomerge.export.candidates import export_candidate

# The n-th score of the whole campaign, over all workers, has the trouble that TROUBLES names.
# Numbers are taken by making files, which no two processes can do at once.
TROUBLED = """
import os
import resource
import signal
import time
from pathlib import Path

TROUBLES = PLAN
HERE = Path("FOLDER")


def items():
    return list(range(30))


def number():
    for n in range(10_000):
        try:
            os.close(os.open(HERE / f"score-{n}", os.O_CREAT | os.O_EXCL))
            return n
        except FileExistsError:
            continue


def die_while_merging():
    from evomerge.merging.merger import Merger

    fill = Merger.fill

    def deadly(self, recipe, targets):
        fill(self, recipe, dict(list(targets.items())[:1]))  # the first of its tensors
        (HERE / "died-while-merging").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    Merger.fill = deadly


def exhaust_memory():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), before[1]))
    try:
        import torch

        torch.ones(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def score(model, tokenizer, items):
    trouble = TROUBLES.get(number())
    if trouble == "raises":
        raise RuntimeError("the task\\nbroke")
    if trouble in ("nan", "inf"):
        return [float(trouble)] * len(items)
    if trouble == "memory":
        exhaust_memory()
    if trouble == "hangs":
        time.sleep(3600)
    if trouble == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "dies in the next merge":
        die_while_merging()
    if trouble == "slow" or TROUBLES.get("all") == "slow":
        time.sleep(0.3)
    weight = model.get_input_embeddings().weight.double().flatten()
    return [float(weight[i]) for i in items]
"""


@pytest.fixture
def troubled(here, campaign_file):
    """Write a campaign whose scores have troubles, by the number of the score."""

    def write(troubles, **changes):
        text = TROUBLED.replace("PLAN", repr(troubles)).replace("FOLDER", str(here))
        (here / "troubled.py").write_text(text)
        entry = [{"name": "t", "function": str(here / "troubled.py"), "direction": "maximize"}]
        return campaign_file(fitness=entry, **changes)

    return write


def outcomes(run):
    return query(
        run,
        "SELECT c.id, c.origin, o.status, o.reason, (SELECT COUNT(*) FROM events e WHERE"
        " e.candidate_id = c.id AND e.kind = 'retry') AS retries FROM candidates c"
        " JOIN outcomes o ON o.candidate_id = c.id ORDER BY c.id",
    )


@pytest.mark.xdist_group("ray")
def test_a_campaign_outlives_everything_that_its_workers_do(troubled, here, silent):
    """Two Ray workers; 5 baselines, then every kind of trouble, one after the other."""
    troubles = {
        6: "raises",
        8: "nan",
        10: "inf",
        12: "memory",
        14: "hangs",
        16: "dies",
        18: "dies in the next merge",
    }
    workers = {"pool": "ray", "count": 2, "threads": 1, "timeout": 12.0}
    file = troubled(troubles, workers=workers, budget__evaluations=20, heldout=0.0)
    assert run_campaign(file, observer=silent)
    rows = outcomes(here / "runs" / "tiny")
    assert len(rows) == 25
    reasons = sorted(r["reason"] for r in rows if r["status"] == "failed")
    assert len(reasons) == 5
    assert any(": RuntimeError: the task broke" in r for r in reasons)
    assert any(r == "t scored nan on item 0" for r in reasons)
    assert any(r == "t scored inf on item 0" for r in reasons)
    assert any("alloc" in r or "memory" in r.lower() for r in reasons)
    assert any(r == "took longer than workers.timeout = 12 s" for r in reasons)
    assert (here / "died-while-merging").exists()
    retried = [r for r in rows if r["retries"]]
    assert len(retried) == 2 and {r["status"] for r in retried} == {"ok"}
    assert {r["status"] for r in rows if r not in retried and not r["reason"]} == {"ok"}


def start(file, *words, **options):
    return warm.Process(["-m", "evomerge", "run", file, *words], **options)


def start_anew(file, **options):
    """The same where Ray starts other processes: without the libraries imported already."""
    command = [sys.executable, "-m", "evomerge", "run", str(file)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for(run, proposed, process, seconds=180):
    """Wait until a campaign has proposed so many."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
        path = run / "archive.db"
        if path.exists() and (found := ArchiveReader(path)).begun and found.proposed() >= proposed:
            return
    raise AssertionError((process.poll(), process.communicate(timeout=5)))


def ledger(run):
    """What a campaign proposed and what came of it."""
    found = ArchiveReader(run / "archive.db")
    return [
        (c.ordinal, c.recipe_id, (found.outcome(c.id) or {}).get("weights_checksum"))
        for c in found.candidates(origin="search")
    ]


CHANGES = {
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "changed": lambda file: file.write_bytes(file.read_bytes()[:-2] + b"\x00\x01"),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_stops_the_campaign_until_it_is_back(
    troubled, here, world, silent, change
):
    (here / "a").unlink()
    shutil.copytree(world / "a", here / "a")
    file = troubled({"all": "slow"}, budget__evaluations=14)
    run, weights = here / "runs" / "tiny", here / "a" / "model.safetensors"
    process = start(file)
    wait_for(run, 3, process)
    aside = here / "aside"
    shutil.copy2(weights, aside)
    CHANGES[change](weights)
    _, error = process.communicate(timeout=120)
    if process.returncode == 1:  # the file was looked at before it was read again
        assert error.strip().endswith(f"{here / 'a'} has changed while the campaign ran")
        assert summary.status(run)["state"] == "failed"
    else:  # the mapped file was cut off under a read: nothing can be said any more
        assert change == "cut off" and process.returncode == -signal.SIGBUS
    before = ledger(run)

    refusal = {"cut off": "is cut off", "changed": "has changed: sha256", "gone": "no weights"}
    with pytest.raises(BadInput, match=rf"sources\..*a\b.* {refusal[change]}"):
        run_campaign(file, observer=silent)
    shutil.copy2(aside, weights)
    assert run_campaign(file, observer=silent)
    after = ledger(run)
    scored = [row for row in before if row[2]]
    assert after[: len(scored)] == scored and len(after) == 14


def limited(size):
    """A process that may write no file beyond `size` bytes: its disk is full from there on."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_stops_the_campaign_and_loses_nothing(troubled, here, silent):
    file = troubled({}, budget__evaluations=14)
    run = here / "runs" / "tiny"
    process = start(file, preexec_fn=limited(180_000))
    _, error = process.communicate(timeout=180)
    assert process.returncode == 1, error
    assert "runs/tiny cannot be written" in error.strip().splitlines()[-1]
    before = [row for row in ledger(run) if row[2]]
    assert run_campaign(file, observer=silent)
    after = ledger(run)
    assert after[: len(before)] == before and len(after) == 14
    whole = troubled({}, budget__evaluations=14, name="whole")
    assert run_campaign(whole, observer=silent)
    assert ledger(here / "runs" / "whole") == after

    export_candidate(run, here / "whole", "best")
    command = ["-m", "evomerge", "merge", "whole/recipe.json", "out"]
    full = warm.run(command, preexec_fn=limited(4000))
    assert full.returncode == 1 and "evomerge: out cannot be written: " in full.stderr
    assert not [p.name for p in here.iterdir() if "out" in p.name]


def test_a_directory_that_cannot_be_written_is_one_line(troubled):
    for place in ("/proc/evomerge", "troubled.py/run"):  # even root cannot write there
        process = start(troubled({}), "--run", place)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1, error
        (line,) = error.strip().splitlines()
        assert line.startswith(f"evomerge: {place} cannot be written: ")


def test_a_clock_that_is_set_back_changes_nothing(troubled, here, silent, monkeypatch):
    run_campaign(troubled({}, name="true", budget__evaluations=12), observer=silent)
    now = [2e9]

    def backwards():
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(archive_module.time, "time", backwards)
    run_campaign(troubled({}, budget__evaluations=5), observer=silent)
    assert run_campaign(troubled({}, budget__evaluations=12), observer=silent)
    monkeypatch.undo()
    assert ledger(here / "runs" / "tiny") == ledger(here / "runs" / "true")
    status = summary.status(here / "runs" / "tiny")
    assert status["seconds"]["total"] > 0 and json.dumps(status)


def test_a_failing_pool_says_how_to_go_on(troubled, here, silent, monkeypatch):
    """Whatever else goes wrong is one line, a traceback in the log, and a resumable run."""
    from evomerge.workers import pool

    plain = pool.InlinePool.next_finished
    calls = []

    def failing(self, timeout=None):
        calls.append(1)
        if len(calls) == 9:
            raise ZeroDivisionError("in the pool")
        return plain(self, timeout)

    monkeypatch.setattr(pool.InlinePool, "next_finished", failing)
    file = troubled({}, budget__evaluations=12)
    with pytest.raises(EvomergeError, match=r"ZeroDivisionError: in the pool \(details in .*log"):
        run_campaign(file, observer=silent)
    run = here / "runs" / "tiny"
    assert "Traceback" in (run / "log.txt").read_text()
    assert summary.status(run)["state"] == "failed"
    assert run_campaign(file, observer=silent) and len(ledger(run)) == 12


RAY = {"pool": "ray", "count": 2, "threads": 1}


@pytest.mark.xdist_group("ray")
def test_a_batch_systems_sigterm_to_every_process(troubled, here, silent):
    """It ends Ray's own processes too; what was in flight is left for the next start."""
    file = troubled({"all": "slow"}, workers=RAY, budget__evaluations=40)
    run = here / "runs" / "tiny"
    process = start_anew(file, start_new_session=True)
    wait_for(run, 6, process)
    os.killpg(process.pid, signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert f"To continue: evomerge run {file}" in out
    assert summary.status(run)["state"] == "interrupted"
    before = [row for row in ledger(run) if row[2]]
    file = troubled({"all": "slow"}, workers={"pool": "inline"}, budget__evaluations=20)
    assert run_campaign(file, observer=silent)
    after = ledger(run)
    assert after[: len(before)] == before and all(row[2] for row in after)
    assert not any(r["retries"] for r in outcomes(run))


@pytest.mark.xdist_group("ray")
def test_a_lost_node_is_outlived_and_a_lost_head_said(troubled, here, silent):
    """The guide's two nodes, here on one machine: first the second one is killed, then the head."""
    from ray.cluster_utils import Cluster

    page = Path(__file__).parent.parent / "docs" / "clusters-and-gpus.md"
    section = page.read_text("utf-8").partition("## Two nodes")[2]
    example = yaml.safe_load(section.partition("```yaml")[2].partition("```")[0])["workers"]
    has = {"num_cpus": 1, "num_gpus": 1}  # of which Ray keeps the books
    cluster = Cluster(initialize_head=True, head_node_args=has)
    try:
        node = cluster.add_node(**has)
        file = troubled({"all": "slow"}, workers=example, budget__evaluations=500)
        run = here / "runs" / "tiny"
        process = start_anew(file, env=os.environ | {"RAY_ADDRESS": cluster.address})
        wait_for(run, 6, process)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(run, ArchiveReader(run / "archive.db").proposed() + 6, process)
        cluster.head_node.kill_gcs_server(check_alive=False)
        cluster.head_node.kill_raylet(check_alive=False)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "evomerge: the head of the Ray cluster is gone" in error
        assert "run the same again" in error
    finally:
        cluster.shutdown()
    proposed = ArchiveReader(run / "archive.db").proposed()
    before = [row for row in ledger(run) if row[2]]
    inline = {"pool": "inline"}
    file = troubled({"all": "slow"}, workers=inline, budget__evaluations=proposed + 2)
    assert run_campaign(file, observer=silent)
    after = ledger(run)
    assert len(after) == proposed + 2 and all(row[2] for row in after)
    assert [row for row in after if row in before] == before
    assert not [r for r in outcomes(run) if r["status"] != "ok"]
    blames = query(run, "SELECT * FROM events WHERE kind = 'retry' AND blamed")
    assert not blames, "a node's death is no candidate's doing"
