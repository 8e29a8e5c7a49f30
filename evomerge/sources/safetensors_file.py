"""Weights on disk: safetensors files by their headers, and JSON beside them. Torch-free."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.dtypes import SIZE

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


class Tensor(NamedTuple):
    """One stored tensor: its safetensors dtype and shape, its file, its key and bytes there."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    key: str
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.end - self.begin


def read_json(path: Path) -> Any:
    """Return a JSON file's content, or None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def shards(path: Path) -> list[Path]:
    """Return the files that hold the weights; ValueError or FileNotFoundError if they do not."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        listed = read_json(index)
        if not isinstance(listed, dict) or not isinstance(listed.get("weight_map"), dict):
            raise ValueError(f"{index.name} is not an index of shards")
        shards = sorted(set(listed["weight_map"].values()))
        if strange := [s for s in shards if not isinstance(s, str) or Path(s).name != s]:
            raise ValueError(f"{index.name} names {strange[0]!r}, which is no file beside it")
        if missing := [s for s in shards if not (path / s).exists()]:
            raise ValueError(f"{len(missing)} of {len(shards)} shards are missing: {missing[0]}")
        return [path / s for s in shards]
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    raise FileNotFoundError(path)


def read_header(file: Path) -> dict[str, Tensor]:
    """Read a safetensors header (8 bytes of length, JSON, then the data); check it adds up."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"{file.name} is not a whole safetensors file")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise ValueError(f"{file.name} is not a safetensors file") from None
    tensors, start = {}, 8 + length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if not all(isinstance(n, int) and n >= 0 for n in (begin, end, *shape)) or begin > end:
            raise ValueError(f"{file.name}: tensor {name} lies at {begin!r} to {end!r}")
        if start + end > size:
            raise ValueError(f"{file.name} is cut off within tensor {name}")
        size_of = SIZE.get(entry["dtype"])
        if size_of and end - begin != math.prod(shape) * size_of:
            raise ValueError(f"{file.name}: tensor {name} does not fill its shape {shape}")
        tensors[name] = Tensor(entry["dtype"], shape, file, name, start + begin, start + end)
    return tensors


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Return what stands before the data of a safetensors file.

    Args:
        tensors: name -> (safetensors dtype, shape), in the order of their data.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * SIZE[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text
