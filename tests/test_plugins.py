"""Plug-ins: an installed package's method, controller, space and fitness, and those that fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm
import yaml

PACKAGE = Path(__file__).with_name("plugin_package")

LAWS = """
from evomerge.testing import controller_laws, method_laws
for law in method_laws:
    law("squared")
for law in controller_laws:
    law("sweep")
print("kept")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that the example is installed in, by pip and its build backend."""
    folder = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source") / "package"
    for file in PACKAGE.rglob("*"):
        if file.suffix in (".py", ".toml"):  # building leaves files beside them
            copy = source / file.relative_to(PACKAGE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", folder]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, source], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return folder


def with_plugins(*folders: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def distribution(folder: Path, name: str, entry: str, code: str) -> Path:
    """Lay an installed package of one module down, as pip would."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[evomerge.controllers]\nx = {entry}\n")
    (folder / f"{entry}.py").write_text(code)
    return folder


def test_a_plugin_keeps_the_laws(installed):
    run = warm.run(["-c", LAWS], env=with_plugins(installed))
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "kept\n"


def test_a_campaign_of_nothing_but_plugins_runs_and_says_whose_they_are(installed, here):
    plan = {
        "name": "plugged",
        "sources": {"base": "base", "models": {"a": "a", "b": "b"}},
        "space": {"kind": "dial"},
        "controller": {"kind": "sweep", "share": 0.5},
        "fitness": [{"name": "small", "norm_of": 12}],
        "heldout": 0.25,
        "budget": {"evaluations": 3},
    }
    (here / "plan.yaml").write_text(yaml.safe_dump(plan))
    env = with_plugins(installed)
    run = warm.run(["-m", "evomerge", "run", "plan.yaml"], env=env, cwd=here)
    assert run.returncode == 0, run.stderr
    shown = warm.run(["-m", "evomerge", "show", "runs/plugged", "5", "--json"], env=env, cwd=here)
    recipe = json.loads(shown.stdout)["recipe"]
    assert recipe["method"] == "squared"
    from evomerge.archive.archive import Archive

    archive = Archive(here / "runs/plugged/archive.db")
    assert archive.counts()["ok"] == 7
    assert archive.campaign["provenance"]["machine"]["plugins"] == {"evomerge-example": "0.3"}


def test_they_are_listed_with_their_package(installed, here):
    env = with_plugins(installed)
    run = warm.run(["-m", "evomerge", "list", "--json"], env=env, cwd=here)
    listed = json.loads(run.stdout)
    own = {kind: {e["name"] for e in entries if e["package"]} for kind, entries in listed.items()}
    assert own == {
        "methods": {"squared"},
        "controllers": {"sweep"},
        "spaces": {"dial"},
        "fitness": {"norm_of"},
        "trackers": set(),
        "learners": set(),
    }
    text = warm.run(["-m", "evomerge", "list", "spaces"], env=env, cwd=here).stdout
    assert "of the package evomerge-example 0.3" in text


def test_one_that_cannot_be_imported_is_left_out_and_said_so(tmp_path, here):
    broken = distribution(tmp_path / "site", "evomerge_broken", "broken", "import no_such_thing\n")
    run = warm.run(["-m", "evomerge", "list", "controllers"], env=with_plugins(broken), cwd=here)
    assert run.returncode == 0 and "cmaes:" in run.stdout
    (line,) = run.stderr.splitlines()
    assert line.startswith("the plug-in evomerge_broken 1.0 is left out: broken cannot be imported")


def test_a_name_that_is_taken_is_an_error_that_names_both(tmp_path, here):
    code = (
        "from evomerge.search.controllers import CONTROLLERS\nCONTROLLERS.add('random', object)\n"
    )
    site = distribution(tmp_path / "site", "evomerge_clash", "clash", code)
    run = warm.run(["-m", "evomerge", "list", "controllers"], env=with_plugins(site), cwd=here)
    assert run.returncode == 1
    said = "two controllers are called 'random', of the package evomerge_clash 1.0 and of evomerge"
    assert run.stderr == f"evomerge: {said}; uninstall one, or have it renamed\n"


def test_what_lies_in_the_folder_of_a_run_is_no_plugin(here):
    distribution(here, "evomerge_lying", "lying", "open('was run', 'w')\n")
    run = warm.run(["-m", "evomerge", "list", "controllers"], cwd=here)
    assert run.returncode == 0 and run.stderr == ""
    assert not (here / "was run").exists()
