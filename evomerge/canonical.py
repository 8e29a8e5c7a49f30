"""JSON and hashes that are the same wherever they are made."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def canonical_json(data: Any) -> str:
    """Return `data` as JSON with sorted keys, no spaces, no NaN and no negative zero."""
    return json.dumps(_positive_zeros(data), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _positive_zeros(data: Any) -> Any:
    if isinstance(data, float):
        return data + 0.0  # -0.0 + 0.0 is 0.0
    if isinstance(data, Mapping):
        return {k: _positive_zeros(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_positive_zeros(v) for v in data]
    return data


def file_hash(path: Path) -> str:
    """Return 16 hex digits that change with a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def item_hash(item: Any) -> str:
    """Return 16 hex digits that change with an item's content."""
    text = json.dumps(item, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
