"""Where a source lies: a directory, or a repository of the hub."""

import os
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import BadInput, Fault
from evomerge.sources.hub import fetch
from evomerge.sources.safetensors_file import read_json

# What of a hub's repository is fetched at once: code, settings, tokenizers of all kinds,
# and the card, which says the licence.
_SETTINGS = [
    "*.py",
    "*.json",
    "*.model",
    "*.jinja",
    "*.txt",
    "*.tiktoken",
    "tokenizer*",
    "[1-9]_*/model.safetensors",  # small ones, of the modules behind a sentence embedder
    "LICENSE*",
    "README.md",
]


def locate(name: str, *, also: Sequence[str] = ()) -> Path:
    """Return the local directory of a source; of a hub id[@revision] the settings are fetched.

    Args:
        name: a directory (`~` is the user's home) or a hub id.
        also: names of files that are fetched of a hub id beside its settings.

    Raises:
        BadInput: it is neither a directory nor to be had from the hub.

    >>> locate("./nowhere")
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no directory './nowhere'; write a model directory ...
    """
    if (directory := local_directory(name)) is not None:
        return directory
    repository = name.partition("@")[0]
    looks_local = name.startswith((".", "/", "~")) or repository.count("/") != 1 or " " in name
    if looks_local:
        mend = "write a model directory (relative to where evomerge is started) or a hub id"
        raise BadInput(Fault("", f"there is no directory '{name}'", mend))
    return fetch(name, [*_SETTINGS, *also])


def local_directory(name: str) -> Path | None:
    """Return the directory that a source's name is, None of one that is none.

    Raises:
        BadInput: the file system does not take such a name.

    >>> local_directory("org/model") is None
    True
    """
    try:
        if Path(name).is_dir():
            return Path(name)
        at_home = Path(os.path.expanduser(name))  # unlike Path.expanduser it never raises
        if at_home.is_dir():
            return at_home
    except (OSError, ValueError) as error:  # a null byte is a ValueError
        wrong = f"'{name[:80]}' cannot be read ({getattr(error, 'strerror', None) or error})"
        raise BadInput(Fault("", wrong)) from None
    return None


def what_it_is_instead(path: Path) -> Fault | None:
    """Return what a directory without config.json is, where it is something that people name.

    >>> what_it_is_instead(Path("nowhere")) is None
    True
    """
    adapter = read_json(path / "adapter_config.json")
    if isinstance(adapter, dict):
        base = adapter.get("base_model_name_or_path") or "BASE"
        mend = f"write {{model: {base}, adapter: {path}}} (in a recipe {base}+{path})"
        return Fault("", f"{path}: is an adapter, not a model", mend)
    try:
        snapshots = [p for p in (path / "snapshots").iterdir() if p.is_dir()]
    except OSError:
        return None
    if not snapshots:
        return None
    newest = max(snapshots, key=lambda p: p.stat().st_mtime)
    return Fault("", f"{path}: is a repository in the hub's cache", f"write {newest}")
