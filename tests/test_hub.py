"""Sources on the hub: looked at by their headers, and fetched once nothing is wrong.

A server on this machine stands in for the hub and says what it served. The hub's client reads its
environment when it is imported, so evomerge runs in a process of its own, command by command.
"""

import hashlib
import http.server
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from conftest import FITNESS, cache_with_kernels
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evomerge.errors import BadInput
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama

pytestmark = pytest.mark.xdist_group("hub")  # one server, whose log is read between commands

SESSION = """
import json, sys
from click.testing import CliRunner
from evomerge.cli.main import main

for line in sys.stdin:
    done = CliRunner().invoke(main, json.loads(line))
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""
TOKEN = "hf_doNotTellAnybody"
REFUSED = {  # what the hub answers: of gated ones the files alone, of others everything
    "org/gated": (403, "GatedRepo"),
    "org/private": (401, "RepoNotFound"),
}


class Hub(http.server.ThreadingHTTPServer):
    """The hub's repositories, of folders ORG/NAME, each at one commit that `main` and `v2` name.

    As the hub does, it sends who asks for weights on to another host, which serves parts.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.served: dict[str, int] = {}  # "org/name/file" -> bytes, of all requests together
        self.strangers: list[str] = []  # what the other host was told of who asks
        self.url = f"http://127.0.0.1:{self.server_port}"

    def weights_served(self) -> dict[str, int]:
        """Return the bytes of each file of weights that were served since this was asked."""
        found = {name: n for name, n in self.served.items() if name.endswith(".safetensors")}
        self.served.clear()
        return found


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_):
        pass

    def answer(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.tell(parts[2:])
        elif parts[0] == "store":
            self.server.strangers.append(str(self.headers.get("Authorization")))
            self.give("/".join(parts[1:3]), "/".join(parts[3:]))
        elif parts[2:3] == ["resolve"]:
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.send(404, b"{}")

    def tell(self, parts: list[str]):
        """What is known of a repository: its commit, or its files."""
        repository, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
        if repository != "org/gated" and not self.is_open(repository, revision):
            return
        folder = self.server.folder / repository
        if parts[2:3] == ["tree"]:
            listed = []
            for file in sorted(folder.iterdir()):
                oid, size = commit(file.name), file.stat().st_size
                listed.append({"type": "file", "path": file.name, "size": size, "oid": oid})
            self.send(200, json.dumps(listed).encode())
        else:
            self.send(200, json.dumps({"id": repository, "sha": commit(repository)}).encode())

    def is_open(self, repository: str, revision: str) -> bool:
        """Answer who may not see a repository, or asks for none that is there."""
        status, code = REFUSED.get(repository, (200, ""))
        if status == 200 and not (self.server.folder / repository).is_dir():
            status, code = 404, "RepoNotFound"
        elif status == 200 and revision not in ("main", "v2", commit(repository)):
            status, code = 404, "RevisionNotFound"
        if status != 200:
            self.send(status, b"{}", {"X-Error-Code": code})
        return status == 200

    def resolve(self, repository: str, revision: str, name: str):
        if not self.is_open(repository, revision):
            return
        file = self.server.folder / repository / name
        about = {"X-Repo-Commit": commit(repository), "ETag": f'"{commit(f"{repository}/{name}")}"'}
        if file.suffix != ".safetensors":
            self.give(repository, name, about)
            return
        about |= {"X-Linked-Etag": about["ETag"], "X-Linked-Size": str(file.stat().st_size)}
        host = self.server.url.replace("127.0.0.1", "localhost")
        self.send(302, b"", about | {"Location": f"{host}/store/{repository}/{name}"})

    def give(self, repository: str, name: str, about: dict[str, str] | None = None):
        """Send a file, or the part of it that is asked for."""
        content = (self.server.folder / repository / name).read_bytes()
        size, asked = len(content), self.headers.get("Range")
        if not asked or repository == "org/unparted":
            self.send(200, content, about, f"{repository}/{name}")
            return
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        where = {"Content-Range": f"bytes {first}-{min(last, size - 1)}/{size}"}
        self.send(206, content[first : last + 1], where, f"{repository}/{name}")

    def send(self, status: int, body: bytes, headers: dict | None = None, name: str = ""):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.server.served[name] = self.server.served.get(name, 0) + len(body)
            self.wfile.write(body)


def commit(text: str) -> str:
    """Return forty hex digits that stand for something, as git's hashes do."""
    return hashlib.sha1(text.encode()).hexdigest()


def save_adapter(folder: Path, module: str, size: int):
    """Save a LoRA of rank 2 of a square weight."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    factors = {"A": torch.full((2, size), 0.01), "B": torch.full((size, 2), 0.01)}
    named = {f"base_model.model.{module}.lora_{x}.weight": t for x, t in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")


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
                "axes": {"weight": {"low": 0.0, "high": 1.0}},
            },
            "controller": {"kind": "random"},
            "fitness": [{"name": "likely", "function": str(fitness)}],
            "budget": {"evaluations": 2},
            "workers": {"threads": 1},
        }
        file.write_text(yaml.safe_dump(plan))
        self.process.stdin.write(json.dumps([command, str(file), *options]) + "\n")
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
