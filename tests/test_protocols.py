"""The campaigns of search_spaces/protocols: they name what is there, and pass the check.

Their models and tasks are on the hub. So tiny models stand in for the sources, tasks with local
data for the tasks, and of lm-eval's own tasks the files are read, which need no data.
"""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from evomerge.campaign.build import checked
from evomerge.cli.main import main
from evomerge.testing import tiny_llama
from evomerge.testing.tiny import WORDS

FOLDER = Path(__file__).parents[1] / "search_spaces" / "protocols"
FILES = sorted(FOLDER.glob("*.yaml"))
LOCAL = {
    "generation": {"task": "generation.yaml", "metric": "exact_match"},
    "choice": {"task": "choice.yaml", "metric": "acc"},
    "rolling": {"task": "rolling.yaml", "metric": "bits_per_byte"},
}
CALLED = {"pass@1": "pass_at_k"}  # metrics whose name in a task's file is that of a function


def plan_of(file):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def labels_of(plan):
    sources = plan["sources"]
    return [*(["base"] if "base" in sources else []), *sources["models"]]


def tasks_of(entry):
    return entry.get("tasks") or [entry["task"]]


def text_of(path: Path) -> str:
    """A task's file, and those that it includes."""
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("include:"):
            text += text_of(path.parent / line.partition(":")[2].strip())
    return text


def local(entry):
    """An entry with a local task of the same kind in the place of its own."""
    metric = entry["metric"]
    kind = "choice" if metric.startswith("acc") else "generation"
    kind = "rolling" if metric == "bits_per_byte" else kind
    kept = {key: value for key, value in entry.items() if key not in ("tasks", "allow_code")}
    kept.pop("aggregate", None)
    return kept | LOCAL[kind] | ({"items": 40} if "items" in entry else {})


@pytest.fixture(scope="module")
def stand_ins(world, tmp_path_factory):
    """Tiny models of one base: as many as a campaign has labels, some with padded embeddings."""
    folder = tmp_path_factory.mktemp("stand_ins")
    base = tiny_llama(folder / "0", 0, layers=3)
    for number in range(1, 6):
        tiny_llama(folder / str(number), number, near=base, spread=0.05)
    return folder


def padded(directory: Path, out: Path) -> Path:
    """The same model with eight rows of embeddings that no token has."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    model.resize_token_embeddings(len(WORDS) + 8)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(directory).save_pretrained(out)
    return out


def moved(file, stand_ins, tmp_path) -> dict[str, str]:
    found = {}
    for number, label in enumerate(labels_of(plan_of(file))):
        directory = stand_ins / str(number)
        if "llama" in file.stem and label != "base":
            directory = padded(directory, tmp_path / label)
        found[label] = str(directory)
    return found


def settings_of(file) -> list[str]:
    plan = plan_of(file)
    found = [f"fitness={json.dumps([local(entry) for entry in plan['fitness']])}"]
    if "guard" in plan:
        found.append(f"guard={json.dumps([local(entry) for entry in plan['guard']])}")
    return [*found, "workers={pool: inline, threads: 1}"]


def test_there_are_protocols():
    assert len(FILES) == 6


@pytest.mark.xdist_group("index")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_tasks_and_metrics_are_those_of_lm_eval(file, task_manager):
    index = task_manager().task_index
    plan = plan_of(file)
    for entry in [*plan["fitness"], *plan.get("guard", [])]:
        metric, _, filtered = entry["metric"].partition(",")
        for task in tasks_of(entry):
            assert task in index, task
            text = text_of(Path(index[task].yaml_path))
            assert CALLED.get(metric, metric) in text, f"{task} has no {metric}"
            assert filtered in text, f"{task} has no filter {filtered}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_with_stand_ins_they_pass_the_check(file, here, stand_ins, tmp_path):
    words = ["check", str(file), "--json"]
    for label, place in moved(file, stand_ins, tmp_path).items():
        words += ["--source", f"{label}={place}"]
    for setting in settings_of(file):
        words += ["--set", setting]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    estimate = json.loads(done.output)
    estimate = estimate[0] if isinstance(estimate, list) else estimate
    models = len(plan_of(file)["sources"]["models"])
    assert estimate["genes"] >= models


def test_an_ablation_s_candidates_are_plain_averages_of_subsets(here, stand_ins, tmp_path):
    file = FOLDER / "data-ablation.yaml"
    (campaign,) = checked(file, settings_of(file), moved(file, stand_ins, tmp_path))
    genomes = [[n >> bit & 1 for bit in range(5)] for n in range(1, 32)]
    found = set()
    for genome in genomes:
        recipe = campaign.space.decode(campaign.space.start * 0 + genome)
        (weights,) = {group.values["weight"] for group in recipe.groups}
        assert set(weights) <= {0.0, 1.0}
        found.add(weights)
    assert len(found) == 31


def test_the_next_step_of_a_temporal_merge_takes_what_the_last_one_found(
    here, stand_ins, tmp_path, silent
):
    from evomerge.campaign.run import run_campaign

    file = FOLDER / "temporal-merging.yaml"
    places = moved(file, stand_ins, tmp_path)
    settings = [*settings_of(file), "budget.evaluations=3", "finals=0"]
    first = here / "runs" / "temporal-1"
    assert run_campaign(file, directory=first, settings=settings, moved=places, observer=silent)
    places = {"base": places["base"], "new": str(stand_ins / "3")}
    settings += ["name=temporal-2", f"sources.models.before={first}#best"]
    (campaign,) = checked(file, settings, places)
    assert any(str(first) in source for source in campaign.sources)
