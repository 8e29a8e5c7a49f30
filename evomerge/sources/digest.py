"""The one pass over a source's weights: its content's hash, and what is not finite."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evomerge.canonical import canonical_json
from evomerge.dtypes import EXPONENT, INTEGER, SIZE
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, Fault
from evomerge.sources.safetensors_file import read_json
from evomerge.sources.source import (
    CONFIG_NOISE,
    Source,
)


class Digest(NamedTuple):
    """One pass over the weights: the content's sha256, and the tensors that are not finite."""

    sha256: str
    not_finite: tuple[str, ...]


def files_of(source: Source) -> list[Path]:
    """Return every file that a source's content comes from, or would if it were there."""
    files = sorted({t.file for _, t in source.stored})
    beside = [source.path / "config.json", source.path / "tokenizer.json"]
    beside += [source.adapter.path / "adapter_config.json"] if source.adapter else []
    files += beside
    files += [source.factory.file] if source.factory else []
    return files


def touched(file: str | Path) -> tuple[int, int] | tuple[()]:
    """Return a file's size and the time of its last change in nanoseconds; () of none."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return ()
    return found.st_size, found.st_mtime_ns


def digest(source: Source) -> Digest:
    """Hash a source's content and look for NaN and infinity, in one pass over its weights.

    Cached in `$XDG_CACHE_HOME/evomerge` by path, size and time of every file. The content
    is the weights by name, the config less its history, and the tokenizer.
    """
    seen = [(file, touched(file)) for file in files_of(source)]
    now = [[str(file.resolve()), *found] for file, found in seen if found]
    made = [source.factory.place, source.factory.definition] if source.factory else []
    name = hashlib.sha256(canonical_json([*now, *made]).encode()).hexdigest()
    cache = cache_folder("digests")
    known = read_json(cache / f"{name}.json")
    if isinstance(known, dict) and known.get("stamp") == now:
        return Digest(known["sha256"], tuple(known["not_finite"]))
    found = _digest(source)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        beside = cache / f"{name}.{os.getpid()}.tmp"
        beside.write_text(json.dumps({"stamp": now, **found._asdict()}))
        beside.replace(cache / f"{name}.json")
    except OSError:
        return found  # a home that cannot be written costs the next start a pass, no more
    return found


def _digest(source: Source, chunk: int = 1 << 24) -> Digest:
    config = {k: v for k, v in source.config.items() if k not in CONFIG_NOISE}
    sha = hashlib.sha256(canonical_json(config).encode())
    sha.update(canonical_json(source.vocabulary).encode())
    not_finite = []
    for name, t in source.stored:
        sha.update(canonical_json([name, t.dtype, t.shape]).encode())
        exponent, finite = EXPONENT[t.dtype], True
        with open(t.file, "rb") as stream:
            stream.seek(t.begin)
            left = t.bytes
            while left:
                block = stream.read(min(chunk, left))
                if not block:
                    wrong = f"{t.file} ends within tensor {name}"
                    raise BadInput(Fault(str(source.path), "", wrong, "download it again"))
                left -= len(block)
                sha.update(block)
                bits = np.frombuffer(block, INTEGER[SIZE[t.dtype]])
                finite = finite and not ((bits & exponent) == exponent).any()
        if not finite:
            not_finite.append(name)
    return Digest(sha.hexdigest(), tuple(not_finite))
