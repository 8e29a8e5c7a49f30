"""A server on this machine that speaks the hub's API as its client calls it, to read and to write.

It has what huggingface_hub asks for when it downloads, and, by `hub_uploads`, when it pushes; not
the protocol of Xet, which is switched off where this stands in.
"""

import http.server
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from hub_uploads import Pushed, Uploads, commit
from safetensors.torch import save_file

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
        self.pushed = Pushed()
        self.strangers: list[str] = []  # what the other host was told of who asks
        self.url = f"http://127.0.0.1:{self.server_port}"

    def weights_served(self) -> dict[str, int]:
        """Return the bytes of each file of weights that were served since this was asked."""
        found = {name: n for name, n in self.served.items() if name.endswith(".safetensors")}
        self.served.clear()
        return found


class Answer(Uploads):
    server: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_):
        pass

    def answer(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            self.tell_who()
        elif parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.pushed.repositories:
            self.tell_pushed("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif parts[:2] == ["api", "models"]:
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
            within = folder.joinpath(*parts[4:])
            is_deep = "recursive=true" in self.path.lower()
            listed = []
            for file in sorted(within.rglob("*") if is_deep else within.iterdir()):
                place = file.relative_to(folder).as_posix()
                about = {"path": place, "oid": commit(place)}
                about |= {"type": "directory"} if file.is_dir() else {"type": "file"}
                listed.append(about | {"size": file.stat().st_size})
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


def save_adapter(folder: Path, module: str, size: int):
    """Save a LoRA of rank 2 of a square weight."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    factors = {"A": torch.full((2, size), 0.01), "B": torch.full((size, 2), 0.01)}
    named = {f"base_model.model.{module}.lora_{x}.weight": t for x, t in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")
