"""The commands as people call them: what they print on a terminal, into a pipe and as JSON."""

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
import warm
from click.testing import CliRunner

from evomerge.archive import summary
from evomerge.campaign.run import run_campaign
from evomerge.cli.console import table
from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.testing.archives import example_archive

EVOMERGE = [sys.executable, "-m", "evomerge"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def example(tmp_path):
    """The directory of a run of two models and three proposals."""
    run = tmp_path / "example"
    run.mkdir()
    example_archive(run / "archive.db").close()
    return run


def on_terminal(command, width=120, warmly=False, **options):
    """Run a command on a pseudo-terminal; return its exit code and all that it wrote there."""
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(width)}
    if warmly:
        process = warm.Process(command, terminal=end, env=environment, **options)
    else:
        process = subprocess.Popen(
            command, stdin=end, stdout=end, stderr=end, env=environment, **options
        )
    os.close(end)
    written = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the last process that had the other end has closed it
            break
        if not part:
            break
        written += part
    os.close(terminal)
    return process.wait(), written.decode()


def command(*words):
    """Run a command in this process; return its exit code and what it printed."""
    done = CliRunner().invoke(main, list(map(str, words)))
    return done.exit_code, done.output


def test_a_finished_campaign_prints_its_summary_and_scores_nothing(campaign_file, silent, here):
    far = {"low": -9.0, "high": -8.0}  # where no source is as unlikely
    file = campaign_file(space__axes__weight=far, fitness__0__direction="minimize")
    run_campaign(file, observer=silent)
    before = (here / "runs" / "tiny" / "archive.db").read_bytes()
    code, said = command("run", file)
    assert code == 0 and "tiny: finished" in said and "Pareto front and baselines" in said
    assert said.endswith("Export the best: evomerge export runs/tiny OUT --pick best\n")
    assert (here / "runs" / "tiny" / "archive.db").read_bytes() == before


def test_a_search_that_found_nothing_better_than_its_sources_says_so(campaign_file, silent, here):
    worse = {"low": -9.0, "high": -8.0}  # far from every source, on the other side of the base
    file = campaign_file(budget__evaluations=3, space__axes__weight=worse)
    run_campaign(file, observer=silent)
    _, said = command("run", file)
    best = json.loads(command("status", here / "runs" / "tiny", "--json")[1])["best"]
    assert best["origin"] == "baseline" and f"best: {best['label']} " in said
    assert f"No candidate of the search is better than '{best['label']}'" in said
    assert "Export the best" not in said


def test_status_front_and_show_have_the_contracts_shapes(campaign_file, silent, here):
    run_campaign(campaign_file(), observer=silent)
    run = here / "runs" / "tiny"
    status = json.loads(command("status", run, "--json")[1])
    assert status["state"] == "finished" and status["name"] == "tiny"
    assert set(status["candidates"]) == {"ok", "stopped", "failed", "running"}
    assert {"budget", "best", "seconds", "baselines"} <= set(status)
    front = json.loads(command("front", run, "--json")[1])
    assert {r["label"] for r in front} >= {"base", "a", "b", "c", "uniform"}
    for row in front:
        assert set(row) == {"id", "recipe_id", "origin", "label", "scores"}
        assert set(row["scores"]["likely"]["search"]) == {"mean", "stderr", "items"}
        assert set(row["scores"]["likely"]["heldout"]) == {"mean", "stderr", "items"}
    shown = json.loads(command("show", run, 6, "--json")[1])
    assert {"recipe", "parents", "scores", "outcome", "genome"} <= set(shown)
    assert summary.show(run, "best")["id"] == status["best"]["id"]


def test_what_is_not_there_is_one_line(example, here):
    assert command("show", example, 999) == (
        2,
        f"{example}: there is no candidate 999; write a number from 1 to 5\n",
    )
    code, said = command("show", example, "bst")
    assert code == 2 and f"{example}: there is no 'bst'; write best, knee, a candidate's" in said
    code, said = command("export", example, here / "out", "--pick", "bst")
    assert code == 2 and "there is no 'bst'; write best, knee, " in said
    code, said = command("status", here)
    assert (code, said.count("\n")) == (2, 1) and f"{here}: is no run's directory; name " in said
    with pytest.raises(BadInput, match="is no run's directory"):
        summary.status(here)


def test_a_run_that_another_process_holds_is_one_line(campaign_file, silent, here):
    from evomerge.archive.run_lock import RunLock

    run_campaign(campaign_file(budget__evaluations=2), observer=silent)
    with RunLock(here / "runs" / "tiny"):
        file = campaign_file(budget__evaluations=3)
        done = warm.run(["-m", "evomerge", "run", file])
    assert done.returncode == 1
    assert f"evomerge: runs/tiny is held by process {os.getpid()} on " in done.stderr
    assert summary.status(here / "runs" / "tiny")["state"] == "finished"


def test_a_finalists_failure_is_told(example):
    front = json.loads(command("front", example, "--json")[1])
    assert {r["id"]: r.get("heldout_failure") for r in front} == {
        1: None,
        2: None,
        3: None,
        4: "OutOfMemoryError",
    }
    assert "4 failed on held-out items: OutOfMemoryError" in command("front", example)[1]
    assert "held-out  failed: OutOfMemoryError" in command("show", example, 4)[1]
    assert json.loads(command("show", example, 4, "--json")[1])["outcome"]["status"] == "ok"


def test_tables_are_plain_where_there_is_no_terminal(example):
    done = subprocess.run([*EVOMERGE, "front", str(example)], capture_output=True, text=True)
    assert done.returncode == 0 and "\x1b" not in done.stdout
    head, dashes, *rows = done.stdout.splitlines()
    assert head.split()[:4] == ["id", "who", "front", "value"] and set(dashes) == {"-"}
    assert [row.split()[0] for row in rows[:4]] == ["3", "4", "2", "1"]
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())
    wide = [["x" * 300, 0.5]]
    assert table(["name", "value"], wide).splitlines()[2] == "x" * 300 + "  0.500"


def test_tables_fit_a_terminal_and_json_is_the_same_there(example):
    code, written = on_terminal([*EVOMERGE, "front", str(example)], width=70)
    lines = ESCAPES.sub("", written).splitlines()
    assert code == 0 and "\x1b[1m" in written and "─" in written
    assert max(map(len, lines[:-1])) <= 70 and len(lines) > 8
    words = [*EVOMERGE, "front", str(example), "--json"]
    piped = subprocess.run(words, capture_output=True, text=True).stdout
    assert on_terminal(words)[1].replace("\r\n", "\n") == piped


def test_a_reader_that_stops_reading_is_no_error(example):
    words = " ".join([*EVOMERGE, "list"])
    done = subprocess.run(f"{words} | head -1", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and done.stderr == ""


def test_schema_is_json(here):
    code, said = command("schema")
    schema = json.loads(said)
    assert code == 0 and {"sources", "fitness", "budget"} <= set(schema["properties"])


# --- progress ----------------------------------------------------------------------------

TWO_WORKERS = """
import sys, time
from pathlib import Path
from evomerge.cli.progress import Progress
from evomerge.testing.archives import example_archive
from evomerge.workers.protocol import WorkerState

archive, times = example_archive(), int(sys.argv[1])
with Progress() as progress:
    progress.say("example: starting")
    for second in range(times):
        first = WorkerState("node/1", 7, "search", 61.0 + second)
        third = WorkerState("node/3", None, "", 5.0 + second, "opening the live model")
        progress.update(archive, (first, WorkerState("node/2", None, "", 0.0), third))
        time.sleep(0.6)
    progress.update(archive, (WorkerState("node/1", 3, "heldout", 2.0),))
    time.sleep(0.6)
Path("done").touch()
"""
LINE = "3/8 | best 0.750 16.000 | best baseline (ja) 0.250 12.000 | 0/h, ? left | 1 failed"


def test_a_terminal_shows_a_row_for_each_worker(tmp_path):
    code, written = on_terminal([sys.executable, "-c", TWO_WORKERS, "3"], cwd=tmp_path)
    said = ESCAPES.sub("", written)
    assert code == 0 and "example: starting" in said and said.count(LINE) >= 3
    for row in (
        r"  node/1 +candidate 7, search +1 min 01 s",
        r"  node/1 +candidate 7, search +1 min 0[34] s",
        r"  node/2 +waits",
        r"  node/3 +opening the live model +5 s",
        r"  node/1 +candidate 3, held-out +[23] s",
    ):
        assert re.search(row, said), row
    assert "\x1b[1A" in written, "lines are rewritten"
    assert written.rstrip().endswith("\x1b[?25h"), "the cursor is there again"
    assert said.rstrip().endswith(LINE), "in the end the line stands alone"


def test_a_closed_terminal_is_no_reason_to_stop(tmp_path):
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_WORKERS, "5"], stdout=end, stderr=end, cwd=tmp_path
    )
    os.close(end)
    assert os.read(terminal, 4096)
    time.sleep(1.0)
    os.close(terminal)
    assert process.wait(timeout=60) == 0 and (tmp_path / "done").exists()


def test_a_pipe_gets_plain_lines_now_and_then(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWO_WORKERS, "3"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == ["example: starting", LINE]


def test_a_campaign_on_a_terminal_ends_with_its_summary(campaign_file, here):
    file = campaign_file(budget__evaluations=3)
    code, written = on_terminal(["-m", "evomerge", "run", file], warmly=True, cwd=here)
    said = ESCAPES.sub("", written)
    assert code == 0, said
    assert re.search(r"candidate \d+, search +\d+ s", said)
    assert "tiny: finished" in said and "Pareto front and baselines" in said
    assert written.count("\x1b[?25h") == 1
