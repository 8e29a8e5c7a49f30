"""The hub's ids of models, by how they are named here or where they lie."""

import os
import re
from pathlib import Path

from evomerge.sources.named_parts import split_parts

_CACHED = re.compile(r"(?:^|/)models--([^/]+)/snapshots/[^/]+/*$")

# What the hub takes as an id, in `huggingface_hub`'s words of its rules.
_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9](?:[\w.-]*\w)?", re.ASCII)
_LONGEST = 96


def hub_ids(name: str, place: str | None = None) -> list[str]:
    """Return the hub's ids of a model, and of its adapter if it has one; those of no hub are none.

    Args:
        name: a directory or an id[@revision], either with `+adapter`.
        place: the directory or directories that were read, where that is known.

    >>> hub_ids("org/model@main"), hub_ids("/models/mine")
    (['org/model'], [])
    >>> hub_ids("here", "/home/me/hub/models--org--model/snapshots/9c1f+/home/me/lora")
    ['org/model']
    """
    found = []
    if place is None:
        for part in _parts(name):
            if os.path.isdir(part):
                found.append(_cached_id(os.path.realpath(part)))
            else:
                repository = part.partition("@")[0]
                found.append(repository if "/" in repository and _is_id(repository) else "")
    else:
        found += [_cached_id(part) for part in _parts(place)]
    return [repository for repository in found if repository]


def published(name: str, place: str | None = None) -> str:
    """Return the name of a model by which others find it; "" of one that is of no hub.

    Args:
        name, place: see `hub_ids`.

    >>> published("org/base@main+org/lora"), published("models/mine")
    ('org/base@main+org/lora', 'models/mine')
    >>> published("here", "/home/me/hub/models--org--model/snapshots/9c1f")
    'org/model@9c1f'
    """
    named = _parts(name)
    places = [None] * len(named) if place is None else _parts(place)
    if len(named) != len(places):  # a folder with a plus in its name, which is gone
        return ""
    found = []
    for part, folder in zip(named, places, strict=True):
        ids = hub_ids(part, folder)
        if not ids:
            return ""
        if part.partition("@")[0] == ids[0] and not os.path.isdir(part):
            found.append(part)
        else:  # its folder in the hub's cache, which is called as the commit is
            found.append(f"{ids[0]}@{Path(folder or os.path.realpath(part)).name}")
    return "+".join(found)


def base_id(name: str, place: str | None = None) -> str:
    """Return the hub's id of the model below an adapter; "" of one of no hub.

    Args:
        name, place: see `hub_ids`.

    >>> base_id("org/base@main+org/lora")
    'org/base'
    """
    ids = hub_ids(_parts(name)[0], None if place is None else _parts(place)[0])
    return ids[0] if ids else ""


def base_model(name: str, place: str | None = None) -> tuple[str, str | None]:
    """Return the model below an adapter, as adapter_config.json names it, and its revision.

    Args:
        name, place: see `hub_ids`.

    Returns:
        A hub id and the revision that `name` asks for, or a directory and None.

    >>> base_model("org/base@main+adapters/ja"), base_model("there/absent", "/moved/base+lora")
    (('org/base', 'main'), ('/moved/base', None))
    """
    model = _parts(name)[0]
    if repository := base_id(name, place):
        return repository, model.partition("@")[2] or None
    if place is not None and not os.path.isdir(os.path.expanduser(model)):
        model = _parts(place)[0]
    return model, None


def folders(place: str) -> list[Path]:
    """Return the directory of a model and that of its adapter, if it has one.

    Args:
        place: see `hub_ids`.

    >>> folders("/models/base+/adapters/ja")
    [PosixPath('/models/base'), PosixPath('/adapters/ja')]
    """
    return list(map(Path, _parts(place)))


def _parts(name: str) -> list[str]:
    """Return a model and its adapter; a directory whose own name has a plus is a model."""
    name, _ = split_parts(name)
    model, plus, adapter = name.rpartition("+")
    return [model, adapter] if plus and not os.path.isdir(name) else [name]


def _cached_id(directory: str) -> str:
    """Return the id of a snapshot in the hub's cache; "" of another directory."""
    match = _CACHED.search(directory)
    repository = match[1].replace("--", "/") if match else ""
    return repository if _is_id(repository) else ""


def _is_id(text: str) -> bool:
    if not _ID.fullmatch(text) or len(text) > _LONGEST:
        return False
    return "--" not in text and ".." not in text and not text.endswith(".git")
