"""JSON and hashes that are the same wherever they are made."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def canonical_json(data: Any) -> str:
    """Return JSON-able data as text with sorted keys, no spaces, no NaN and no negative zero.

    Raises:
        ValueError: a number is not finite.

    >>> canonical_json({"b": -0.0, "a": (1, None)})
    '{"a":[1,null],"b":0.0}'
    """
    return json.dumps(positive_zeros(data), sort_keys=True, separators=(",", ":"), allow_nan=False)


def positive_zeros(data: Any) -> Any:
    """Return JSON-able data without negative zeros, tuples as lists.

    >>> positive_zeros({"weight": (-0.0, 1)})
    {'weight': [0.0, 1]}
    """
    if isinstance(data, float):
        return data + 0.0  # -0.0 + 0.0 is 0.0
    if data is None or isinstance(data, str | int):  # nearly all: a look at `Mapping` is slow
        return data
    if isinstance(data, Mapping):
        return {key: positive_zeros(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [positive_zeros(value) for value in data]
    return data


def json_hash(data: Any) -> str:
    """Return the sha256 of data's canonical JSON, 64 hex digits.

    >>> json_hash({"a": 0.0}) == json_hash({"a": -0.0})
    True
    """
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return 16 hex digits that change with a file's content.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "text"
    ...     _ = file.write_text("abc")
    ...     print(file_hash(file))
    ba7816bf8f01cfea
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def item_hash(item: Any) -> str:
    """Return 16 hex digits that change with an item's content; what is no JSON counts as its text.

    >>> item_hash({"question": "2 + 2", "answer": 4})
    '34c9702eae009007'
    """
    text = json.dumps(item, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
