"""Trackers and dashboards of many packages, each read back by its own means. It needs them:
`make test-trackers` runs this in an environment of its own.
"""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("wandb")

# Read when trackio is imported, here and in the processes that are forked.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")
os.environ["WANDB_SILENT"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

pytest.importorskip("trackio")

import tracked as trials
from click.testing import CliRunner

from evomerge.archive.archive import Archive
from evomerge.archive.described import QUERIES
from evomerge.campaign.observer import Silent
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.testing.archives import example_archive
from evomerge.tracking import follower


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(follower, "_POLL", 0.02)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an MLflow server of one's own."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/store.db"]
    with started(words, f"http://127.0.0.1:{port}/health", cwd=folder) as address:
        yield address.removesuffix("/health")


@contextlib.contextmanager
def started(words, address, **options):
    """Run a server until it is left; yields once it answers at an address."""
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(words, stdout=nowhere, stderr=nowhere, **options)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(address):
                break
            assert process.poll() is None, f"{words} has ended"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def read_mlflow(here, uri):
    """Return (step, values) of every point by its event, and what stands beside the curves."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "merges"]
    (run,) = client.search_runs([experiment.experiment_id])
    points = []
    history = {
        name: client.get_metric_history(run.info.run_id, name)
        for name in ("ledger/event", "best/value", "candidate/likely")
    }
    for event, best, mean in zip(*history.values(), strict=True):
        assert event.step == best.step == mean.step
        points.append((int(event.value), event.step, best.value, mean.value))
    assert run.info.status in ("RUNNING", "FINISHED")
    texts = json.dumps([run.data.params, run.data.tags])
    assert run.data.params["budget.evaluations"] == "14"
    end = {k: v for k, v in run.data.tags.items() if k.startswith("end/")}
    end = {k: v if k in ("end/state", "end/recipe") else float(v) for k, v in end.items()}
    return points, end, texts


def read_wandb(here, uri):
    """The same of W&B's offline files, whose records are those that `wandb sync` sends."""
    from evomerge.tracking.wandb import _records

    points, texts, end = [], [], {}
    for file in sorted(here.glob("runs/tiny/wandb/offline-run-*/run-*.wandb")):
        for record in _records(file.read_bytes()):
            row = {"/".join(i.nested_key) or i.key: i for i in record.history.item}
            row = {key: json.loads(item.value_json) for key, item in row.items()}
            if row:
                values = row["best/value"], row["candidate/likely"]
                points.append((row["ledger/event"], row["items"], *values))
            for update in record.summary.update:
                key = "/".join(update.nested_key) or update.key
                end |= {key: json.loads(update.value_json)} if key.startswith("end/") else {}
            if record.HasField("run"):
                keys = {item.key: item.value_json for item in record.run.config.update}
                assert json.loads(keys["plan"])["budget"]["evaluations"] == 14
                texts.append(str(record))
    return points, end, "".join(texts)


def read_trackio(here, uri):
    """The same of Trackio's store."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("merges")
    points, end = [], {}
    for row in SQLiteStorage.get_logs("merges", run.name):
        if "ledger/event" in row:
            values = row["best/value"], row["candidate/likely"]
            points.append((row["ledger/event"], row["step"], *values))
        else:
            assert not end, "what the search came to is logged once"
            end = {key: value for key, value in row.items() if key.startswith("end/")}
            assert "| uniform |" in row["front"]["_value"]
    config = SQLiteStorage.get_run_config("merges", run.name)
    assert config["plan"]["budget"]["evaluations"] == 14
    return points, end, json.dumps(config)


TRACKERS = {
    "mlflow": ({"experiment": "merges"}, read_mlflow),
    "wandb": ({"mode": "offline", "project": "merges"}, read_wandb),
    "trackio": ({"project": "merges"}, read_trackio),
}


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_killed_run_goes_on_in_the_same_run_without_a_point_twice(
    campaign_file, here, kind, server
):
    options, read = TRACKERS[kind]
    options |= {"uri": server} if kind == "mlflow" else {}
    file = campaign_file(track=[{"kind": kind, **options}])
    before = trials.run_killed(file)
    observer = Silent()
    for _ in range(2):  # the second time all is there
        assert run_campaign(file, observer=observer)
    assert [said for said in observer.said if "failed" in said or "left behind" in said] == []
    told = trials.outcomes(file)
    assert len(told) > len(before)
    points, end, texts = read(here, server)
    steps = list(itertools.accumulate(one.items for one in told))
    assert [event for event, *_ in points] == [one.seq for one in told]
    assert [step for _, step, *_ in points] == steps
    assert [best for *_, best, _ in points] == pytest.approx(trials.best_so_far(told))
    assert [mean for *_, mean in points] == pytest.approx([one.means["likely"] for one in told])
    archive = Archive(here / "runs/tiny/archive.db")
    assert end["end/state"] == "finished" and end["end/candidate"] == archive.best()
    heldout = archive.means(archive.best(), "heldout")["likely"]
    assert end["end/heldout/likely"] == pytest.approx(heldout)
    trials.without_secrets(texts, here)


def test_several_trackers_follow_one_search(campaign_file, here):
    sections = [{"kind": kind, **options} for kind, (options, _) in TRACKERS.items()]
    store = here / "mlflow.db"
    sections[0] |= {"uri": f"sqlite:///{store}", "experiment": "together"}
    sections[2] |= {"project": "together"}
    observer = Silent()
    file = campaign_file(track=[*sections, "tensorboard"], budget__evaluations=3)
    assert run_campaign(file, observer=observer)
    assert [said for said in observer.said if said.startswith("warning")] == []
    import trackio

    assert list(here.glob("runs/tiny/wandb/offline-run-*")) and store.exists()
    assert list(here.glob("runs/tiny/tensorboard/events*")) and trackio.Api().runs("together")


# --- dashboards ------------------------------------------------------------------------------


def asked(address):
    with urllib.request.urlopen(address) as answer:
        return json.loads(answer.read())


@pytest.fixture
def example(tmp_path):
    run = tmp_path / "example"
    run.mkdir()
    example_archive(run / "archive.db").close()
    for command in ("optuna", "datasette"):
        assert CliRunner().invoke(main, [command, str(run)]).exit_code == 0
    return run


def test_optunas_dashboard_opens_the_study(example):
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    words = [str(program), f"sqlite:///{example}/optuna.db", "--port", port]
    with started(words, f"http://127.0.0.1:{port}/api/studies") as address:
        (summary,) = asked(address)["study_summaries"]
        assert summary["study_name"] == "example"
        assert summary["directions"] == ["maximize", "minimize"]
        study = asked(f"{address}/{summary['study_id']}?after=0")
        trials = study["trials"]
        assert [t["state"] for t in trials] == ["Complete", "Complete", "Fail"]
        assert [t.get("values") for t in trials[:2]] == [[0.75, 16.0], [0.5, 10.0]]
        assert [t["number"] for t in study["best_trials"]] == [0, 1]
        assert study["objective_names"] == ["accuracy", "length"]
        attributes = {entry["key"]: entry["value"] for entry in trials[0]["user_attrs"]}
        assert json.loads(attributes["candidate"]) == 3


def test_datasette_shows_the_questions_and_the_columns(example):
    port = free_port()
    program = Path(sys.executable).with_name("datasette")
    words = [str(program), str(example / "archive.db"), "--port", port]
    words += ["--metadata", str(example / "metadata.json")]
    with started(words, f"http://127.0.0.1:{port}/archive.json") as address:
        base = address.removesuffix(".json")
        queries = {query["name"] for query in asked(address)["queries"]}
        assert queries == set(QUERIES)
        for name in queries:
            answer = asked(f"{base}/{name}.json?_shape=objects")
            assert answer["ok"] and not answer.get("error"), answer
        best = asked(f"{base}/best.json?_shape=objects")["rows"]
        assert [row["id"] for row in best] == [3, 4, 1, 2]
        facets = asked(f"{base}/candidates.json?_facet=origin")["facet_results"]
        counts = {row["value"]: row["count"] for row in facets["origin"]["results"]}
        assert counts == {"search": 3, "baseline": 2}
        with urllib.request.urlopen(f"{base}/outcomes") as page:
            text = page.read().decode()
        assert "what became of each candidate on search items" in text
        assert "spent merging" in text
