"""What `evomerge run` prints for people in a hurry and for programs, and what shells complete."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from rich.console import Console

import evomerge
from evomerge.archive.archive import Archive
from evomerge.archive.summary import snapshot
from evomerge.cli.json_lines import JsonLines
from evomerge.cli.main import main
from evomerge.cli.progress import bar
from evomerge.testing.archives import example_archive

ROOT = Path(evomerge.__file__).parent.parent


def output(*words):
    done = CliRunner().invoke(main, list(map(str, words)))
    return done.exit_code, done.stdout, done.stderr


def events(text):
    return [json.loads(line) for line in text.splitlines()]


def test_quiet_says_nothing_but_the_result(campaign_file, here):
    file = campaign_file(budget__evaluations=3)
    code, said, wrong = output("run", file, "--quiet")
    assert code == 0 and wrong == "" and said.startswith("tiny: finished")
    assert "Pareto front and baselines" in said and "starting" not in said and " | " not in said
    code, said, wrong = output("run", campaign_file(seed=-1), "-q")
    assert (code, said) == (2, "") and "seed: -1 is out of range" in wrong
    code, said, wrong = output("run", file, "--quiet", "--json-lines")
    assert (code, said) == (2, "") and wrong.startswith("--quiet: says nothing, and --json-lines")


# The keys that programs may lean on; see docs/first-campaign.md.
KEYS = {
    "start": {"name", "directory", "scored"},
    "candidate": {
        *("id", "told_at", "seq", "stage", "origin", "label", "is_part", "is_copy", "status"),
        *("value", "violation", "seconds_merge", "seconds_score", "items", "means"),
    },
    "progress": {
        *("name", "state", "stages", "candidates", "budget", "items", "in_parts", "best"),
        *("seconds", "per_hour", "baselines", "workers"),
    },
    "message": {"text"},
    "finished": {"directory", "status", "front"},
    "interrupted": {"command"},
}


def test_every_line_is_an_event_of_documented_keys(campaign_file, here):
    file = campaign_file(budget__evaluations=5)
    code, said, _ = output("run", file, "--json-lines")
    found = events(said)
    assert code == 0 and found[-1]["event"] == "finished"
    for event in found:
        assert set(event) == {"event", "at"} | KEYS[event["event"]]
    assert {event["event"] for event in found} == set(KEYS) - {"interrupted"}
    archive = Archive(here / "runs/tiny/archive.db")
    candidates = [event for event in found if event["event"] == "candidate"]
    told = archive.told()
    # what came between two looks at the end is in the archive alone
    assert [event["id"] for event in candidates] == [one.candidate for one in told]
    assert all(event["means"] == archive.means(event["id"]) for event in candidates)
    assert found[-1]["front"] == json.loads(output("front", "runs/tiny", "--json")[1])
    # a run that goes on tells what is new
    code, said, _ = output("run", campaign_file(budget__evaluations=7), "--json-lines")
    again = events(said)
    (start,) = [event for event in again if event["event"] == "start"]
    assert start["scored"] == len(told) and start["directory"] == "runs/tiny"
    assert len([event for event in again if event["event"] == "candidate"]) == 2
    page = (ROOT / "docs/first-campaign.md").read_text()
    for event, keys in KEYS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{event}` |")]
        assert all(f"`{key}`" in row for key in keys), event


def test_a_stopped_run_tells_programs_how_to_go_on(campaign_file, here, monkeypatch):
    monkeypatch.setattr("evomerge.cli.stopping.StopSignals.__call__", lambda self: True)
    file = campaign_file()
    code, said, _ = output("run", file, "--json-lines")
    last = events(said)[-1]
    assert code == 130 and last["event"] == "interrupted"
    assert last["command"] == f"evomerge run {file} --json-lines"
    code, said, _ = output("run", file, "--quiet")
    assert code == 130 and said.startswith("interrupted; what is archived stays. To continue: ")


def test_a_reader_of_events_may_leave(tmp_path):
    stream = (tmp_path / "out").open("w")
    lines = JsonLines(stream)
    stream.close()
    lines.say("nobody reads this")
    lines.update(example_archive(), ())


def test_the_bar_is_the_share_of_the_time():
    found = snapshot(example_archive())
    found["seconds"] |= {"total": 30.0, "left": 90.0}
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(bar(found))
    drawn = captured.get().rstrip()
    assert drawn.endswith("25% 1 min 30 s left") and "━" in drawn


# --- completion --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two runs, a campaign file and another one."""
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        example_archive(tmp_path / "runs" / name / "archive.db").close()
    (tmp_path / "empty").mkdir()
    (tmp_path / "campaign.yaml").touch()
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(*words):
    *before, incomplete = words
    complete = ShellComplete(main, {}, "evomerge", "_EVOMERGE_COMPLETE")
    return [item.value for item in complete.get_completions(before, incomplete)]


def test_commands_runs_files_picks_and_keys_are_completed(folder):
    assert completed("st") == ["status"] and "--quiet" in completed("run", "--q")
    assert completed("status", "r") == ["runs/"]
    assert completed("status", "runs/") == ["runs/first", "runs/second"]
    assert completed("front", "runs/s") == ["runs/second"]
    assert completed("front", f"{folder}/runs/f") == [f"{folder}/runs/first"]
    assert completed("run", "") == ["campaign.yaml", "empty/", "runs/"]
    assert completed("check", "c") == ["campaign.yaml"]
    assert completed("show", "runs/first", "") == ["best", "knee", "accuracy", "length", "3", "4"]
    assert completed("export", "runs/first", "out", "--pick", "l") == ["length"]
    assert completed("show", "empty", "b") == ["best"]
    keys = completed("run", "campaign.yaml", "--set", "budget.")
    assert set(keys) >= {"budget.items=", "budget.hours=", "budget.patience="}
    assert completed("run", "campaign.yaml", "--set", "sources.tr") == [
        "sources.trust_remote_code=",
    ]
    assert completed("completion", "z") == ["zsh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_for_the_shell(shell):
    code, said, _ = output("completion", shell)
    assert code == 0 and "_EVOMERGE_COMPLETE" in said and "evomerge" in said
    if found := shutil.which(shell):
        done = subprocess.run([found, "-n"], input=said, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_bash_completes(folder):
    """In a real one, which calls the program as it is installed."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "evomerge"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
        "from evomerge.cli.main import main\nmain(prog_name='evomerge')\n"
    )
    program.chmod(0o755)
    script = (
        f'PATH="{folder}/bin:$PATH"\neval "$(evomerge completion bash)"\n'
        "COMP_WORDS=(evomerge status runs/f); COMP_CWORD=2\n"
        '_evomerge_completion evomerge\necho "${COMPREPLY[@]}"\ncomplete -p evomerge\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    replies, registered = done.stdout.splitlines()
    assert replies == "runs/first" and registered.endswith("_evomerge_completion evomerge")
