"""The one pass over a source's weights: its content's hash, and what is not finite."""

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evomerge.cache.holding import touch
from evomerge.canonical import canonical_json, json_hash
from evomerge.dtypes import EXPONENT, INTEGER, SIZE
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, Fault
from evomerge.node.once import one_at_a_time
from evomerge.node.phases import phase
from evomerge.sources.safetensors_file import Tensor, read_json
from evomerge.sources.source import CONFIG_NOISE, Source
from evomerge.whole_files import written_beside

_CHUNK = 1 << 24  # bytes read at once: 16 MiB, long enough for a disk, short enough for a cache


class Digest(NamedTuple):
    """What one pass over the weights tells.

    Attributes:
        sha256: of the content, 64 hex digits.
        not_finite: the names of tensors that hold NaN or infinity.

    >>> Digest("0" * 64, ("lm_head.weight",)).not_finite
    ('lm_head.weight',)
    """

    sha256: str
    not_finite: tuple[str, ...]


def files_of(source: Source) -> list[Path]:
    """Return every file that a source's content comes from, or would if it were there.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files_of(open_source(str(tiny_llama(folder, seed=0))))
    [...model.safetensors'), ...config.json'), ...tokenizer.json')]
    """
    files = sorted({tensor.file for _, tensor in source.stored})
    if source.form != "file":
        files += [source.path / "config.json", source.path / "tokenizer.json"]
    files += [source.path / part / "config.json" for part in source.components]
    files += [source.path / place for place in source.config.get("carried_files", ())]
    if source.adapter is not None:
        files.append(source.adapter.path / "adapter_config.json")
    if source.factory is not None:
        files.append(source.factory.file)
    return [*files, *source.evidence.files.values()]


def touched(file: str | Path) -> tuple[int, ...]:
    """Return a file's size, the time of its last change in nanoseconds, and its place; () of none.

    Its place is the inode and the device: another file may have been put there with all else alike.

    >>> touched("nowhere")
    ()
    """
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def digest(source: Source) -> Digest:
    """Hash a source's content and look for NaN and infinity, in one pass over its weights.

    Cached in `$XDG_CACHE_HOME/evomerge` by path, size, time and place of every file, and made by
    one process of a machine while the others wait. The content is the weights by name, the config
    less its history, the tokenizer, and what is known of it beside.

    Raises:
        BadInput: a file ends within a tensor.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(folder, seed=0)))
    ...     len(digest(source).sha256), digest(source).not_finite
    (64, ())
    """
    stamp = []
    for file in files_of(source):
        if change := touched(file):
            stamp.append([str(file.resolve()), *change])
    factory = source.factory
    made_by = [] if factory is None else [factory.place, factory.definition]
    made_by += source.evidence.files  # one file may be of either kind
    made_by += source.parts
    cached = cache_folder("digests") / f"{json_hash([*stamp, *made_by])}.json"
    if known := _known(cached, stamp):
        return known
    doing = f"hashing {source.place}"
    with one_at_a_time(cached.with_suffix(".lock"), doing, or_all=True):
        if known := _known(cached, stamp):  # by who held the lock before
            return known
        phase(doing)
        fresh = _digest(source)
        # a home that cannot be written to costs the next start a pass, no more
        with contextlib.suppress(OSError), written_beside(cached) as temporary:
            temporary.write_text(json.dumps({"stamp": stamp, **fresh._asdict()}))
    return fresh


def _known(cached: Path, stamp: list[list[Any]]) -> Digest | None:
    """Return what was found before for the same files, None if it was not."""
    known = read_json(cached)
    if not isinstance(known, dict) or known.get("stamp") != stamp:
        return None
    touch(cached)
    return Digest(known["sha256"], tuple(known["not_finite"]))


def _digest(source: Source) -> Digest:
    source = source.unaligned or source
    config = {key: value for key, value in source.config.items() if key not in CONFIG_NOISE}
    sha = hashlib.sha256(canonical_json(_finite(config)).encode())
    sha.update(canonical_json(source.vocabulary).encode())
    if source.parts:  # other parts of one model are another source
        sha.update(canonical_json(list(source.parts)).encode())
    if source.evidence.suffix:
        sha.update(source.evidence.hash.encode())
    not_finite = []
    for name, tensor in source.stored:
        sha.update(canonical_json([name, tensor.dtype, tensor.shape]).encode())
        if not _hash_numbers(tensor, sha):
            not_finite.append(name)
    return Digest(sha.hexdigest(), tuple(not_finite))


def _finite(data: Any) -> Any:
    """Return JSON-able data with infinities, which some configs have, as texts."""
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list) else data


def _hash_numbers(tensor: Tensor, sha: "hashlib._Hash") -> bool:
    """Hash a tensor's bytes, and tell whether all of its numbers are finite."""
    exponent, finite = EXPONENT.get(tensor.dtype, 0), True  # integers have none
    integer = INTEGER.get(SIZE[tensor.dtype], "u1")
    with open(tensor.file, "rb") as stream:
        stream.seek(tensor.begin)
        left = tensor.bytes
        while left:
            block = stream.read(min(_CHUNK, left))
            if not block:
                wrong = f"{tensor.file} ends within tensor {tensor.key}"
                raise BadInput(Fault("", wrong, "download it again"))
            left -= len(block)
            sha.update(block)
            # a number is infinite or NaN where its exponent has every bit set
            bits = np.frombuffer(block, integer)
            finite = finite and not (exponent and ((bits & exponent) == exponent).any())
    return finite
