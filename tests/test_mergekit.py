"""mergekit's configurations, read and written."""

import itertools
import json

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.mergekit import tokenizers
from evomerge.mergekit.reader import from_mergekit
from evomerge.mergekit.writer import to_mergekit
from evomerge.merging.methods import METHODS
from evomerge.merging.validation import group_index
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama

KINDS = ["linear", "task_arithmetic", "ties", "slerp", "nuslerp", "multislerp", "breadcrumbs"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A folder with models of five layers, with the folder as their names' beginning."""
    folder = tmp_path_factory.mktemp("deep")
    for seed, name in enumerate(("base", "x", "y")):
        tiny_llama(folder / name, seed, layers=5, near=folder / "base" if seed else None)
    return folder


def value_of(recipe, axis, tensor):
    """The value of an axis for a tensor, the method's default where it says none."""
    found = recipe.groups[group_index(recipe, tensor)].values.get(axis)
    parameter = METHODS.get(recipe.method).parameter[axis]
    return (parameter.default,) * len(recipe.models) if found is None else found


@given(
    method=st.sampled_from(KINDS),
    edges=st.sets(st.integers(1, 4), max_size=2),
    module=st.sampled_from([None, "mlp", "self_attn"]),
    options=st.booleans(),
    draws=st.lists(st.floats(0.1, 0.9), min_size=60, max_size=60),
)
def test_what_is_written_is_read_back(deep, method, edges, module, options, draws):
    """For every tensor of every recipe over groups of layers and modules."""
    known = METHODS.get(method)
    numbers = iter([round(d, 6) for d in draws])
    models = (str(deep / "x"), str(deep / "y"))

    def values():
        return {
            p.name: (next(numbers), next(numbers)) if p.axis.per_model else next(numbers)
            for p in known.parameters
            if p.name != "scale" or method != "breadcrumbs"
        }

    cuts = [0, *sorted(edges), 5]
    groups = []
    for first, last in itertools.pairwise(cuts):
        groups += [Group((first, last), module, values())] if module else []
        groups += [Group((first, last), None, values())]
    groups += [Group(part, None, values()) for part in ("embed", "norm", "head")]
    said = {name: options for name in known.options if name in ("normalize", "elect")}
    base = str(deep / "base") if known.needs_base else None
    recipe = ParametersRecipe(method, models, tuple(groups), base, "bfloat16", options=said)
    frame = open_source(str(deep / "base"))
    again = from_mergekit(yaml.safe_load(to_mergekit(recipe, frame)))
    assert (again.method, again.models, again.base) == (recipe.method, recipe.models, recipe.base)
    assert again.dtype == "bfloat16"
    for name in ("normalize", "elect"):
        if name in known.options:
            default = known.options[name]
            assert again.options.get(name, default) == recipe.options.get(name, default)
    for tensor in frame.tensors:
        for axis in known.parameter:
            if axis in recipe.groups[group_index(recipe, tensor)].values:
                ours = value_of(again, axis, tensor)
                assert ours == pytest.approx(value_of(recipe, axis, tensor)), (tensor, axis)


def read(text, deep, **changes):
    data = yaml.safe_load(text.replace("DIR", str(deep)))
    return from_mergekit(data | changes)


SLERP = """
slices:
  - sources:
      - {model: DIR/x, layer_range: [0, 5]}
      - {model: DIR/y, layer_range: [0, 5]}
merge_method: slerp
base_model: DIR/x
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0]}
    - value: 0.25
dtype: bfloat16
"""


def test_the_well_known_slerp_configuration(deep):
    recipe = read(SLERP, deep)
    assert recipe.models == (str(deep / "x"), str(deep / "y")) and recipe.base is None
    layer = "model.layers.{}.{}.weight"
    attention = [0, 0.5, 0.3, 0.7, 1]
    for n in range(5):
        assert value_of(recipe, "t", layer.format(n, "self_attn.q_proj")) == attention[n]
        assert value_of(recipe, "t", layer.format(n, "mlp.up_proj")) == 1 - n / 4
        assert value_of(recipe, "t", layer.format(n, "input_layernorm")) == 0.25
    assert value_of(recipe, "t", "model.embed_tokens.weight") == 0.25
    other = read(SLERP, deep, base_model=str(deep / "y"))
    assert other.models == (str(deep / "y"), str(deep / "x"))  # t counts from the base


TIES = """
models:
  - model: DIR/base
  - {model: DIR/x, parameters: {density: [1, 0.5], weight: 0.3}}
  - model: DIR/y
    parameters:
      weight: [{filter: mlp, value: 0.9}, {value: 0.1}]
merge_method: ties
base_model: DIR/base
parameters: {density: 0.7, normalize: false, lambda: 1.1, int8_mask: true}
dtype: float32
out_dtype: bfloat16
tokenizer_source: base
"""


def test_precedence_gradients_and_the_base_among_the_models(deep):
    recipe = read(TIES, deep)
    assert recipe.models == (str(deep / "x"), str(deep / "y"))
    assert recipe.base == str(deep / "base") and recipe.dtype == "bfloat16"
    assert recipe.options == {"normalize": False}
    name = "model.layers.{}.mlp.up_proj.weight"
    for n in range(5):
        assert value_of(recipe, "density", name.format(n)) == pytest.approx((1 - n / 8, 0.7))
        assert value_of(recipe, "weight", name.format(n)) == (0.3, 0.9)
        assert value_of(recipe, "scale", name.format(n)) == 1.1
    assert value_of(recipe, "density", "model.embed_tokens.weight") == (1.0, 0.7)
    assert value_of(recipe, "density", "model.norm.weight") == (1.0, 0.7)  # the first value
    assert value_of(recipe, "weight", "model.norm.weight") == (0.3, 0.1)


def test_the_one_module_of_a_decoder_is_the_whole(deep):
    """Its parameters stand between those of a slice and those of the configuration."""
    plain = yaml.safe_load(TIES)
    inner = {"default": {"models": plain.pop("models"), "parameters": {"lambda": 0.7}}}
    recipe = read(yaml.safe_dump(plain | {"modules": inner}), deep)
    there = read(TIES, deep)
    for name in open_source(str(deep / "base")).tensors:
        assert value_of(recipe, "scale", name) == 0.7
        for axis in ("weight", "density"):
            assert value_of(recipe, axis, name) == value_of(there, axis, name)
    assert recipe.options == there.options and recipe.base == there.base


def test_slices_own_the_tensors_beside_the_layers(deep):
    text = """
slices:
  - sources: [{model: DIR/x, layer_range: [0, 2], parameters: {weight: 1}},
              {model: DIR/y, layer_range: [0, 2], parameters: {weight: 2}}]
  - sources: [{model: DIR/x, layer_range: [2, 5]}, {model: DIR/y, layer_range: [2, 5]}]
    parameters: {weight: 3}
merge_method: linear
dtype: bfloat16
"""
    recipe = read(text, deep)
    assert value_of(recipe, "weight", "model.embed_tokens.weight") == (1, 2)
    assert value_of(recipe, "weight", "model.layers.1.mlp.up_proj.weight") == (1, 2)
    assert value_of(recipe, "weight", "model.layers.2.mlp.up_proj.weight") == (3, 3)
    assert value_of(recipe, "weight", "model.norm.weight") == (3, 3)


@pytest.mark.parametrize("method, ours", [("della_linear", "della"), ("breadcrumbs_ties", None)])
def test_mergekits_names_are_options_here(deep, method, ours):
    recipe = read(TIES, deep, merge_method=method)
    assert recipe.method == (ours or "breadcrumbs")
    assert recipe.options["elect"] is (ours is None)
    assert (recipe.seed == 0) is (method == "della_linear")


REFUSED = {
    "merge_method: 'pass' is not supported": {"merge_method": "pass"},
    "models: exactly one of models, slices and modules": {
        "slices": [{"sources": [{"model": "x"}]}]
    },
    "slices: is empty": {"slices": []},
    "tokenizer_source: 'DIR/z' is none of the models; did you mean": {"tokenizer_source": "DIR/z"},
    "tokenizer_source: is not a text": {"tokenizer_source": ["base"]},
    "tokenizer.source: 'unoin' is none of the models; did you mean 'union'?": {
        "tokenizer_source": None,
        "tokenizer": {"source": "unoin"},
    },
    "tokenizer.tokens: embeddings of single tokens are not set; leave it out": {
        "tokenizer_source": None,
        "tokenizer": {"source": "base", "tokens": {"<s>": {"source": "DIR/x"}}},
    },
    "tokenizer.pad_to_multiple_of: vocabularies are not padded; leave it out": {
        "tokenizer_source": None,
        "tokenizer": {"pad_to_multiple_of": 8},
    },
    "tokenizer.sauce: unknown key 'sauce'; did you mean 'source'?": {
        "tokenizer_source": None,
        "tokenizer": {"sauce": "base"},
    },
    "tokenizer: 'base' is not a mapping": {"tokenizer_source": None, "tokenizer": "base"},
    "tokenizer: stands beside tokenizer_source; write one of them": {
        "tokenizer": {"source": "base"}
    },
    "chat_template: is not a text": {"chat_template": ["auto"]},
    "chat_templat: unknown key 'chat_templat'; did you mean 'chat_template'?": {
        "chat_templat": "auto"
    },
    "lazy_unpickel: unknown key 'lazy_unpickel'": {"lazy_unpickel": True},
    "dtype: 'int4' is none of what it may be; write bfloat16": {"dtype": "int4"},
    "parameters: weight is missing for ": {"models": [{"model": "DIR/x"}, {"model": "DIR/y"}]},
    "models.0: 'DIR/x' is not a mapping": {"models": ["DIR/x"]},
    "models: is not a list": {"models": {"model": "DIR/x"}},
    "models.0.model: is not a text": {"models": [{"model": {"model": "DIR/x"}}]},
    "models.0.model: is missing; write e.g. model: models/a": {"models": [{"modle": "DIR/x"}]},
    "models.0.modle: unknown key 'modle'; did you mean 'model'?": {"models": [{"modle": "DIR/x"}]},
    "models.0.parameters: is not a mapping": {"models": [{"model": "x", "parameters": [1.0]}]},
    "parameters: is not a mapping": {"parameters": [1.0]},
    "slices.0.sources.0.parameters: 3 is not a mapping": {
        "models": None,
        "slices": [{"sources": [{"model": "x", "parameters": 3}], "parameters": {"scale": 1}}],
    },
    "slices.0.sources.0.layer_range: 5 is not [first, last + 1]": {
        "models": None,
        "slices": [{"sources": [{"model": "x", "layer_range": 5}]}],
    },
    "parameters.filter_wise: is not supported; write false": {"parameters": {"filter_wise": True}},
    "parameters: 'much' is no number": {
        "models": [{"model": "DIR/x", "parameters": {"weight": "much"}}]
    },
    "parameters.lamda: unknown parameter 'lamda'; did you mean 'lambda'?": {
        "parameters": {"lamda": 0.5, "density": 0.5}
    },
    "models.0.parameters.densty: unknown parameter 'densty'; did you mean 'density'?": {
        "models": [{"model": "DIR/x", "parameters": {"weight": 1, "densty": 0.5}}]
    },
    "slices.0.parameters.wieght: unknown parameter 'wieght'": {
        "models": None,
        "slices": [{"sources": [{"model": "x"}], "parameters": {"wieght": 1}}],
    },
    "parameters.normalize: 1 is not true or false": {"parameters": {"weight": 1, "normalize": 1}},
    "parameters.rescale: is not supported with ties; leave it out": {
        "parameters": {"weight": 1, "rescale": True}
    },
    "parameters.normalize: is not supported with task_arithmetic": {
        "merge_method": "task_arithmetic",
        "parameters": {"weight": 1, "normalize": True},
    },
    "base_model: there is no directory": {"base_model": "./nowhere"},
    "modules.vision: unknown key 'vision'; known: default": {
        "models": None,
        "modules": {"vision": {}},
    },
    "modules.default.parameters.nuslerp_flatten: is not supported": {
        "models": None,
        "modules": {
            "default": {"models": [{"model": "DIR/x"}], "parameters": {"nuslerp_flatten": False}}
        },
    },
    "modules.default.layers: unknown key 'layers'": {
        "models": None,
        "modules": {"default": {"layers": []}},
    },
    "modules.default.models: exactly one of models and slices": {
        "models": None,
        "modules": {"default": {"layers": []}},
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_supported_is_said(deep, message):
    changes = yaml.safe_load(yaml.safe_dump(REFUSED[message]).replace("DIR", str(deep)))
    with pytest.raises(BadInput) as error:
        read(TIES, deep, **changes)
    wanted = message.replace("DIR", str(deep))
    assert any(line.startswith(wanted) for line in str(error.value).splitlines()), error.value


@pytest.fixture
def said(monkeypatch):
    """The warnings about tokenizers."""
    said = []
    monkeypatch.setattr(tokenizers.log, "warning", lambda text, *words: said.append(text % words))
    return said


HARMLESS = {
    "chat_template: auto": "",
    "chat_template: chatml": "chat_template is not done: the merged model keeps that of DIR/base",
    'chat_template: "{{ messages }}"': "the merged model keeps that of DIR/base",
    "tokenizer_source: union": "",
    "tokenizer_source: base": "",
    "tokenizer_source: DIR/base": "",
    "tokenizer_source: DIR/y": "tokenizer's files of DIR/base, not of DIR/y",
    "tokenizer: {source: base}": "",
    "tokenizer: {source: union, tokens: {}}": "",
    "tokenizer: {source: DIR/y}": "tokenizer's files of DIR/base, not of DIR/y",
    "tokenizer: {}": "",
    "out_shard_size: 1B": "",
    "{allow_crimes: true, lazy_unpickle: true, clone_tensors: true, trust_remote_code: true}": "",
}


@pytest.mark.parametrize("keys", HARMLESS)
def test_what_changes_nothing_is_taken_and_what_changes_files_is_told(deep, said, keys):
    plain = TIES.replace("tokenizer_source: base\n", "")
    recipe = read(plain, deep, **yaml.safe_load(keys.replace("DIR", str(deep))))
    assert recipe == read(plain, deep)
    if warned := HARMLESS[keys].replace("DIR", str(deep)):
        (line,) = said
        assert warned in line
    else:
        assert said == []


def test_a_switch_that_allows_code_allows_none(tmp_path):
    """mergekit's own is on its command line; a configuration that came from elsewhere is none."""
    model = tiny_llama(tmp_path / "x", 1)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "x.Y"}}
    (model / "config.json").write_text(json.dumps(config))
    data = {"merge_method": "linear", "models": [{"model": str(model)}], "trust_remote_code": True}
    with pytest.raises(BadInput, match="run code of its own"):
        from_mergekit(data | {"parameters": {"weight": 1}})


def test_chat_templates_that_differ_are_told(tmp_path, said):
    x, y = (tiny_llama(tmp_path / name, seed) for seed, name in enumerate("xy"))
    models = [{"model": str(model), "parameters": {"weight": 1}} for model in (x, y)]
    data = {"merge_method": "linear", "models": models, "chat_template": "auto"}
    from_mergekit(data)
    for model in (x, y):
        (model / "chat_template.jinja").write_text("{{ messages }}")
    from_mergekit(data)
    assert said == []
    (y / "chat_template.jinja").unlink()
    settings = json.loads((y / "tokenizer_config.json").read_text())
    (y / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ eos }}"}))
    from_mergekit(data)
    assert said == [f"chat_template is not done: the merged model keeps that of {x}"]


def test_slices_that_route_layers_are_refused(deep):
    routed = SLERP.replace("layer_range: [0, 5]}", "layer_range: [1, 5]}", 1)
    with pytest.raises(BadInput, match="its sources have different layers"):
        read(routed, deep)
    with pytest.raises(BadInput, match="ends at layer 4 of 5"):
        read(SLERP.replace("[0, 5]", "[0, 4]"), deep)


def test_the_command_takes_a_configuration(here):
    values = {"weight": (0.4, 0.7), "density": (0.5, 0.9)}
    recipe = ParametersRecipe("ties", ("a", "b"), (Group(None, None, values),), "base")
    (here / "m.yml").write_text(to_mergekit(recipe, open_source("a")))
    done = CliRunner().invoke(main, ["merge", "m.yml", "one"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["merge", "one/recipe.json", "two"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["merge", "two/mergekit_config.yml", "three"])
    assert done.exit_code == 0, done.output
    one, *others = (load_file(here / d / "model.safetensors") for d in ("one", "two", "three"))
    assert all((one[n] == other[n]).all() for other in others for n in one)
