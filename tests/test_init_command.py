"""The first campaign file, from answers and from options."""

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import evomerge
from evomerge.campaign.build import checked
from evomerge.cli.main import main
from evomerge.drafts import advice
from evomerge.drafts.campaign_text import Draft
from evomerge.drafts.found_here import models_below, tasks_below
from evomerge.merging.methods import METHODS
from evomerge.search.spaces import SourceShapes
from evomerge.search.spaces.parameters import ParametersSection, ParametersSpace
from evomerge.sections import parse
from evomerge.testing import tiny_llama
from evomerge.yaml_file import parse_yaml

ROOT = Path(evomerge.__file__).parent.parent


FUNCTION = """
def items():
    return list(range(40))


def score(model, tokenizer, items):
    return [0.0 for item in items]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded tiny models and their tasks, as a user's own folder has them."""
    folder = tmp_path_factory.mktemp("mine")
    for name in ("base", "ja", "fr"):
        shutil.copytree(ROOT / "search_spaces/tiny_models" / name, folder / "models" / name)
    shutil.copytree(ROOT / "fitness/crosslingual", folder / "tasks")
    tiny_llama(folder / "other/small", 0)
    (folder / "brevity.py").write_text(FUNCTION)
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """A fresh folder beside the same models and tasks, entered."""
    for name in ("models", "tasks", "other", "brevity.py"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words, answers=None):
    said = None if answers is None else "\n".join(answers) + "\n"
    return CliRunner().invoke(main, ["init", *words], input=said)


OPTIONS = ["-m", "models", "-t", "tasks/maths_ja.yaml", "-t", "tasks/maths_fr.yaml", "--yes"]


def test_options_make_a_campaign_that_passes_the_check_and_says_why(here):
    done = init(*OPTIONS, "--name", "mine")
    assert done.exit_code == 0, done.output
    (campaign,) = checked(here / "campaign.yaml")
    plan = campaign.plan
    assert plan.sources.base == "models/base" and list(plan.sources.models) == ["fr", "ja"]
    assert plan.space.method == "task_arithmetic" and campaign.space.dimension == 10
    assert [section.name for section in plan.fitness] == ["maths_ja", "maths_fr"]
    assert plan.heldout == 0.5 and plan.budget.items == 19_000 and plan.workers.pool == "inline"
    text = (here / "campaign.yaml").read_text()
    assert "few fine-tunes of one base" in text
    assert "(4 and what is outside the layers) x 2 = 10 genes" in text
    assert max(map(len, text.splitlines())) <= 100
    for command in (
        "check campaign.yaml",
        "run campaign.yaml",
        "front runs/mine",
        "export runs/mine",
    ):
        assert f"  evomerge {command}" in done.output
    assert "models/ja: llama, 1.3 M parameters, 6 layers, bfloat16" in done.output
    again = init(*OPTIONS)
    assert again.exit_code == 2 and "campaign.yaml: is there already" in again.output
    assert (here / "campaign.yaml").read_text() == text


def test_wrong_answers_are_told_at_once_and_asked_again(here):
    answers = [
        "./nowhere", "models/ja", "models/ja", "other/small", "", "models/fr", "",
        "./nobase", "models/base",
        "", "tasks/nothing.yaml", "tasks/maths_ja.yaml", "brevity.py", "",
        "most", "40 %",
        "two", "front",
        "tise", "lora_lego", "ties",
        "my merge", "mine",
        "many", "10", "20000",
    ]  # fmt: skip
    done = init("own.yaml", answers=answers)
    assert done.exit_code == 0, done.output
    for line in (
        "  there is no directory './nowhere'",
        "  'models/ja' is listed already",
        "'other/small' and 'models/ja' differ in num_hidden_layers: 2 and 6",
        "  1 model is too few",
        "  there is no directory './nobase'",
        "  there is none; name one or more",
        "  there is no file 'tasks/nothing.yaml'",
        "  'most' is no share",
        "  'two' is neither",
        "  there is no merge method 'tise'; did you mean 'ties'?",
        "  lora_lego merges LoRA adapters alone",
        "  'my merge' is no plain name",
        "  'many' is no budget",
        "  budget.items: 10 items do not pay for the baselines",
    ):
        assert line in done.output, line
    (campaign,) = checked(here / "own.yaml")
    plan = campaign.plan
    assert plan.sources.base == "models/base" and plan.space.method == "ties"
    assert plan.controller.kind == "como" and plan.heldout == 0.4
    assert [section.name for section in plan.fitness] == ["maths_ja", "brevity"]
    assert "where less is better, add direction: minimize" in (here / "own.yaml").read_text()
    assert "found here: models/base, models/fr, models/ja, other/small" in done.output
    assert "Tasks found here: tasks/maths_en.yaml" in done.output


def test_answers_that_end_too_soon_and_missing_options_write_nothing(here):
    done = init(answers=["models/ja"])
    assert done.exit_code == 2
    assert done.output.endswith("give it, or --yes for what is recommended\n")
    assert "--model: there is no more answer on stdin" in done.output
    done = init("--yes")
    assert done.exit_code == 2 and done.output == "--model: is missing; give it, once for each\n"
    done = init("-m", "models", "--yes")
    assert done.exit_code == 2 and "--task: is missing" in done.output
    done = init(*OPTIONS, "--budget", "10")
    assert done.exit_code == 2 and "--budget: budget.items: 10 items do not pay" in done.output
    done = init(*OPTIONS, "-t", "tasks/reading_en.yaml:acc_nrm")
    assert done.exit_code == 2 and "did you mean 'acc'?" in done.output
    assert not (here / "campaign.yaml").exists()


def test_a_folder_of_models_leaves_out_what_does_not_fit(here):
    (here / "mixed").mkdir()
    for name, target in (("a", "models/ja"), ("b", "models/fr"), ("c", "other/small")):
        (here / "mixed" / name).symlink_to(here / target)
    done = init("-m", "mixed", "-t", "tasks/maths_ja.yaml", "--yes")
    assert done.exit_code == 0, done.output
    assert "mixed/c is left out: 'mixed/c' and 'mixed/a' differ" in done.output
    (campaign,) = checked(here / "campaign.yaml")
    assert campaign.plan.space.method == "slerp" and campaign.plan.sources.base is None


def test_what_is_found_here_leaves_out_hidden_folders_and_runs(here):
    for name in (".cache/m", "runs/mine/m"):
        shutil.copytree(here / "other/small", here / name)
    (here / "tasks2").mkdir()
    (here / "tasks2/not.yaml").write_text("name: campaign\nfitness: [{task: x}]\n")
    (here / "tasks2/one.yaml").write_text("task: one\n")
    assert models_below(".") == ["models/base", "models/fr", "models/ja", "other/small"]
    assert "tasks2/one.yaml" in tasks_below(".") and "tasks2/not.yaml" not in tasks_below(".")


@pytest.mark.parametrize("count", [2, 3, 8, 20])
@pytest.mark.parametrize("has_base", [True, False])
def test_a_recommended_space_has_as_many_genes_as_a_search_bears(count, has_base):
    models = advice.Models(count, has_base, layers=32)
    labels = tuple(f"m{n}" for n in range(count))
    shapes = SourceShapes("base" if has_base else None, labels, labels, 32, "bfloat16", 0)
    for method in {advice.recommended_method(models)[0], *METHODS.all()}:
        known = METHODS.get(method)
        if (known.needs_base and not has_base) or (known.models and known.models != count):
            continue
        mapping = advice.space_of(method, models)
        space = ParametersSpace(parse(ParametersSection, mapping), shapes)
        assert 1 <= space.dimension <= 30, method
        assert advice.genes_text(mapping, models).endswith(f" = {space.dimension} genes")


def test_a_draft_is_read_back_as_it_is_and_breaks_no_long_word():
    mapping = {
        "name": "mine",
        "sources": {"models": {f"model-{n}": f"org/a-long-name-of-a-model-{n}" for n in range(9)}},
        "space": {"kind": "parameters", "axes": {"weight": {"low": 0.0, "high": 1e-7}}},
        "fitness": [{"name": "a", "task": "x" * 90}, {"name": "b: #", "task": "on", "weight": 0.5}],
        "workers": {"pool": "inline"},
    }
    comments = {"name": "said of it " * 12, "fitness.1": "the second"}
    text = Draft(mapping, comments, ["A header.", "- an item " * 15]).text
    assert parse_yaml(text) == mapping == yaml.safe_load(text)
    assert "# the second" in text
