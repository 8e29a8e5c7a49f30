"""The half of the stand-in for the hub that takes models: repositories, LFS objects, commits.

It answers what huggingface_hub asks when it makes a repository or a branch and commits to it by
LFS. Who writes must have the token; `me` and `org` are its namespaces, others refuse it.
"""

import base64
import hashlib
import http.server
import json
from dataclasses import dataclass, field

import yaml

TOKEN = "hf_doNotTellAnybody"


def commit(text: str) -> str:
    """Return forty hex digits that stand for something, as git's hashes do."""
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, list[str]] = field(default_factory=lambda: {"main": []})

    def head(self, branch: str) -> str:
        return commit(str(self.commits[branch]))


class Pushed:
    """What was pushed, and how the next pushes fail."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.failures: list[tuple[str, int]] = []  # (a part of an address, status), each once
        self.asked: list[tuple[str, str]] = []  # (method, address) of all that writes
        self.cards: list[str] = []  # that were to be validated

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[name].branches[branch]


class Uploads(http.server.BaseHTTPRequestHandler):
    """Takes what is pushed."""

    @property
    def pushed(self) -> Pushed:
        return self.server.pushed

    def do_PUT(self):
        self.take()

    def do_POST(self):
        self.take()

    def reply(self, status: int, data: object, code: str = ""):
        body = json.dumps(data).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def is_known(self) -> bool:
        """Answer who has no token, or another."""
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not is_known:
            self.reply(401, {"error": "Invalid credentials in Authorization header"})
        return is_known

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def take(self):
        body, path = self.body(), self.path.partition("?")[0].strip("/")
        self.pushed.asked.append((self.command, path))
        for part, status in self.pushed.failures:
            if part in path:
                self.pushed.failures.remove((part, status))
                self.reply(status, {"error": "told to fail"})
                return
        parts = path.split("/")
        if parts[0] == "lfs":  # another host in truth, to which the address itself is the key
            self.take_object(parts[1], body)
        elif not self.is_known():
            return
        elif path == "api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif path == "api/repos/create":
            self.create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.offer(json.loads(body)["objects"])
        elif parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.pushed.repositories:
            name, action, branch = "/".join(parts[2:4]), parts[4], parts[5]
            getattr(self, f"take_{action}")(name, branch, body)
        else:
            self.reply(404, {"error": "Repository not found"}, "RepoNotFound")

    def validate(self, card: str):
        self.pushed.cards.append(card)
        head = yaml.safe_load(card.split("---\n")[1])
        is_right = isinstance(head, dict) and isinstance(head.get("license", ""), str)
        errors = [] if is_right else [{"message": '"license" must be a string'}]
        self.reply(200 if is_right else 400, {"errors": errors, "warnings": []})

    def create(self, asked: dict):
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in ("me", "org"):
            self.reply(403, {"error": f"You don't have the rights to create {name}"})
        elif name in self.pushed.repositories:
            self.reply(409, {"error": "You already created this model repo", "url": name})
        else:
            found = self.pushed.repositories[name] = Repository(
                asked.get("visibility") == "private"
            )
            found.branches["main"][".gitattributes"] = b"*.safetensors filter=lfs\n"
            self.reply(200, {"url": f"{self.server.url}/{name}"})

    def take_branch(self, name: str, branch: str, body: bytes):
        repository = self.pushed.repositories[name]
        if branch in repository.branches:
            self.reply(409, {"error": "Reference already exists"})
            return
        repository.branches[branch] = dict(repository.branches["main"])
        repository.commits[branch] = list(repository.commits["main"])
        self.reply(200, {})

    def take_preupload(self, name: str, branch: str, body: bytes):
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.reply(200, {"files": files})

    def offer(self, objects: list[dict]):
        """Say where each object is to be put; one that is there already needs no place."""
        offered = []
        for one in objects:
            about = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.pushed.objects:
                about["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
            offered.append(about)
        self.reply(200, {"transfer": "basic", "objects": offered})

    def take_object(self, oid: str, body: bytes):
        if hashlib.sha256(body).hexdigest() != oid:
            self.reply(400, {"error": "it is not what its name says"})
            return
        self.pushed.objects[oid] = body
        self.reply(200, {})

    def take_commit(self, name: str, branch: str, body: bytes):
        """Change all files at once, or none."""
        repository = self.pushed.repositories[name]
        lines = [json.loads(line) for line in body.splitlines()]
        files, head = dict(repository.branches[branch]), lines[0]["value"]
        if head.get("parentCommit", repository.head(branch)) != repository.head(branch):
            self.reply(412, {"error": "A commit has happened since"})
            return
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.pushed.objects[value["oid"]]
            else:
                del files[value["path"]]
        repository.branches[branch] = files
        repository.commits[branch].append(head["summary"])
        oid = repository.head(branch)
        url = f"{self.server.url}/{name}/commit/{oid}"
        self.reply(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def tell_pushed(self, name: str, branch: str):
        """What a repository is that was made here, to those who may see it."""
        repository = self.pushed.repositories[name]
        if repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Repository not found"}, "RepoNotFound")
        elif branch not in repository.branches:
            self.reply(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        else:
            listed = [{"rfilename": file} for file in repository.branches[branch]]
            about = {"id": name, "sha": repository.head(branch), "private": repository.private}
            self.reply(200, about | {"siblings": listed})

    def tell_who(self):
        if self.is_known():
            self.reply(200, {"type": "user", "name": "me", "orgs": [{"name": "org"}]})
