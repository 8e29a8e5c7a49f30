"""A campaign file's mapping, with `--set` overrides put in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import BadInput, Fault
from evomerge.yaml_file import _Loader, read_yaml


def read(path: Path | str, settings: Sequence[str] = ()) -> dict:
    """Read a campaign file's mapping with `settings` put in; its form is not yet checked.

    Raises:
        BadInput: it is no mapping in YAML, or a setting has no place in it.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        mend = "see search_spaces/ for examples"
        raise BadInput(Fault(str(path), "", "a campaign file is a mapping of keys", mend))
    for setting in settings:
        _override(data, setting)
    return data


def _override(data: dict, setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise BadInput(Fault("--set", setting, "is not key=value", "write e.g. budget.hours=2"))
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadInput(Fault("--set", key, f"'{text}' is not YAML", "quote it")) from None
    *path, last = key.split(".")
    for part in path:
        data = _child(data, part, key)
    if isinstance(data, list):
        data[_index(data, last, key)] = value
    else:
        data[last] = value


def _child(data: Any, part: str, key: str) -> Any:
    here = isinstance(data, list)
    child = data[_index(data, part, key)] if here else data.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise BadInput(Fault("--set", key, f"'{part}' is no mapping", "name a key of a mapping"))
    return child


def _index(data: list, part: str, key: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(data):
        mend = f"write a number below {len(data)}"
        raise BadInput(Fault("--set", key, f"there is no entry '{part}'", mend))
    return int(part)
