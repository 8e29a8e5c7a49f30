"""Weights on disk: safetensors files by their headers, and JSON beside them. Torch-free."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.dtypes import SIZE
from evomerge.errors import one_line

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


class Tensor(NamedTuple):
    """One stored tensor.

    Attributes:
        dtype: as safetensors writes it, e.g. "BF16".
        shape: of the tensor.
        file: where it is stored.
        key: its name there.
        begin, end: its bytes there.

    >>> tensor = Tensor("BF16", (2, 3), Path("model.safetensors"), "head.weight", 80, 92)
    >>> tensor.elements, tensor.bytes
    (6, 12)
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    key: str
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return self.end - self.begin


def read_json(path: Path) -> Any:
    """Return a JSON file's content, or None if it cannot be read.

    >>> read_json(Path("nowhere.json")) is None
    True
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def shards(path: Path) -> list[Path]:
    """Return the files that hold a model directory's weights.

    Raises:
        ValueError: the index of shards makes no sense, or a shard is missing.
        FileNotFoundError: there is no index and no single file.

    >>> shards(Path("nowhere"))
    Traceback (most recent call last):
    FileNotFoundError: nowhere
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        listed = read_json(index)
        if not isinstance(listed, dict) or not isinstance(listed.get("weight_map"), dict):
            raise ValueError(f"{index.name} is not an index of shards")
        names = set(listed["weight_map"].values())
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{index.name} names {name!r}, which is no file beside it")
        missing = sorted(name for name in names if not (path / name).exists())
        if missing:
            raise ValueError(f"{len(missing)} of {len(names)} shards are missing: {missing[0]}")
        return [path / name for name in sorted(names)]
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    raise FileNotFoundError(path)


def read_header(file: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file, and check that it adds up.

    Returns:
        Name -> tensor, in the header's order.

    Raises:
        ValueError: it is no such file, or not a whole one.
        OSError: it cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "model.safetensors"
    ...     _ = file.write_bytes(header_bytes({"head.weight": ("F32", (2, 3))}) + bytes(24))
    ...     print(read_header(file)["head.weight"].shape)
    (2, 3)
    """
    # 8 bytes of length, JSON of that length, then the data, to which the JSON's offsets refer
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"{file.name} is not a whole safetensors file")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise ValueError(f"{file.name} is not a safetensors file") from None
    try:
        return _tensors(header, file, 8 + length, size)
    except (AttributeError, KeyError, TypeError) as error:
        wrong = f"{file.name} has a header that makes no sense ({one_line(error)})"
        raise ValueError(wrong) from None


def _tensors(header: Any, file: Path, start: int, size: int) -> dict[str, Tensor]:
    """Return the tensors that a header lists, of which nothing is known yet.

    Args:
        header: what its JSON says.
        file: whose it is.
        start: where the data begin.
        size: of the file.
    """
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if not all(isinstance(n, int) and n >= 0 for n in (begin, end, *shape)) or begin > end:
            raise ValueError(f"{file.name}: tensor {name} lies at {begin!r} to {end!r}")
        if start + end > size:
            raise ValueError(f"{file.name} is cut off within tensor {name}")
        size_of_one = SIZE.get(entry["dtype"])
        if size_of_one is not None and end - begin != math.prod(shape) * size_of_one:
            raise ValueError(f"{file.name}: tensor {name} does not fill its shape {shape}")
        tensors[name] = Tensor(entry["dtype"], shape, file, name, start + begin, start + end)
    return tensors


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Return what stands before the data of a safetensors file.

    Args:
        tensors: name -> (safetensors dtype, shape), in the order of their data.

    >>> len(header_bytes({"head.weight": ("F32", (2, 3))})) % 8
    0
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * SIZE[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text
