"""A campaign file's mapping, with `--set` overrides put in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import BadInput, Fault
from evomerge.yaml_file import parse_yaml, read_yaml


def read_mapping(path: Path | str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Read a campaign file's mapping with `settings` put in; its form is not yet checked.

    Raises:
        BadInput: it is no mapping in YAML, or a setting has no place in it; placed in its file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "a.yaml"
    ...     _ = file.write_text("budget: {evaluations: 3}")
    ...     read_mapping(file, ["budget.hours=2"])
    {'budget': {'evaluations': 3, 'hours': 2}}
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        mend = "see search_spaces/ for examples"
        wrong = "a campaign file is a mapping of keys"
        raise BadInput(Fault("", wrong, mend, file=str(path)))
    for setting in settings:
        _override(data, setting)
    return data


def _refused(key: str, wrong: str, mend: str) -> BadInput:
    return BadInput(Fault(key, wrong, mend, file="--set"))


def _override(data: Any, setting: str) -> None:
    """Put one `a.b=YAML` into a mapping, in place."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise _refused(setting, "is not key=value", "write e.g. budget.hours=2")
    try:
        value = parse_yaml(text)
    except ValueError:
        shown = " ".join(text.split())
        raise _refused(key, f"'{shown:.80}' is not YAML", "quote it") from None
    *path, last = key.split(".")
    for part in path:
        data = _child(data, part, key)
    if isinstance(data, list):
        data[_index(data, last, key)] = value
    else:
        data[last] = value


def _child(data: Any, part: str, key: str) -> Any:
    """Return a mapping's or list's entry, making a mapping where there is none."""
    in_list = isinstance(data, list)
    child = data[_index(data, part, key)] if in_list else data.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise _refused(key, f"'{part}' is no mapping", "name a key of a mapping")
    return child


def _index(data: list[Any], part: str, key: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(data):
        raise _refused(key, f"there is no entry '{part}'", f"write a number below {len(data)}")
    return int(part)
