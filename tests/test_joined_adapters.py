"""Weighted sums of adapters as one adapter: PEFT merges it as we do, and what is none says so."""

import json

import pytest
import torch
from click.testing import CliRunner
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from test_adapters import VARIANTS, adapted
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evomerge.archive.archive import Archive
from evomerge.campaign.run import run_campaign
from evomerge.cli.main import main
from evomerge.errors import BadInput, EvomergeError
from evomerge.export.model_directory import merge_to
from evomerge.merging.joined_adapter import join_adapters
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import Group, ParametersRecipe, single, uniform
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT talks of tied weights


def pool(folder, *variants):
    """Write an untied float32 base and adapters of it; return the names of all."""
    base = folder / "wide"
    tiny_llama(base, 0, dtype="float32", tie=False)
    names = []
    for seed, variant in enumerate(variants):
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted(model, folder / f"lora{seed}", VARIANTS[variant], seed)
        if variant == "embeddings":  # which PEFT would save whole beside their factors
            file = folder / f"lora{seed}" / "adapter_model.safetensors"
            kept = {n: t for n, t in load_file(file).items() if "base_layer" not in n}
            save_file(kept, file)
        names.append(f"{base}+{folder / f'lora{seed}'}")
    return str(base), names


def by_groups(base, models, dtype="float32"):
    """A recipe whose weights differ between layers and modules, some of them zero."""
    groups = [
        ((0, 1), "self_attn", [0.7, -0.4, 0.2]),
        ((1, 2), None, [0.0, 1.3, 0.5]),
        (None, None, [0.3, 0.0, 0.9]),
    ]
    groups = [Group(at, held, {"weight": tuple(w[: len(models)])}) for at, held, w in groups]
    return ParametersRecipe("task_arithmetic", tuple(models), tuple(groups), base, dtype)


def merged_by_peft(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def assert_alike(folder, wanted):
    """A full export's tensors are those of a state, to float32's rounding."""
    for name, ours in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(ours, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "variants",
    [("plain", "rank-stabilized", "patterns"), ("embeddings", "plain", "embeddings")],
    ids=["layers", "embeddings"],
)
def test_peft_merges_it_to_the_same_weights(tmp_path, variants):
    base, models = pool(tmp_path, *variants)
    recipe = by_groups(base, models)
    full = merge_to(recipe, tmp_path / "full")
    assert merge_to(recipe, tmp_path / "adapter", as_adapter=True) == full  # to the last bit
    assert_alike(tmp_path / "full", merged_by_peft(base, tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    ranks = {len(tensor) for name, tensor in factors.items() if "_A" in name}
    assert len(ranks) > 1 and ranks == {config["r"], *config["rank_pattern"].values()}
    assert all(tensor.dtype == torch.float32 for tensor in factors.values())


def test_a_bfloat16_merge_of_it_is_the_same_to_the_last_bit(tmp_path):
    base, models = pool(tmp_path, "plain", "patterns")
    recipe = by_groups(base, models, "bfloat16")
    full = merge_to(recipe, tmp_path / "full")
    assert merge_to(recipe, tmp_path / "adapter", as_adapter=True) == full
    again = merge_to(single(f"{base}+{tmp_path / 'adapter'}", "bfloat16"), tmp_path / "again")
    assert again == full


def test_weights_that_are_stored_transposed(tmp_path):
    shape = {"vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    base, models = str(tmp_path / "base"), []
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(base)
    for seed in range(2):
        options = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "r": 3 + seed}
        adapted(GPT2LMHeadModel.from_pretrained(base), tmp_path / f"{seed}", options, seed)
        models.append(f"{base}+{tmp_path / str(seed)}")
    recipe = by_groups(base, models)
    full = merge_to(recipe, tmp_path / "full")
    assert merge_to(recipe, tmp_path / "adapter", as_adapter=True) == full
    assert_alike(tmp_path / "full", merged_by_peft(base, tmp_path / "adapter"))


def test_averages_and_single_models_are_adapters(tmp_path):
    base, models = pool(tmp_path, "plain", "patterns")
    averaged = uniform(tuple(models), "float32")
    doubled = recipe_of("linear", models, base, weight=2.0)  # divided by their sum
    stock = recipe_of("model_stock", models, base)
    recipes = (averaged, doubled, stock, single(models[1], "float32"))
    for number, recipe in enumerate(recipes):
        out, full = tmp_path / f"out{number}", tmp_path / f"full{number}"
        assert merge_to(recipe, out, as_adapter=True) == merge_to(recipe, full)
        assert_alike(full, merged_by_peft(base, out))


def test_what_is_no_adapter_says_why(tmp_path):
    base, models = pool(tmp_path, "plain", "patterns", "replaced")
    other = str(tiny_llama(tmp_path / "other", 1, dtype="float32", tie=False))
    two = models[:2]
    recipes = {
        "method: ties makes no weighted sum": recipe_of("ties", two, base),
        "method: wudi makes no weighted sum": recipe_of("wudi", two, base),
        r"groups: the models' weights sum to 1.4 in .*, which scales the base too": recipe_of(
            "linear", two, base, weight=0.7, options={"normalize": False}
        ),
        "groups: the models' weights sum to": recipe_of("slerp", two, base, t=0.5),
        r"models: '.*' is no LoRA adapter of '.*'": uniform((models[0], other), "float32"),
        r"models: '.*lora2' puts whole tensors \(model.*norm.weight\)": single(
            models[2], "float32"
        ),
        "models: the merge is the base as it is": single(base, "float32"),
        "models: the merge is the base as it is, and adds": recipe_of(
            "task_arithmetic", two, base, weight=0.0
        ),
    }
    for number, (message, recipe) in enumerate(recipes.items()):
        with pytest.raises(BadInput, match=message) as error:
            merge_to(recipe, tmp_path / f"out{number}", as_adapter=True)
        assert len(str(error.value).splitlines()) == 1
        assert not (tmp_path / f"out{number}").exists()


def test_a_candidate_is_exported_as_an_adapter(campaign_file, here, silent):
    """With all that a full export has, and by the weights that were scored."""
    base, models = pool(here, "plain", "patterns")
    labelled = {"x": models[0], "y": {"model": base, "adapter": str(here / "lora1")}}
    file = campaign_file(sources={"base": base, "models": labelled}, budget__evaluations=3)
    run_campaign(file, observer=silent)
    run, command = str(here / "runs" / "tiny"), CliRunner().invoke
    told = command(main, ["export", run, str(here / "out"), "--as-adapter"])
    assert told.exit_code == 0, told.output
    archive = Archive(here / "runs" / "tiny" / "archive.db")
    best = archive.best()
    scored = archive.outcome(best)["weights_checksum"]
    line = f"(adapter, which merges to weights {scored}, as scored)"
    assert f"candidate {best} -> {here / 'out'} {line}" in told.output
    assert command(main, ["export", run, str(here / "full")]).exit_code == 0
    assert_alike(here / "full", merged_by_peft(base, here / "out"))
    names = {path.name for path in (here / "out").iterdir()}
    whole = {path.name for path in (here / "full").iterdir()}
    assert names - whole == {"adapter_config.json", "adapter_model.safetensors"}
    assert whole - names == {"config.json", "model.safetensors"}
    loaded = AutoPeftModelForCausalLM.from_pretrained(here / "out")  # finds its base
    assert loaded.peft_config["default"].lora_alpha == loaded.peft_config["default"].r
    card = (here / "out" / "README.md").read_text()
    assert "library_name: peft" in card and "It is a LoRA adapter" in card
    again = ["merge", str(here / "out" / "recipe.json"), str(here / "again"), "--as-adapter"]
    assert command(main, again).exit_code == 0
    for ours, theirs in zip(
        *(load_file(here / at / "adapter_model.safetensors").values() for at in ("out", "again")),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    assert open_source(f"{base}+{here / 'out'}").adapter.factors


def test_what_is_none_is_refused_in_one_line(here):
    recipe = here / "recipe.json"
    recipe.write_text(json.dumps(uniform(("a", "b"), "bfloat16").to_json()))

    def told(out):
        return CliRunner().invoke(main, ["merge", str(recipe), str(here / out), "--as-adapter"])

    assert told("out").exit_code == told("o+t").exit_code == 2
    assert "models: 'b' is no LoRA adapter of 'a'; take a recipe of" in told("out").output
    assert "name a path without one" in told("o+t").output
    assert not (here / "out").exists() and not (here / "o+t").exists()


def test_an_export_of_what_was_scored_as_an_adapter_is_compared_by_its_factors(tmp_path):
    base, models = pool(tmp_path, "plain", "patterns")
    recipe = by_groups(base, models)
    opened = {name: open_source(name) for name in (base, *models)}
    merger = Merger(opened, dict.fromkeys(opened, ""))
    scored = join_adapters(merger, recipe).checksum()
    assert scored != join_adapters(merger, by_groups(base, models[::-1])).checksum()
    full = merge_to(recipe, tmp_path / "full", adapter_checksum=scored)
    lora = merge_to(recipe, tmp_path / "lora", adapter_checksum=scored, as_adapter=True)
    assert full == lora
    with pytest.raises(EvomergeError, match=r"the adapter's factors have checksum .* was scored"):
        merge_to(recipe, tmp_path / "other", adapter_checksum="0" * 32)
    alone = recipe_of("task_arithmetic", models, base, weight=0.0)
    assert not join_adapters(merger, alone).factors  # the base, served as it is
    nothing = join_adapters(merger, single(base, "float32")).checksum()
    merge_to(alone, tmp_path / "base", adapter_checksum=nothing)
