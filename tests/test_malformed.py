"""Bad input, broadly: good files damaged in one place each. Every one is refused in lines that
name the place; nothing is written, and no weight is read.
"""

import copy
import json
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.cli.main import main
from evomerge.errors import BadInput
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.sources.compatibility import mismatches
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama

CAMPAIGN = {
    "name": "good",
    "seed": 7,
    "sources": {"base": "base", "models": {"a": "a", "b": "b"}, "trust_remote_code": False},
    "space": {
        "kind": "parameters",
        "method": "ties",
        "layer_groups": 2,
        "module_groups": ["self_attn", "mlp"],
        "smooth": False,
        "axes": {
            "weight": {"low": 0.1, "high": 1.5, "start": 0.5, "log": True, "tied": ["models"]},
            "density": {"low": 0.1, "high": 1.0},
            "scale": 1.0,
        },
        "options": {"normalize": True},
        "dtype": "bfloat16",
    },
    "controller": {"kind": "cmaes", "population": 6, "sigma": 0.2, "restarts": 2},
    "fitness": [
        {"name": "likely", "function": "fit.py", "items": 30, "weight": 1.0},
        {"name": "choice", "task": "choice.yaml", "metric": "acc", "fewshot": 0, "batch_size": 8},
    ],
    "init": [],
    "heldout": {"last": 0.4},
    "compute_dtype": "float32",
    "budget": {"evaluations": 3, "hours": 1.0},
    "workers": {"pool": "ray", "count": 2, "gpus_each": 0, "timeout": 60.0, "device": "cpu"},
    "finals": 2,
    "allow_benchmarks": False,
}
RECIPE = {
    "version": 1,
    "kind": "parameters",
    "method": "dare_ties",
    "models": ["a", "b"],
    "base": "base",
    "dtype": "bfloat16",
    "seed": 3,
    "options": {"rescale": True},
    "groups": [
        {"layers": [0, 1], "modules": "mlp", "weight": [0.3, 0.7], "density": [0.5, 0.5]},
        {"layers": None, "modules": None, "weight": [0.3, 0.7], "density": [0.5, 0.5]},
    ],
}
# A value that no key takes, and one that only looks like what it should be.
WRONG = {"nested": [[1]], "surprise": {"surprise": 1}, "looks": "1e", "infinite": float("inf")}
MAY_LOOK = (  # texts, lists of texts: there "1e" is some other name, and is refused as missing
    "name", "fitness.0.name", "fitness.1.name", "space.module_groups.0", "space.module_groups.1",
)  # fmt: skip
OPTIONAL = {
    "seed", "sources.trust_remote_code", "controller", "heldout", "compute_dtype", "workers",
    "finals", "allow_benchmarks", "init",
}  # fmt: skip


def paths(data, before=()):
    """Every place in nested data, as a tuple of keys."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in pairs:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*before, key))


def damaged(data, path, value):
    """A copy with one place replaced; `value` "gone" takes it out."""
    data = copy.deepcopy(data)
    entry = data
    for key in path[:-1]:
        entry = entry[key]
    if value == "gone":
        del entry[path[-1]]
    else:
        entry[path[-1]] = value
    return data


def at(data, path):
    for key in path:
        data = data[key]
    return data


WITHOUT_TASK = damaged(CAMPAIGN, ("fitness", 1), "gone")


def campaigns():
    """(what was done, the damaged campaign) for every place and every wrong value.

    A task takes long to open: where the damage is not in the fitness, the campaign has its other
    fitness alone.
    """
    for path in paths(CAMPAIGN):
        whole = CAMPAIGN if path[0] in ("fitness", "heldout") else WITHOUT_TASK
        dotted = ".".join(map(str, path))
        for name, wrong in WRONG.items():
            text = isinstance(at(CAMPAIGN, path), str) and name == "looks"
            if not (text and dotted in MAY_LOOK):
                yield f"{dotted} {name}", damaged(whole, path, wrong)
        if isinstance(at(CAMPAIGN, path), dict) and dotted != "sources.models":
            yield f"{dotted} unknown key", damaged(whole, (*path, "kye"), 1)
    for key in ("name", "sources", "space", "fitness", "budget"):
        yield f"{key} gone", damaged(CAMPAIGN, (key,), "gone")
    for path in (("sources", "models"), ("space", "kind"), ("space", "method"), ("space", "axes")):
        yield f"{path} gone", damaged(CAMPAIGN, path, "gone")


def recipes():
    for path in paths(RECIPE):
        dotted = ".".join(map(str, path))
        for name, wrong in WRONG.items():
            if not (name == "looks" and path[-1] == "modules"):  # some other substring
                yield f"{dotted} {name}", damaged(RECIPE, path, wrong)
    for key in ("version", "kind", "method", "models", "dtype", "groups", "base", "seed"):
        yield f"{key} gone", damaged(RECIPE, (key,), "gone")
    for key in ("layers", "modules", "weight"):
        yield f"groups.0.{key} gone", damaged(RECIPE, ("groups", 0, key), "gone")
    for value in ([], 3, "recipe", None):
        yield f"{value!r} for all", value


MIXTURE = {
    "version": 1,
    "kind": "mixture",
    "models": ["a", "b"],
    "dtype": "float32",
    "parameter_index_hash": "",
    "chromosomes": [
        {"modules": "self_attn", "segments": [[0, 0, [0.3, 0.7]]]},
        {"modules": None, "segments": [[0, 7, [1.0, 0.0]], [7, 0, [0.25, 0.75]]]},
    ],
}
EXPLICIT = {
    "version": 1,
    "kind": "explicit",
    "models": ["a", "b"],
    "dtype": "float32",
    "parameter_index_hash": "",
    "interpolation": "slerp",
    "births": [[[0, 1], 0.3, 50, 0.01, 7], [[2, 0], 0.6, 9, 0.0, 0]],
}


def bred(folder):
    """The recipes above, with the parameter index of a folder's models."""
    index = ParameterIndex(
        {n: t.elements for n, t in open_source(str(folder / "a")).tensors.items()}
    )
    text = json.dumps([MIXTURE, EXPLICIT]).replace('_hash": ""', f'_hash": "{index.hash}"')
    mixture, explicit = json.loads(text)
    for chromosome in mixture["chromosomes"]:
        chromosome["segments"][-1][1] = index.total
    return mixture, explicit


def header(file, change):
    """Rewrite a safetensors header through `change`, a function of its JSON."""
    blob = file.read_bytes()
    size = struct.unpack("<Q", blob[:8])[0]
    text = json.dumps(change(json.loads(blob[8 : 8 + size]))).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + blob[8 + size :])


FIRST = "model.layers.0.mlp.down_proj.weight"


def entry(**changes):
    return lambda h: h | {FIRST: h[FIRST] | changes}


def settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(folder):
    return folder / "model.safetensors"


def cut(folder, size):
    weights(folder).write_bytes(weights(folder).read_bytes()[:size])


def index(folder, text):
    weights(folder).unlink()  # or it would count, whatever the index says
    (folder / "model.safetensors.index.json").write_text(text)


DIRECTORIES = {
    "empty": lambda f: [p.unlink() for p in f.iterdir()],
    "no weights": lambda f: weights(f).unlink(),
    "pickled": lambda f: weights(f).rename(f / "pytorch_model.bin"),
    "cut at 0": lambda f: cut(f, 0),
    "cut at 5": lambda f: cut(f, 5),
    "cut at 8": lambda f: cut(f, 8),
    "cut in the header": lambda f: cut(f, 100),
    "cut at the last byte": lambda f: cut(f, -1),
    "a directory for weights": lambda f: (weights(f).unlink(), weights(f).mkdir()),
    "text for weights": lambda f: weights(f).write_text("hello " * 1000),
    "a huge header": lambda f: weights(f).write_bytes(b"\xff" * 64),
    "header a list": lambda f: header(f / "model.safetensors", lambda h: [h]),
    "header a number": lambda f: header(f / "model.safetensors", lambda h: 3),
    "header empty": lambda f: header(f / "model.safetensors", lambda h: {}),
    "entry a number": lambda f: header(f / "model.safetensors", lambda h: h | {FIRST: 3}),
    "dtype missing": lambda f: header(weights(f), lambda h: h | {FIRST: {"shape": [1]}}),
    "dtype unknown": lambda f: header(weights(f), entry(dtype="I8")),
    "dtype nested": lambda f: header(weights(f), entry(dtype=["BF16"])),
    "dtype other": lambda f: header(weights(f), entry(dtype="F64")),
    "shape negative": lambda f: header(weights(f), entry(shape=[-16, -48])),
    "shape transposed": lambda f: header(
        weights(f), lambda h: h | {FIRST: h[FIRST] | {"shape": h[FIRST]["shape"][::-1]}}
    ),
    "shape text": lambda f: header(weights(f), entry(shape="16")),
    "offsets one": lambda f: header(weights(f), entry(data_offsets=[0])),
    "offsets negative": lambda f: header(weights(f), entry(data_offsets=[-1536, 0])),
    "offsets swapped": lambda f: header(weights(f), entry(data_offsets=[1536, 0])),
    "offsets far": lambda f: header(weights(f), entry(data_offsets=[10**9, 10**9 + 1536])),
    "offsets text": lambda f: header(weights(f), entry(data_offsets=["a", "b"])),
    "tensor gone": lambda f: header(
        weights(f), lambda h: {k: v for k, v in h.items() if k != FIRST}
    ),
    "tensor renamed": lambda f: header(
        weights(f), lambda h: {k.replace("layers.0.mlp", "layers.0.pml"): v for k, v in h.items()}
    ),
    "index not JSON": lambda f: index(f, "{"),
    "index a list": lambda f: index(f, "[]"),
    "index without map": lambda f: index(f, '{"weight_map": 3}'),
    "index of missing shards": lambda f: index(f, '{"weight_map": {"x": "model-1.safetensors"}}'),
    "index out of the folder": lambda f: index(f, '{"weight_map": {"x": "../a/x"}}'),
    "index of numbers": lambda f: index(f, '{"weight_map": {"x": 3}}'),
    "no config": lambda f: (f / "config.json").unlink(),
    "config not JSON": lambda f: (f / "config.json").write_text("{'a': 1}"),
    "config a list": lambda f: (f / "config.json").write_text("[]"),
    "another model type": lambda f: settings(f, model_type="gpt2"),
    "another depth": lambda f: settings(f, num_hidden_layers=3),
    "other heads": lambda f: settings(f, num_attention_heads=1),
    "code of its own": lambda f: settings(f, model_type="odd", auto_map={"AutoModel": "x.Y"}),
    "another vocabulary": lambda f: shutil.copy(
        tiny_llama(f.parent / "other", 1, words=[f"w{i}" for i in range(30)]) / "tokenizer.json", f
    ),
    "vocabulary a number": lambda f: (f / "tokenizer.json").write_text('{"model": 3}'),
    "deep JSON": lambda f: (f / "tokenizer.json").write_text("[" * 100_000),
}


def refused(arguments, file):
    """Run a command that must find faults; return its lines."""
    done = CliRunner().invoke(main, arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2, done.output
    lines = done.output.strip().splitlines()
    assert lines and "Traceback" not in done.output
    for line in lines:
        assert line.startswith(str(file)) and line.count(": ") >= 1, line
    assert len(set(lines)) == len(lines)
    return lines


@pytest.fixture
def no_weights(monkeypatch):
    """Whoever reads a weight fails the test."""

    def read(*arguments, **options):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("evomerge.merging.source_weights.safe_open", read)


def listing(folder):
    return sorted(str(p) for p in folder.rglob("*") if ".cache" not in str(p))


def test_there_are_many():
    counts = [len(list(campaigns())), len(list(recipes())), len(DIRECTORIES)]
    assert min(counts) >= 40 and sum(counts) >= 150, counts


def test_the_undamaged_are_accepted(here):
    (here / "good.yaml").write_text(yaml.safe_dump(CAMPAIGN))
    (here / "good.json").write_text(json.dumps(RECIPE))
    done = CliRunner().invoke(main, ["check", "good.yaml"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(main, ["merge", "good.json", "out"]).exit_code == 0
    for key in OPTIONAL:
        plan = damaged(CAMPAIGN, tuple(key.split(".")), "gone")
        (here / "good.yaml").write_text(yaml.safe_dump(plan))
        assert CliRunner().invoke(main, ["check", "good.yaml"]).exit_code == 0, key


@pytest.mark.xdist_group("index")
def test_damaged_campaigns(here, no_weights, one_index):
    failed = {}
    for what, plan in campaigns():
        Path("bad.yaml").write_text(yaml.safe_dump(plan))
        before = listing(here)
        try:
            refused(["run", "bad.yaml"], "bad.yaml")
            assert listing(here) == before
        except AssertionError as error:
            failed[what] = str(error)[:300]
    assert not failed, json.dumps(failed, indent=1)


def test_damaged_recipes(here, no_weights):
    failed = {}
    for what, recipe in recipes():
        Path("bad.json").write_text(json.dumps(recipe))
        try:
            refused(["merge", "bad.json", "out"], "bad.json")
            assert not Path("out").exists()
        except AssertionError as error:
            failed[what] = str(error)[:300]
    assert not failed, json.dumps(failed, indent=1)


def test_damaged_recipes_of_individuals(here, no_weights):
    harmless = {"mixture chromosomes.0 gone", "explicit births.1 gone"}  # a recipe all the same
    harmless |= {"mixture chromosomes.0.modules looks"}  # some other substring
    failed, seen = {}, 0
    for recipe in bred(here):
        for path in paths(recipe):
            for name, wrong in (WRONG | {"gone": "gone"}).items():
                what = f"{recipe['kind']} {'.'.join(map(str, path))} {name}"
                Path("bad.json").write_text(json.dumps(damaged(recipe, path, wrong)))
                seen += 1
                try:
                    refused(["merge", "bad.json", "out"], "bad.json")
                except AssertionError as error:
                    failed[what] = str(error)[:200]
    assert set(failed) == harmless, json.dumps(failed, indent=1)
    assert seen > 100


@pytest.mark.parametrize("what", DIRECTORIES)
def test_damaged_model_directories(here, no_weights, what):
    shutil.copytree((here / "b").resolve(), here / "bad")
    DIRECTORIES[what](here / "bad")
    plan = damaged(WITHOUT_TASK, ("sources", "models", "b"), "bad")
    Path("bad.yaml").write_text(yaml.safe_dump(plan))
    lines = refused(["run", "bad.yaml"], "bad.yaml")
    assert any("bad" in line.split(": ", 1)[1] for line in lines)
    assert not Path("runs").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(here, value):
    shutil.copytree((here / "b").resolve(), here / "bad")
    tensors = load_file(here / "bad" / "model.safetensors")
    tensors[FIRST][0, 0] = value
    save_file(tensors, here / "bad" / "model.safetensors")
    plan = damaged(WITHOUT_TASK, ("sources", "models", "b"), "bad")
    plan = damaged(plan, ("workers",), {"pool": "inline"})  # a cluster starts before that is seen
    Path("bad.yaml").write_text(yaml.safe_dump(plan))
    (line,) = refused(["run", "bad.yaml"], "bad.yaml")
    assert f"hold NaN or infinity: {FIRST}" in line
    assert not Path("runs").exists()


@given(data=st.data())
def test_a_byte_flipped_anywhere_is_refused_or_harmless(world, data):
    """In a header or a config: one clear line, or the same tensors (their data are hashed)."""
    with tempfile.TemporaryDirectory() as folder:
        model = shutil.copytree(world / "b", Path(folder) / "bad")
        whole = open_source(str(model))
        file = model / data.draw(st.sampled_from(["model.safetensors", "config.json"]))
        blob = bytearray(file.read_bytes())
        head = 8 + struct.unpack("<Q", blob[:8])[0] if file.suffix == ".safetensors" else len(blob)
        at = data.draw(st.integers(0, head - 1))
        blob[at] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(blob)
        try:
            opened = open_source(str(model))
        except BadInput as error:
            assert all(str(f).startswith(str(model)) for f in error.faults)
            return
        measure = open_source(str(world / "b"))
        if not mismatches([measure, opened]):
            places = [(t.dtype, t.shape, t.begin - u.begin) for t, u in pairs(opened, whole)]
            assert {gap for _, _, gap in places} == {0}


def pairs(one, other):
    return [(t, other.tensors[n]) for n, t in one.tensors.items()]
