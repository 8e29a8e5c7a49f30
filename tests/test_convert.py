"""Configurations of mergekit-evolve as campaigns over the same space."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from evomerge.campaign.build import checked
from evomerge.cli.main import main
from evomerge.drafts.command_line import INSTEAD
from evomerge.drafts.task_files import task_file
from evomerge.errors import BadInput
from evomerge.export.nested_recipes import merge_file
from evomerge.mergekit.evolve_form import read_evolve
from evomerge.mergekit.evolve_space import evolve_space
from evomerge.mergekit.reader import from_mergekit
from evomerge.merging.methods import METHODS
from evomerge.merging.validation import group_index
from evomerge.search.spaces import SourceShapes
from evomerge.search.spaces.parameters import ParametersSection, ParametersSpace
from evomerge.sections import parse
from evomerge.sources.source import open_source
from evomerge.sources.trust import NOBODY
from evomerge.testing import tiny_llama

LAYERS = 4

DATA = """
import datasets


def load(**options):
    rows = [{"q": f"w{i % 20} w{i}", "a": f"w{i % 9}", "c": ["w1", "w2"], "g": i % 2}
            for i in range(40)]
    return {"test": datasets.Dataset.from_list(rows)}
"""

HEAD = """
custom_dataset: !function data.load
test_split: test
doc_to_text: "{{q}}"
"""

SAY = f"""{HEAD}
output_type: generate_until
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["</s>"], do_sample: false, max_gen_toks: 2}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""

CHOOSE = f"""{HEAD}
output_type: multiple_choice
doc_to_choice: c
doc_to_target: g
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: f1, aggregation: f1, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a base of four layers and two fine-tunes, and tasks below tasks/."""
    folder = tmp_path_factory.mktemp("evolve")
    for seed, name in enumerate(("base", "x", "y")):
        tiny_llama(folder / name, seed, layers=LAYERS, near=folder / "base" if seed else None)
    (folder / "tasks").mkdir()
    (folder / "tasks/data.py").write_text(DATA)
    for name, text in (("say", SAY), ("choose", CHOOSE), ("sort", CHOOSE)):
        (folder / f"tasks/{name}_file.yaml").write_text(f"task: {name}\n{text}")
    return folder


def config(here, text, **genome):
    """What a configuration says, models put in place of their names."""
    data = yaml.safe_load(text)
    data["genome"] |= genome
    for key in ("base_model", "models"):
        said = data["genome"].get(key)
        if isinstance(said, list):
            data["genome"][key] = [str(here / name) for name in said]
        elif said:
            data["genome"][key] = str(here / said)
    return data


def convert(here, tmp_path, data, *options):
    """Run the command; return its result and where the campaign is."""
    file, out = tmp_path / "evolve.yml", tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(data))
    words = ["convert", str(file), str(out), "--task-search-path", str(here / "tasks"), *options]
    return CliRunner().invoke(main, words), out


# --- five configurations that people have published, by their structure ----------------------

# Japanese and maths: the base is one of the models, and the file has a key of its author's.
JAPANESE_MATHS = """
model_name: ours-v0.1
genome:
  models: [x, y, base]
  merge_method: task_arithmetic
  base_model: base
  layer_granularity: 1
  allow_negative_weights: true
tasks:
  - {name: choose, weight: 0.2}
  - {name: sort, weight: 0.4}
  - {name: say, weight: 0.4, metric: "exact_match,none"}
"""

# One task that a judge scores; the base is the first of the models, and gives the tokenizer.
JUDGED = """
genome:
  models: [base, x, y]
  merge_method: dare_ties
  base_model: base
  tokenizer_source: base
  layer_granularity: 2
  allow_negative_weights: true
tasks: [{name: choose, weight: 1.0}]
"""

# The base apart, values interpolated over depth, nothing for a tokenizer.
SMOOTH = """
genome:
  models: [x, y]
  merge_method: dare_ties
  base_model: base
  tokenizer_source: null
  layer_granularity: 1
  allow_negative_weights: true
  smooth: true
tasks: [{name: choose, weight: 1.0}]
"""

# Safety and medicine: a group for each layer, a misspelt key, a tokenizer in another notation.
EACH_LAYER = """
genome:
  models: [base, x]
  merge_method: ties
  base_model: base
  tokenizer_source: "model:org/another"
  layer_granularity: 1
  normalize: false
  allow_negative_neights: true
tasks: [{name: choose, weight: 1.0}]
"""

# Three models without a base, averaged, weights of any sign.
AVERAGE = """
genome:
  models: [base, x, y]
  merge_method: linear
  layer_granularity: 2
  allow_negative_weights: true
tasks: [say_or_choose]
"""

# genes there without those of the base, and a line that has to be said
PUBLISHED = {
    "japanese maths": (JAPANESE_MATHS, 4 * 2, "model_name: mergekit-evolve reads past it"),
    "judged": (JUDGED, 2 * 2 * 2, "masks are drawn from the campaign's seed"),
    "smooth": (SMOOTH, 4 * 2 * 2, "divided by the sum of the weights' absolute values"),
    "each layer": (EACH_LAYER, 4 * 1 * 2, "did you mean 'allow_negative_weights'?"),
    "average": (AVERAGE, 2 * 3, "a weight is any number there, and -1 to 1 here"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_become_campaigns_that_pass_the_check(here, tmp_path, name):
    text, genes, line = PUBLISHED[name]
    done, out = convert(here, tmp_path, config(here, text.replace("say_or_choose", "choose")))
    assert done.exit_code == 0, done.output
    assert f"({genes} genes)" in done.output and line in done.output
    assert f"evomerge run {out}" in done.output
    (campaign,) = checked(out)
    assert campaign.space.dimension == genes
    said = [one for one in done.output.splitlines() if one.startswith("- ")]
    written = " ".join(re.sub(r"^# +", "", one) for one in out.read_text().splitlines())
    assert said and all(one in written for one in said), "what is printed is in the file too"


def test_a_converted_campaign_runs_to_its_end(here, tmp_path, monkeypatch):
    data = config(here, EACH_LAYER) | {"limit": 8}
    done, out = convert(here, tmp_path, data, "--max-fevals", "6", "--batch-size", "8")
    assert done.exit_code == 0, done.output
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["run", str(out)])
    assert done.exit_code == 0, done.output
    rows = json.loads(CliRunner().invoke(main, ["front", "runs/evolve", "--json"]).output)
    assert {row["origin"] for row in rows} >= {"baseline"}
    status = json.loads(CliRunner().invoke(main, ["status", "runs/evolve", "--json"]).output)
    assert status["state"] == "finished" and status["candidates"]["failed"] == 0


# --- the same space --------------------------------------------------------------------------


def as_mergekit(genome, genotype):
    """mergekit-evolve's candidate, in ten lines: slices of layers, or one with gradients."""
    filters = [*(genome.filters or []), None]
    step = genome.layer_granularity or LAYERS

    def said(values):
        return [{"filter": f, "value": v.tolist()} for f, v in zip(filters, values, strict=True)]

    def source(model, values, first, last):
        parameters = {p: said(values[..., n]) for n, p in enumerate(genome.genes)}
        return {"model": model, "layer_range": [first, last], "parameters": parameters}

    values = genotype if genome.allow_negative_weights else np.abs(genotype)
    apart = [] if genome.base_model in (None, *genome.models) else [{"model": genome.base_model}]
    if genome.smooth:
        by_model = [(m, values[:, n].transpose(1, 0, 2)) for n, m in enumerate(genome.models)]
        parts = {"models": [source(m, v, 0, LAYERS) for m, v in by_model] + apart}
    else:
        parts = {"slices": []}
        for n, first in enumerate(range(0, LAYERS, step)):
            last = first + step
            sources = [source(m, values[n, k], first, last) for k, m in enumerate(genome.models)]
            bases = [b | {"layer_range": [first, last]} for b in apart]
            parts["slices"].append({"sources": sources + bases})
    return parts | {
        "merge_method": genome.merge_method,
        "base_model": genome.base_model,
        "parameters": {"normalize": genome.is_normalized, "int8_mask": True},
        "dtype": "bfloat16",
    }


def our_recipe(here, genome, genotype):
    """The recipe of the genome that says what a genotype does, and the models in their order."""
    frame = open_source(str(here / "base"))
    base = None if genome.merge_method == "linear" else genome.base_model
    models = [model for model in genome.models if model != base]
    found = evolve_space(genome, models, frame.layers, frame.tensors)
    shapes = SourceShapes(base, tuple(models), tuple(models), LAYERS, "bfloat16", 0)
    space = ParametersSpace(parse(ParametersSection, found.space), shapes)
    filters = [*(genome.filters or []), None]
    point = []
    for gene in space.genes:
        at = gene.layer, genome.models.index(models[gene.model]), filters.index(gene.module)
        value = genotype[*at, genome.genes.index(gene.axis)]
        is_absolute = gene.axis == "density" or not genome.allow_negative_weights
        point.append(gene.unit(abs(value) if is_absolute else value))
    recipe = space.decode(np.array(point))
    assert space.encode(recipe) == pytest.approx(point)
    return recipe, frame


SPACES = {
    "all layers": {"merge_method": "linear", "models": ["x", "y", "base"]},
    "the base averaged too": {
        "merge_method": "linear", "models": ["x", "base"], "base_model": "base",
        "layer_granularity": 2,
    },
    "filters beyond the layers": {
        "merge_method": "linear", "models": ["x", "y"], "layer_granularity": 1,
        "filters": ["norm", "embed_tokens", "mlp"],
    },
    "negative weights": {
        "merge_method": "task_arithmetic", "models": ["x", "y", "base"], "base_model": "base",
        "layer_granularity": 2, "allow_negative_weights": True, "filters": ["self_attn", "mlp"],
    },
    "densities": {
        "merge_method": "ties", "models": ["x", "y"], "base_model": "base",
        "layer_granularity": 2, "normalize": False,
    },
    "smooth": {
        "merge_method": "ties", "models": ["x", "y"], "base_model": "base",
        "layer_granularity": 1, "smooth": True, "filters": ["norm"],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_a_genome_says_of_every_tensor_what_it_says_in_mergekit_evolve(here, name):
    data = config(here, yaml.safe_dump({"genome": SPACES[name], "tasks": ["choose"]}))
    genome = read_evolve(data)[0].genome
    groups = LAYERS // (genome.layer_granularity or LAYERS)
    shape = (groups, len(genome.models), len(genome.filters or []) + 1, len(genome.genes))
    for seed in range(3):
        genotype = np.random.default_rng(seed).uniform(-1.0, 1.0, shape)
        genotype[..., 1:] = np.abs(genotype[..., 1:])  # which mergekit-evolve cuts to [0, 1]
        theirs = from_mergekit(as_mergekit(genome, genotype))
        ours, frame = our_recipe(here, genome, genotype)
        assert (ours.method, ours.base) == (theirs.method, theirs.base)
        for tensor in frame.tensors:
            for axis in genome.genes:
                values = []
                for recipe in (ours, theirs):
                    found = recipe.groups[group_index(recipe, tensor)].values[axis]
                    values.append(dict(zip(recipe.models, found, strict=True)))
                assert values[0] == pytest.approx(values[1], abs=1e-12), (tensor, axis)
        default = METHODS.get(ours.method).options.get("normalize")
        normalizes = [r.options.get("normalize", default) for r in (ours, theirs)]
        assert normalizes[0] == normalizes[1]


@pytest.mark.parametrize("normalize", [False, True])
def test_a_genome_makes_the_weights_that_mergekits_configuration_makes(here, tmp_path, normalize):
    """Normalized task arithmetic is an average, which has no base here."""
    said = SPACES["negative weights"] | {"normalize": normalize, "allow_negative_weights": False}
    data = config(here, yaml.safe_dump({"genome": said, "tasks": ["choose"]}))
    genome = read_evolve(data)[0].genome
    genotype = np.random.default_rng(7).uniform(0.1, 1.0, (2, 3, 3, 1))
    ours, _ = our_recipe(here, genome, genotype)
    (tmp_path / "ours.json").write_text(json.dumps(ours.to_json()))
    merge_file(tmp_path / "ours.json", tmp_path / "ours", NOBODY)
    merged = load_file(tmp_path / "ours/model.safetensors")
    models = {name: load_file(here / name / "model.safetensors") for name in ("base", "x", "y")}
    for tensor, base in models["base"].items():
        layer = int(match[1]) if (match := re.search(r"layers\.(\d)", tensor)) else None
        group = {None: 0 if "embed" in tensor else 1}.get(layer, (layer or 0) // 2)
        part = next((n for n, p in enumerate(("self_attn", "mlp")) if p in tensor), 2)
        x, y, _ = genotype[group, :, part, 0]
        delta = sum(
            w * (models[m][tensor].double() - base.double()) for w, m in ((x, "x"), (y, "y"))
        )
        expected = base.double() + delta / (x + y if normalize else 1.0)
        torch.testing.assert_close(merged[tensor], expected.bfloat16(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("larger", [0, 1])
def test_slerp_goes_from_the_model_with_the_larger_gene(here, larger):
    """Two genes there, of which the difference counts; one here. Slices name their base there."""
    data = config(here, yaml.safe_dump({"genome": {
        "merge_method": "slerp", "models": ["x", "y"], "layer_granularity": 2,
    }, "tasks": ["choose"]}))  # fmt: skip
    genome = read_evolve(data)[0].genome
    genes = np.array([[0.9, 0.2], [0.3, 0.4]])[:, :: -1 if larger else 1]
    slices = []
    for n, pair in enumerate(genes):
        order = np.argsort(-pair)
        t = float(1.0 / (1.0 + np.exp(pair.max() - pair.min())))
        sources = [{"model": genome.models[k], "layer_range": [2 * n, 2 * n + 2]} for k in order]
        base = genome.models[order[0]]
        slices.append({"sources": sources, "parameters": {"t": t}, "base_model": base})
    theirs = from_mergekit({"merge_method": "slerp", "slices": slices, "dtype": "bfloat16"})
    found = evolve_space(genome, genome.models, LAYERS, [])
    shapes = SourceShapes(None, tuple(genome.models), ("x", "y"), LAYERS, "bfloat16", 0)
    space = ParametersSpace(parse(ParametersSection, found.space), shapes)
    assert space.dimension == 2
    ours = space.decode(1.0 / (1.0 + np.exp(genes[:, 0] - genes[:, 1])))
    turned = theirs.models != ours.models
    for tensor in open_source(str(here / "x")).tensors:
        t, other = (r.groups[group_index(r, tensor)].values["t"] for r in (ours, theirs))
        assert t == pytest.approx(1.0 - other if turned else other)


def test_slerp_of_three_models_is_said_to_be_another_space(here, tmp_path):
    genome = {"merge_method": "slerp", "models": ["x", "y", "base"], "layer_granularity": 2}
    data = config(here, yaml.safe_dump({"genome": genome, "tasks": ["choose"]}))
    done, out = convert(here, tmp_path, data)
    assert "all of them have a part, by multislerp: this is another space" in done.output
    assert yaml.safe_load(out.read_text())["space"]["method"] == "multislerp"


# --- tasks, settings, faults -----------------------------------------------------------------


def test_tasks_keep_their_weights_metrics_limits_and_examples(here, tmp_path):
    data = config(here, JAPANESE_MATHS) | {"limit": 15, "num_fewshot": 2, "shuffle": True}
    data["tasks"][1]["weight"] = -0.4
    data["tasks"].append({"name": "say", "weight": 0})
    done, out = convert(here, tmp_path, data)
    assert done.exit_code == 0, done.output
    first, second, third = yaml.safe_load(out.read_text())["fitness"]
    tasks = here / "tasks"
    assert first == {
        "name": "choose", "task": str(tasks / "choose_file.yaml"), "metric": "acc",
        "weight": 0.2, "items": 30, "fewshot": 2,
    }  # fmt: skip
    assert (second["direction"], second["weight"]) == ("minimize", 0.4)
    assert third["metric"] == "exact_match" and "direction" not in third
    assert "tasks.1.weight: the task says that more is better" in done.output
    assert "tasks.3.weight: 0 counts for nothing" in done.output
    assert "adds up weight x metric as it is" in done.output


def test_its_command_line_is_taken_too(here, tmp_path):
    options = "--max-fevals 50 --sigma0 0.3 --force-population-size 9 --random-seed 5 --num-gpus 2"
    options += " --timeout 5400 --batch-size 4 --in-memory --strategy pool --wandb"
    data = config(here, JUDGED)
    done, out = convert(here, tmp_path, data, *options.split())
    assert done.exit_code == 0, done.output
    plan = yaml.safe_load(out.read_text())
    assert plan["seed"] == 5 and plan["workers"] == {"pool": "ray", "count": 2, "gpus_each": 1}
    # weights of a normalized method range over 2
    assert plan["controller"] == {"kind": "cmaes", "sigma": 0.15, "population": 9}
    assert plan["budget"] == {"items": (50 + 4) * 20, "hours": 1.5}
    assert plan["fitness"][0]["batch_size"] == 4
    for name in ("in-memory", "strategy", "wandb"):
        assert f"--{name}: " in done.output
    (tmp_path / "campaign.yaml").unlink()
    done, out = convert(here, tmp_path, data, "--vllm")
    if importlib.util.find_spec("vllm"):
        assert yaml.safe_load(out.read_text())["workers"]["engine"] == "vllm"
    else:
        assert done.exit_code == 2 and "evolve.yml: --vllm: " in done.output


def test_every_option_that_has_no_key_here_is_answered():
    hidden = [p for p in main.commands["convert"].params if getattr(p, "hidden", False)]
    assert {option.removeprefix("--") for p in hidden for option in p.opts} == set(INSTEAD)


FAULTS = [
    ({"merge_method": "dare_linear"}, {}, "'dare_linear' is no method of mergekit-evolve; did you"),
    ({"layer_granularity": 3}, {}, "3 does not divide the 4 layers, and mergekit-evolve refuses"),
    ({"models": ["nowhere", "x"]}, {}, "genome.models.0: there is no directory"),
    ({"models": ["x", "x"]}, {}, "genome.models: lists a model twice"),
    ({"models": ["base"]}, {}, "genome.models: there is none beside the base"),
    ({"base_model": None}, {}, "genome.base_model: dare_ties needs it"),
    ({}, {"tasks": ["our/choose"]}, "tasks.0.name: there is no task 'our/choose'"),
    ({}, {"tasks": [{"name": "choose", "metric": "f1,none"}]}, "tasks.0.metric: 'f1' is no mean"),
    ({}, {"tasks": [{"name": "choose", "weight": "half"}]}, "tasks.0.weight: "),
    ({}, {"tasks": [{"name": "choose", "weight": 0}]}, "tasks: none has a weight"),
]


@pytest.mark.parametrize(("genome", "others", "line"), FAULTS, ids=[f[2][:30] for f in FAULTS])
def test_what_cannot_be_converted_is_one_line_and_nothing_is_written(
    here, tmp_path, genome, others, line
):
    done, out = convert(here, tmp_path, config(here, JUDGED, **genome) | others)
    assert done.exit_code == 2 and not out.exists()
    (said,) = done.output.splitlines()
    assert line in said and str(tmp_path / "evolve.yml") in said


def test_all_faults_come_at_once(here, tmp_path):
    tasks = {"tasks": ["our/choose", {"name": "choose", "metric": "f1"}]}
    done, _ = convert(here, tmp_path, config(here, JUDGED, models=["x", "nowhere"]) | tasks)
    assert [line.split(": ")[1] for line in done.output.splitlines()] == [
        "genome.models.1", "tasks.0.name", "tasks.1.metric",
    ]  # fmt: skip


def test_no_file_is_written_over_and_other_configurations_are_told_apart(here, tmp_path):
    out = tmp_path / "campaign.yaml"
    out.write_text("mine")
    done, _ = convert(here, tmp_path, config(here, JUDGED))
    assert done.exit_code == 2 and "is there already" in done.output
    assert out.read_text() == "mine"
    out.unlink()
    done, _ = convert(here, tmp_path, {"merge_method": "linear", "models": [{"model": "x"}]})
    assert done.exit_code == 2 and "evomerge merge FILE OUT" in done.output
    assert not out.exists()


def test_a_slice_has_a_base_of_its_own_with_slerp_alone(here):
    slices = [{"sources": [{"model": "a"}, {"model": "b"}], "base_model": "c"}]
    with pytest.raises(BadInput, match=r"slices\.0\.base_model: 'c' is none of the slice's"):
        from_mergekit({"merge_method": "slerp", "slices": slices, "parameters": {"t": 0.5}})
    with pytest.raises(BadInput, match=r"slices\.0\.base_model: is not supported but with slerp"):
        from_mergekit({"merge_method": "linear", "slices": slices})


def test_a_file_in_a_folder_of_tasks_is_found_by_the_name_in_it(tmp_path):
    (tmp_path / "deep").mkdir()
    quoted = tmp_path / "deep" / "one.yml"
    quoted.write_text("metadata: {task: no}\ntask: 'my.task' # mine\n")
    assert task_file("my.task", [str(tmp_path)]) == str(quoted)
    assert task_file("myxtask", [str(tmp_path)]) is None
    assert Path(quoted).suffix == ".yml"
