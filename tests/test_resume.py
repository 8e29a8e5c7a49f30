"""Killed with SIGKILL at any ledger write, a campaign goes on as if it had not been."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
import warm
from sql import query

from evomerge.archive.reader import ArchiveReader

pytestmark = pytest.mark.xdist_group("resume")  # one process kills and resumes for all tests
POINTS = [
    f"{name}:{when}:{count}"
    for name, counts in {
        "begin": (1,),
        "add_baseline": (3,),
        "propose": (1, 7),
        "record": (1, 6, 14),  # a baseline, the first candidate, a later one
        "submit": (1, 6),
        "score": (20,),
        "record_final": (1, 3),
    }.items()
    for when in ("before", "after")
    for count in counts
]
# The same where the archive keeps a rollback journal.
POINTS += [f"{p}:rollback" for p in ("propose:after:2", "record:before:9", "record_final:after:1")]

COUNTING = """
import os

def items():
    return list(range(40))


def score(model, tokenizer, items):
    weight = float(model.get_input_embeddings().weight.double().sum())
    norm = float(model.model.norm.weight.double().sum())
    with open(os.environ["SCORED"], "a") as file:
        file.write(f"{len(items)} {min(items)} {weight!r} {norm!r}\\n")
    return [weight + 0.001 * i for i in items]
"""


def ledger(directory):
    """Everything that must not depend on when a campaign was killed."""
    archive = ArchiveReader(Path(directory) / "archive.db")
    candidates = [
        (c.id, c.recipe_id, c.ordinal, None if c.genome is None else c.genome.tobytes())
        for c in archive.candidates()
    ]
    outcomes = {
        c[0]: (archive.outcome(c[0])["weights_checksum"], archive.means(c[0])) for c in candidates
    }
    finals = {c: archive.means(c, "heldout") for c in archive.finals_done()}
    tells = Counter(
        r["c"] for r in query(directory, "SELECT candidate_id c FROM events WHERE kind = 'tell'")
    )
    return candidates, outcomes, finals, tells


@pytest.fixture(scope="module")
def killed(world, tmp_path_factory):
    """Run an uninterrupted campaign and one for each kill point; return their reports."""
    import os

    import yaml
    from conftest import PLAN

    folder = tmp_path_factory.mktemp("killed")
    for name in ("base", "a", "b", "c"):
        (folder / name).symlink_to(world / name)
    (folder / "counting.py").write_text(COUNTING)
    plan = PLAN | {
        "fitness": [{"name": "sum", "function": "counting.py"}],
        "workers": {"pool": "inline", "threads": 1},
        "finals": 3,
    }
    (folder / "campaign.yaml").write_text(yaml.safe_dump(plan))
    script = Path(__file__).with_name("kill_points.py")
    words = [script, "campaign.yaml", "runs", "none", *POINTS]
    run = warm.run(words, cwd=folder, env=os.environ | {"SCORED": str(folder / "scored")})
    assert run.returncode == 0, run.stderr[-3000:]
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(reports) == 1 + len(POINTS)
    scored = (folder / "scored").read_text().splitlines()
    return {r["point"]: r for r in reports}, folder, scored


def test_a_group_of_tests_stays_in_one_process(request):
    """Or Ray's would run beside others', and what is made once for a module be made twice."""
    if request.config.getoption("numprocesses", None) or hasattr(request.config, "workerinput"):
        assert request.node.nodeid.endswith("@resume")


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_is_the_same_campaign(killed, point):
    reports, folder, _ = killed
    report = reports[point]
    assert report["ends"] == [-signal.SIGKILL, 0]
    whole = ledger(folder / reports["none"]["directory"])
    candidates, outcomes, finals, tells = ledger(folder / report["directory"])
    assert candidates == whole[0]  # the same proposals, genome by genome
    assert outcomes == whole[1]  # nothing lost, every weight and score the same
    assert finals == whole[2]
    assert set(tells.values()) == {1}  # nothing told twice


def test_nothing_that_was_archived_is_scored_again(killed):
    """Each kill costs at most the one evaluation that was then in flight."""
    reports, folder, scored = killed
    candidates, _, finals, _ = ledger(folder / reports["none"]["directory"])
    one_campaign = len({c[1] for c in candidates}) + len(finals)
    assert len(scored) <= one_campaign * len(reports) + len(POINTS)
    assert len(scored) >= one_campaign * len(reports)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_waits_for_what_is_in_flight_and_says_how_to_go_on(campaign_file, here, number):
    import time

    slow = (
        (here / "fit.py")
        .read_text()
        .replace(
            "def score(model, tokenizer, items):",
            "def score(model, tokenizer, items):\n    import time; time.sleep(0.4)",
        )
    )
    (here / "slow.py").write_text(slow)
    file = campaign_file(fitness=[{"name": "f", "function": "slow.py"}], budget__evaluations=500)
    process = warm.Process(["-m", "evomerge", "run", file])
    path = here / "runs" / "tiny" / "archive.db"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if path.exists() and (archive := ArchiveReader(path)).begun and archive.proposed() >= 2:
            break
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "stopping: waiting for what is in flight" in out
    assert f"To continue: evomerge run {file}" in out
    archive = ArchiveReader(path)
    assert archive.unfinished() == []
    assert archive.campaign["state"] == "interrupted"
