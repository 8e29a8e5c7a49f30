"""Sources on the hub: looked at by their headers, and fetched once nothing is wrong.

A server on this machine stands in for the hub and says what it served. The hub's client reads its
environment when it is imported, so evomerge runs in a process of its own, command by command.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from conftest import FITNESS, cache_with_kernels
from hub_stand_in import Hub, save_adapter
from hub_uploads import TOKEN
from safetensors.torch import load_file, save_file
from tiny_images import tiny_pipeline
from transformers import AutoModelForCausalLM

from evomerge.errors import BadInput
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama

pytestmark = pytest.mark.xdist_group("hub")  # one server, whose log is read between commands

WEIGHT = {"low": 0.0, "high": 1.0}

SESSION = """
import json, sys
from click.testing import CliRunner
from evomerge.cli.main import main

for line in sys.stdin:
    done = CliRunner().invoke(main, json.loads(line))
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""


def header_size(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    base = tiny_llama(folder / "org/base", 0, hidden=64)
    # in shards
    tiny_llama(folder / "org/a", 1, hidden=64, near=base)
    (folder / "org/a/model.safetensors").unlink()
    tiny_llama(folder / "whole", 1, hidden=64, near=base)
    sharded = AutoModelForCausalLM.from_pretrained(folder / "whole", dtype="auto")
    sharded.save_pretrained(folder / "org/a", max_shard_size="60KB")
    # with the head stored twice, beside a format that is not taken
    b = tiny_llama(folder / "org/b", 2, hidden=64, near=base)
    weights = load_file(b / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, b / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(b / "model.safetensors", b / "consolidated.safetensors")
    tiny_llama(folder / "org/wide", 3, hidden=128)
    pickled = shutil.copytree(base, folder / "org/pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    shutil.copytree(base, folder / "org/gated")
    shutil.copytree(base, folder / "org/narrow")
    shutil.copytree(base, folder / "org/unparted")
    save_adapter(folder / "org/lora", "model.layers.0.self_attn.q_proj", 64)
    with Hub(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Done(NamedTuple):
    code: int
    output: str
    errors: str


class Evomerge:
    """A process that runs commands on campaigns, with a cache of the hub's files."""

    def __init__(self, folder: Path, hub: Hub, *, offline: bool):
        cache = folder / "cache"
        if not cache.exists():
            cache_with_kernels(cache)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_TOKEN": TOKEN,
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(cache),
        }
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command: str, base: str, *options: str, **models: str) -> Done:
        """Run a command on a campaign of some sources."""
        fitness = self.folder / "fit.py"
        fitness.write_text(FITNESS)
        file = self.folder / "campaign.yaml"
        plan = {
            "name": "hub",
            "sources": {"base": base, "models": models},
            "space": {
                "kind": "parameters",
                "method": "task_arithmetic",
                "axes": {"weight": WEIGHT},
            },
            "controller": {"kind": "random"},
            "fitness": [{"name": "likely", "function": str(fitness)}],
            "budget": {"evaluations": 2},
            "workers": {"threads": 1},
        }
        file.write_text(yaml.safe_dump(plan))
        return self.say(command, str(file), *options)

    def say(self, *words: str) -> Done:
        """Run a command."""
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        done = Done(*json.loads(self.process.stdout.readline()))
        assert TOKEN not in done.output + done.errors
        return done

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("campaign")


@pytest.fixture(scope="module")
def evomerge(hub, folder):
    process = Evomerge(folder, hub, offline=False)
    yield process
    process.close()


def expected(hub, *repositories: str) -> dict[str, Path]:
    """Return the files of weights that repositories are read from, by their names there."""
    files = {}
    for repository in repositories:
        for file in (hub.folder / repository).glob("model*.safetensors"):
            files[f"{repository}/{file.name}"] = file
    return files


def headers_of(files: dict[str, Path]) -> dict[str, int]:
    return {name: header_size(file) for name, file in files.items()}


def test_faults_are_told_before_any_weight_is_fetched(hub, evomerge):
    headers = headers_of(expected(hub, "org/narrow", "org/wide"))
    hub.served.clear()
    for command in ("check", "run"):
        done = evomerge(command, "org/narrow", a="org/wide")
        assert done.code == 2
        assert "model.embed_tokens.weight" in done.errors
    assert hub.weights_served() == headers  # of both together: a process asks for each once


def test_check_reads_headers_and_run_fetches_the_weights(hub, evomerge, folder):
    files = expected(hub, "org/base", "org/a", "org/b")
    assert sum(name.startswith("org/a/") for name in files) > 1
    sizes = {name: file.stat().st_size for name, file in files.items()}
    models = {"a": "org/a", "b": "org/b@v2", "c": "org/base+org/lora"}
    adapter = (hub.folder / "org/lora/adapter_model.safetensors").stat().st_size
    hub.served.clear()

    checked = evomerge("check", "org/base", "--json", **models)
    assert checked.code == 0, checked.errors
    assert json.loads(checked.output)["download_bytes"] == sum(sizes.values())
    served = hub.weights_served()
    assert served.pop("org/lora/adapter_model.safetensors") == adapter  # which is small
    assert served == headers_of(files) and sum(served.values()) < sum(sizes.values()) / 5

    ran = evomerge("run", "org/base", "--run", "first", **models)
    assert ran.code == 0, ran.errors
    assert hub.weights_served() == sizes
    assert set(hub.strangers) == {"None"}, "the store was told the token"

    offline = Evomerge(folder, hub, offline=True)
    again = offline("run", "org/base", "--run", "second", **models)
    offline.close()
    assert again.code == 0, again.errors
    assert hub.served == {}


BRIGHT = """
import torch


def items():
    return list(range(8))


@torch.no_grad()
def score(model, tokenizer, items):
    unet = getattr(model, "unet", model)
    found = []
    for seed in items:
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        text = torch.zeros(1, 3, unet.config.cross_attention_dim)
        found.append(unet(noise, 10, text).sample.mean().item())
    return found
"""


def test_diffusers_models_are_fetched_in_their_folders(hub, evomerge, folder):
    """A pipeline's headers by `check`, its weights by `run`; nothing again; a bare UNet too."""
    pytest.importorskip("diffusers")
    first = tiny_pipeline(hub.folder / "org/drawn", 1)
    tiny_pipeline(hub.folder / "org/photo", 2, near=first)
    for name in ("drawn", "photo"):
        shutil.copytree(hub.folder / "org" / name / "unet", hub.folder / "org" / f"{name}-unet")
    (hub.folder / "org/drawn/drawn.safetensors").write_bytes(b"the same in one file, not taken")
    (folder / "bright.py").write_text(BRIGHT)

    def write(a, b):
        plan = {
            "name": "images",
            "sources": {"models": {"a": a, "b": b}},
            "space": {"kind": "parameters", "method": "linear", "axes": {"weight": WEIGHT}},
            "controller": {"kind": "random"},
            "fitness": [{"name": "bright", "function": str(folder / "bright.py")}],
            "budget": {"evaluations": 2},
        }
        (folder / "images.yaml").write_text(yaml.safe_dump(plan))
        return str(folder / "images.yaml")

    files = {
        f"org/{name}/{file.relative_to(hub.folder / 'org' / name)}": file
        for name in ("drawn", "photo")
        for file in (hub.folder / "org" / name).rglob("*/*.safetensors")
    }
    assert len(files) == 6  # UNet, decoder and text encoder
    sizes = {name: file.stat().st_size for name, file in files.items()}
    file = write("org/drawn@v2", "org/photo:unet")
    hub.served.clear()
    checked = evomerge.say("check", file, "--json")
    assert checked.code == 0, checked.errors
    assert json.loads(checked.output)["download_bytes"] == sum(sizes.values())
    assert hub.weights_served() == headers_of(files)
    ran = evomerge.say("run", file, "--run", "pictures")
    assert ran.code == 0, ran.errors
    assert hub.weights_served() == sizes
    unets = evomerge.say("run", write("org/drawn-unet", "org/photo-unet"), "--run", "unets")
    assert unets.code == 0, unets.errors
    assert len(hub.weights_served()) == 2
    offline = Evomerge(folder, hub, offline=True)
    again = offline.say("run", write("org/drawn@v2", "org/photo:unet"), "--run", "again")
    exported = offline.say("export", "pictures", "out", "--pick", "3")  # the average
    offline.close()
    assert again.code == 0 == exported.code, again.errors + exported.errors
    assert hub.served == {}
    decoder = "vae/diffusion_pytorch_model.safetensors"
    kept = (folder / "out" / decoder).read_bytes()
    assert kept == (hub.folder / "org/drawn" / decoder).read_bytes()


def test_the_modules_behind_a_sentence_embedder_are_fetched_too(hub, evomerge, folder):
    pytest.importorskip("sentence_transformers")
    from test_sentence_embedders import recipe_of, tiny_embedder

    for seed, name in enumerate(("ea", "eb")):
        near = hub.folder / "ea" / "bert" if seed else None
        (hub.folder / name).mkdir()
        tiny_embedder(hub.folder / name, seed, near).rename(hub.folder / "org" / name)
    recipe = recipe_of(["org/ea", "org/eb"], (0.0, 1.0))
    (folder / "embedders.json").write_text(json.dumps(recipe.to_json()))
    done = evomerge.say("merge", str(folder / "embedders.json"), str(folder / "embedder"))
    assert done.code == 0, done.errors
    for place in ("model.safetensors", "2_Dense/model.safetensors"):
        ours, theirs = (load_file(f / place) for f in (folder / "embedder", hub.folder / "org/eb"))
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_found_model_is_pushed_to_where_the_environment_says(hub, evomerge):
    """Its sources were fetched from there: the card names them by their ids."""
    done = evomerge.say("push", "first", "org/found", "--pick", "best")
    assert done.code == 0, done.errors
    assert f"{hub.url}/org/found/commit/" in done.output
    files = hub.pushed.files("org/found")
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert head["base_model"] == ["org/base", "org/a", "org/b", "org/lora"]
    recipe = json.loads(files["recipe.json"])
    assert recipe["models"] == ["org/a", "org/b@v2", "org/base+org/lora"]
    assert not any(str(evomerge.folder).encode() in content for content in files.values())


def test_each_repository_that_cannot_be_had_has_its_reason(evomerge):
    ids = {"a": "org/missing", "b": "org/private", "c": "org/gated", "d": "org/pickled"}
    done = evomerge("check", "org/narrow", **ids, e="org/narrow@v3", f="org/unparted")
    assert done.code == 2
    told = {}
    for line in done.errors.splitlines():
        if "sources.models." in line:
            label, _, reason = line.partition("sources.models.")[2].partition(": ")
            told[label] = [*told.get(label, []), reason]
    assert {label: len(reasons) for label, reasons in told.items()} == dict.fromkeys("abcdef", 1)
    assert told["a"][0].startswith("'org/missing' is no directory, and the hub has no such model")
    assert told["b"][0].startswith("the hub does not give 'org/private' without a login")
    assert told["c"][0].startswith("'org/gated' is gated")
    assert "holds pickled weights only (pytorch_model.bin)" in told["d"][0]
    assert told["e"][0].startswith("the hub's 'org/narrow' has no revision 'v3'")
    assert "org/unparted" in told["f"][0] and "is served as a whole only" in told["f"][0]


def test_the_logger_of_the_hub_s_client_is_left_as_it_was(caplog):
    with caplog.at_level(logging.INFO, "huggingface_hub"):
        with pytest.raises(BadInput, match="no directory"):
            open_source("nobody/no--thing")
        assert logging.getLogger("huggingface_hub").level == logging.INFO
