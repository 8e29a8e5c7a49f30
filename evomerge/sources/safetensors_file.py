"""Weights on disk: safetensors files by their headers, and JSON beside them. Torch-free."""

import json
import math
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from evomerge.dtypes import SIZE
from evomerge.yaml_file import MOST_JSON, parse_json, read_text

LENGTH = 8  # bytes at a file's begin that say how long its header is

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library

_ENTRY = {"dtype", "shape", "data_offsets"}  # what a header says of a tensor

_WORD = 1 << 64  # sizes and offsets lie below


class Tensor(NamedTuple):
    """One stored tensor.

    Attributes:
        dtype: as safetensors writes it, e.g. "BF16".
        shape: of the tensor.
        file: where it is stored.
        key: its name there.
        begin, end: its bytes there.
        rows: how many rows of those stored are taken, from the first; None for all.
        filler: gives the rows that are not stored.

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
    rows: int | None = None
    filler: "Tensor | None" = None

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return self.end - self.begin


def read_json(path: Path) -> Any:
    """Return a JSON file's content, or None if it cannot be read or is no plain file.

    >>> read_json(Path("nowhere.json")) is None
    True
    """
    try:
        # a pipe or a device may never end
        return parse_json(read_text(path, MOST_JSON)) if path.is_file() else None
    except (OSError, ValueError):
        return None


def read_header(file: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file, and check that it adds up.

    What the safetensors library refuses is refused: the tensors fill the data one after another,
    without a hole, an overlap or a rest.

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
    if file.exists() and not file.is_file():
        raise ValueError(f"{file.name} is no plain file")
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = header_length(stream.read(LENGTH), file, size)
        text = stream.read(length)
    return parse_header(text, file, size)


def header_length(begin: bytes, file: Path, size: int) -> int:
    """Return how many bytes of JSON follow the first eight of a safetensors file.

    The data come after them; the JSON's offsets begin there.

    Args:
        begin: the first eight bytes.
        file: whose they are.
        size: of the file.

    Raises:
        ValueError: it cannot hold so many.

    >>> header_length((96).to_bytes(8, "little"), Path("model.safetensors"), 200)
    96
    """
    length: int = struct.unpack("<Q", begin.ljust(LENGTH, b"\0"))[0]
    if size < LENGTH or length > min(size - LENGTH, _MAX_HEADER):
        raise ValueError(f"{file.name} is not a whole safetensors file")
    return length


def parse_header(text: bytes, file: Path, size: int) -> dict[str, Tensor]:
    """Return what a header says, checked as `read_header` does.

    Args:
        text: its JSON.
        file: whose it is, or will be once it is here.
        size: of the file.

    Raises:
        ValueError: it makes no sense, or not of a file of that size.

    >>> text = header_bytes({"head.weight": ("F32", (2, 3))})[LENGTH:]
    >>> size = LENGTH + len(text) + 24
    >>> parse_header(text, Path("model.safetensors"), size)["head.weight"].shape
    (2, 3)
    """
    try:
        header = json.loads(
            text.decode(),
            object_pairs_hook=_object,
            parse_int=_natural,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except _Twice as error:
        raise ValueError(f"{file.name} has {error} twice in its header") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{file.name} is not a safetensors file") from None
    if not isinstance(header, dict) or not _is_metadata(header.pop("__metadata__", None)):
        raise ValueError(f"{file.name} has a header that makes no sense")
    return _tensors(header, file, LENGTH + len(text), size)


class _Twice(ValueError):
    """A name that stands twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(repr(key))
        for text in (key, value):
            if isinstance(text, str):
                text.encode()  # JSON can write half of a surrogate pair, which is no text
        found[key] = value
    return found


def _natural(text: str) -> int:
    """Return a number as the library has it: no -0, and none above 64 bits."""
    if text.startswith("-") or len(text) > len(str(_WORD)) or int(text) >= _WORD:
        raise ValueError(text)
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _is_metadata(said: Any) -> bool:
    if said is None:
        return True
    return isinstance(said, dict) and all(isinstance(text, str) for text in said.values())


def _tensors(header: Mapping[str, Any], file: Path, start: int, size: int) -> dict[str, Tensor]:
    """Return the tensors that a header lists, of which nothing is known yet.

    Args:
        header: what its JSON says, less the metadata.
        file: whose it is.
        start: where the data begin.
        size: of the file.
    """
    tensors = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != _ENTRY:
            raise ValueError(f"{file.name} has a header that makes no sense of tensor {name}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or not _are_naturals(shape):
            raise ValueError(f"{file.name}: tensor {name} has no dtype and shape")
        if not _are_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ValueError(f"{file.name}: tensor {name} lies at {offsets!r:.80}")
        begin, end = offsets
        if start + end > size:
            raise ValueError(f"{file.name} is cut off within tensor {name}")
        if dtype in SIZE and end - begin != _bytes(shape, SIZE[dtype]):
            raise ValueError(f"{file.name}: tensor {name} does not fill its shape {shape!r:.80}")
        tensors[name] = Tensor(dtype, tuple(shape), file, name, start + begin, start + end)
    _check_that_they_follow(tensors, file, start, size)
    return tensors


def _check_that_they_follow(
    tensors: Mapping[str, Tensor], file: Path, start: int, size: int
) -> None:
    """Raise `ValueError` unless the tensors fill a file's data, one after another."""
    in_order = sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end))
    if in_order and in_order[0].begin != start:
        raise ValueError(f"{file.name} has a hole before tensor {in_order[0].key}")
    for one, other in pairwise(in_order):
        if other.begin < one.end:
            raise ValueError(f"{file.name}: tensors {one.key} and {other.key} overlap")
        if other.begin > one.end:
            raise ValueError(f"{file.name} has a hole before tensor {other.key}")
    end = in_order[-1].end if in_order else start
    if end != size:
        raise ValueError(f"{file.name} has {size - end} bytes behind its last tensor")


def _are_naturals(numbers: Any) -> bool:
    # true is an int to Python
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _bytes(shape: list[int], of_one: int) -> int | None:
    """Return what a tensor takes; None where a product on the way, from the left, is too large."""
    count = 1
    for extent in shape:
        count *= extent
        if count >= _WORD:
            return None
    return count * of_one


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]], length: int = 0) -> bytes:
    """Return what stands before the data of a safetensors file.

    Args:
        tensors: name -> (safetensors dtype, shape), in the order of their data.
        length: it is filled up with spaces to so many bytes, a multiple of eight.

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
    # the data begin at a multiple of eight bytes
    text = text.ljust(max(length - LENGTH, len(text) + -len(text) % 8))
    return struct.pack("<Q", len(text)) + text
