"""An exported directory is an ordinary model with the scored weights, bit for bit."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
import warm
import yaml
from safetensors.torch import load_file, save_file
from sql import change

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import BadInput, EvomergeError
from evomerge.export.candidates import export_candidate
from evomerge.export.model_directory import merge_to
from evomerge.kernels.checksum import Checksum
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.parse import parse_recipe
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where the run of the fixture below is kept."""
    return tmp_path_factory.mktemp("exported") / "run"


@pytest.fixture
def run(finished, campaign_file, here, silent):
    """A finished campaign over an lm-eval task, all of whose items are search items."""
    directory = here / "runs" / "tiny"
    if finished.exists():
        shutil.copytree(finished, directory)
        return directory
    entry = [{"name": "choice", "task": "choice.yaml", "metric": "acc", "batch_size": 16}]
    file = campaign_file(fitness=entry, heldout=0.0, budget__evaluations=8)
    run_campaign(file, observer=silent)
    shutil.copytree(directory, finished)
    return directory


def stored_checksum(directory):
    """The checksum of what lies on disk, read by safetensors alone."""
    checksum = Checksum()
    source = open_source(str(directory))
    tensors = {}
    for file in sorted({t.file for t in source.tensors.values()}):
        tensors |= load_file(file)
    for name in source.tensors:
        checksum.update(name, tensors[name])
    return checksum.hexdigest()


def test_export_is_bit_for_bit_what_was_scored(run, here):
    archive = Archive(run / "archive.db")
    best = archive.best()
    candidate, checksum, how, _ = export_candidate(run, here / "out", "best", {}, True)
    assert (candidate, how) == (best, "as scored")
    assert checksum == archive.outcome(best)["weights_checksum"] == stored_checksum(here / "out")
    assert not [p for p in here.iterdir() if p.name.endswith(".tmp")]


def test_plain_transformers_loads_it_and_scores_the_same(run, here):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.scoring.fitness import TaskSection
    from evomerge.scoring.lm_eval_model import LoadedModel
    from evomerge.scoring.open_fitness import open_fitness

    export_candidate(run, here / "out", "7", {}, True)
    model = AutoModelForCausalLM.from_pretrained(here / "out", dtype="auto").eval()
    assert model.dtype == torch.bfloat16
    section = TaskSection(name="choice", task="choice.yaml", metric="acc", batch_size=16)
    fitness = open_fitness(section)
    tokenizer = AutoTokenizer.from_pretrained(here / "out")
    fitness.prepare(LoadedModel(model, tokenizer), range(60))
    with torch.inference_mode():
        again = fitness.score(list(range(60)))
    archive = Archive(run / "archive.db")
    assert np.array_equal(again, archive.item_scores(7, "choice", "search"))


def test_lm_evals_own_command_line_gives_the_archived_score(run, here):
    export_candidate(run, here / "out", "best", {}, True)
    command = [
        "-m", "lm_eval", "run", "--model", "hf",
        "--model_args", f"pretrained={here / 'out'},dtype=bfloat16",
        "--tasks", "tiny_choice", "--include_path", str(here), "--device", "cpu",
        "--batch_size", "16", "--output_path", str(here / "results"),
    ]  # fmt: skip
    done = warm.run(command, env=os.environ | {"LMEVAL_LOG_LEVEL": "ERROR"})
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (here / "results").rglob("results*.json")
    score = json.loads(file.read_text())["results"]["tiny_choice"]["acc,none"]
    archive = Archive(run / "archive.db")
    assert score == pytest.approx(archive.means(archive.best())["choice"], abs=1e-12)


def test_the_directory_has_what_the_contract_says(run, here):
    export_candidate(run, here / "out", "7", {}, True)
    names = {p.name for p in (here / "out").iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "recipe.json", "mergekit_config.yml", "README.md",
    }  # fmt: skip
    card = (here / "out" / "README.md").read_text()
    front_matter = yaml.safe_load(card.split("---")[1])
    assert front_matter["tags"][:2] == ["mergekit", "merge"]
    assert "held-out" in card and "sha256" in card and "seed 7" in card
    recipe = parse_recipe(json.loads((here / "out" / "recipe.json").read_text()))
    assert recipe.to_json() == Archive(run / "archive.db").candidate(7).recipe_json


def test_weights_that_are_not_the_scored_ones_are_not_exported(run, here):
    change(run, "UPDATE outcomes SET weights_checksum = 'x' WHERE candidate_id = 7")
    with pytest.raises(EvomergeError, match="but x was scored"):
        export_candidate(run, here / "out", "7", {}, True)
    assert not (here / "out").exists()
    assert not [p for p in here.iterdir() if p.name.endswith(".tmp")]
    assert export_candidate(run, here / "out", "7", {}, False)[0] == 7


def test_picks_that_will_not_do(run, here):
    for pick, message in (("worst", "there is no 'worst'"), ("99", "candidate 99 is not there")):
        with pytest.raises(BadInput, match=message):
            export_candidate(run, here / "out", pick, {}, True)
    assert (
        export_candidate(run, here / "out", "choice", {}, True)[0]
        in Archive(run / "archive.db").front()
    )
    with pytest.raises(BadInput, match="is there already"):
        export_candidate(run, here / "out", "best", {}, True)
    with pytest.raises(BadInput, match="--source: z: is no source of this campaign"):
        export_candidate(run, here / "other", "best", {"z": "a"}, True)


def test_a_source_that_changed_since_is_not_merged(campaign_file, here, silent, world):
    run_campaign(campaign_file(budget__evaluations=2), observer=silent)
    (here / "a").unlink()
    (here / "a").symlink_to(world / "b")
    with pytest.raises(BadInput, match="is not the model that was searched"):
        export_candidate(here / "runs" / "tiny", here / "out", "7", {}, True)


@pytest.fixture
def recipe(here):
    values = {"weight": (0.4, 0.7), "density": (0.5, 0.9)}
    return ParametersRecipe("ties", ("a", "b"), (Group(None, None, values),), "base")


def test_merge_writes_a_recipe_without_a_campaign(here, recipe):
    from click.testing import CliRunner

    (here / "recipe.json").write_text(json.dumps(recipe.to_json()))
    done = CliRunner().invoke(main, ["merge", "recipe.json", "out"])
    assert done.exit_code == 0 and "-> out" in done.output
    done = CliRunner().invoke(main, ["merge", "out/recipe.json", "again"])
    assert done.exit_code == 0
    assert stored_checksum(here / "out") == stored_checksum(here / "again")


def test_merge_faults_are_lines(here, recipe):
    from click.testing import CliRunner

    broken = recipe.to_json() | {"models": ["a", "nowhere"], "method": "linear", "base": None}
    (here / "recipe.json").write_text(json.dumps(broken))
    done = CliRunner().invoke(main, ["merge", "recipe.json", "out"])
    assert done.exit_code == 2 and "linear has no 'density'" in done.output
    (here / "recipe.json").write_text("{")
    assert "is not JSON" in CliRunner().invoke(main, ["merge", "recipe.json", "out"]).output
    assert not (here / "out").exists()


def test_shards_are_indexed_and_load(here, recipe):
    from transformers import AutoModelForCausalLM

    whole = merge_to(recipe, here / "whole")
    parts = merge_to(recipe, here / "parts", shard_bytes=3000)
    assert whole == parts == stored_checksum(here / "parts")
    assert len(list((here / "parts").glob("model-*.safetensors"))) > 2
    states = [
        AutoModelForCausalLM.from_pretrained(here / d).state_dict() for d in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert digest(open_source("whole")).sha256 == digest(open_source("parts")).sha256


def test_a_failure_half_way_leaves_no_directory(here, recipe, monkeypatch):
    from evomerge.export import model_directory as export

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_config", full)
    with pytest.raises(EvomergeError, match=r"cannot be written: No space left on device"):
        merge_to(recipe, here / "out")
    assert not [p for p in here.iterdir() if "out" in p.name]


def test_mergekit_config_says_the_recipe(here):
    groups = tuple(
        Group(layers, modules, {"weight": (w, 1 - w), "density": (0.5, d), "scale": 1.2})
        for layers, modules, w, d in [
            ((0, 1), "mlp", 0.1, 0.2), ((0, 1), None, 0.2, 0.3), ((1, 2), "mlp", 0.3, 0.4),
            ((1, 2), None, 0.4, 0.5), ("embed", None, 0.6, 0.6), ("norm", None, 0.7, 0.7),
            ("head", None, 0.8, 0.8),
        ]
    )  # fmt: skip
    from evomerge.mergekit.writer import to_mergekit

    recipe = ParametersRecipe("ties", ("a", "b"), groups, "base")
    said = yaml.safe_load(to_mergekit(recipe, open_source("base")))
    assert said["merge_method"] == "ties" and said["base_model"] == "base"
    assert said["out_dtype"] == "bfloat16" and said["parameters"] == {"normalize": True}
    first, last = said["slices"]
    base, a, b = first["sources"]
    assert base == {"model": "base", "layer_range": [0, 1]}
    assert a["parameters"]["weight"] == [
        {"filter": "model.embed_tokens.weight", "value": 0.6},
        {"filter": "mlp", "value": 0.1},
        {"value": 0.2},
    ]
    assert b["parameters"]["density"][-1] == {"value": 0.3}
    assert last["sources"][1]["parameters"]["weight"][0] == {
        "filter": "model.norm.weight", "value": 0.7
    }  # fmt: skip
    assert first["parameters"]["lambda"][-1] == {"value": 1.2}
    drawn = ParametersRecipe("dare_ties", ("a", "b"), groups, "base", seed=1)
    assert to_mergekit(drawn, open_source("base")) is None  # its masks cannot be reproduced


def test_sources_with_nan_are_refused_before_anything_is_merged(here):
    """Also by `merge`, where no campaign has looked at them; masks would hide the NaN."""
    shutil.copytree(here / "a", here / "broken")
    tensors = load_file(here / "broken" / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, here / "broken" / "model.safetensors")
    recipe = recipe_of("ties", ["broken", "b"], "base")
    with pytest.raises(BadInput, match=f"'broken' has NaN or infinity in {re.escape(name)}"):
        merge_to(recipe, here / "out")
    assert not (here / "out").exists()
