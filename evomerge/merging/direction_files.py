"""Files of prepared directions: safetensors, in which tensors of signs are packed.

A direction that is signs lies there as `NAME:signs`, bytes of one or two bits an element. The
factors of all of them come last, as float64, which holds those of every dtype: `:scales`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import torch

from evomerge.dtypes import STORED_DTYPES, packed_bytes
from evomerge.kernels.signs import Signs
from evomerge.sources.safetensors_file import Tensor, header_bytes, read_header
from evomerge.sources.signs import StoredSigns

_SIGNS, _SCALES = ":signs", ":scales"

_Entries = dict[str, tuple[str, tuple[int, ...]]]  # of a safetensors header


class DirectionFile:
    """Writes directions tensor by tensor; the header, which tells their sizes, at the end.

    >>> import tempfile
    >>> like = {"w": Tensor("BF16", (2, 3), Path("base.safetensors"), "w", 0, 12)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "0.safetensors"
    ...     with DirectionFile(file, like) as out:
    ...         out.add("w", Signs.of(torch.ones(2, 3), 0.5))
    ...     read_directions(file, like).signs["w"].scale
    0.5
    """

    def __init__(self, path: Path, like: Mapping[str, Tensor]):
        """
        Args:
            path: of the file.
            like: the base's tensors, in the order in which directions come.
        """
        self._path, self._like = path, like
        self._entries: _Entries = {}
        self._scales: list[float] = []
        # no header is longer than one in which every tensor is there in both ways
        longest: _Entries = {_SCALES: ("F64", (len(like),))}
        for name, tensor in like.items():
            longest[name] = (tensor.dtype, tensor.shape)
            longest[name + _SIGNS] = ("U8", (packed_bytes(tensor.elements, bits=2),))
        self._header = len(header_bytes(longest))

    def __enter__(self) -> Self:
        self._stream: BinaryIO = open(self._path, "wb")
        self._stream.write(bytes(self._header))
        return self

    def add(self, name: str, direction: torch.Tensor | Signs) -> None:
        """Write one direction in the dtype of the base's tensor."""
        like = self._like[name]
        dtype: torch.dtype = getattr(torch, STORED_DTYPES[like.dtype])
        if isinstance(direction, Signs):
            self._scales.append(direction.rounded(dtype).scale)
            self._entries[name + _SIGNS] = ("U8", (len(direction.codes),))
            stored = direction.codes.cpu()
        else:
            self._entries[name] = (like.dtype, like.shape)
            stored = direction.to(dtype).contiguous().cpu()
        self._stream.write(stored.reshape(-1).view(torch.uint8).numpy().data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stream as stream:
            if error is not None:
                return
            if self._scales:
                self._entries[_SCALES] = ("F64", (len(self._scales),))
                stream.write(np.array(self._scales, "<f8").tobytes())
            stream.seek(0)
            stream.write(header_bytes(self._entries, self._header))
            stream.flush()  # a rename may outlive a power cut that the data does not
            os.fsync(stream.fileno())


class Directions(NamedTuple):
    """What a file of directions holds.

    Attributes:
        tensors: those that are dense, by name.
        signs: those that are signs.

    >>> Directions({}, {}).signs
    {}
    """

    tensors: dict[str, Tensor]
    signs: dict[str, StoredSigns]


def read_directions(file: Path, like: Mapping[str, Tensor]) -> Directions:
    """Open a file of directions by its header.

    Args:
        file: that `DirectionFile` has written.
        like: the base's tensors.

    Raises:
        ValueError: it is no such file, or not a whole one, or not of this base.
        OSError: it cannot be read.

    >>> read_directions(Path("nowhere.safetensors"), {})
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.safetensors'
    """
    stored = read_header(file)
    place = stored.pop(_SCALES, None)
    scales = iter([] if place is None else _numbers(place))
    tensors, signs = {}, {}
    for name, tensor in like.items():
        codes = stored.get(name + _SIGNS)
        if codes is None:
            if name not in stored or stored[name].shape != tensor.shape:
                raise ValueError(f"{file.name} holds no direction of {name}")
            tensors[name] = stored[name]
            continue
        bits = 1 if codes.bytes == packed_bytes(tensor.elements, bits=1) else 2
        scale = next(scales, None)
        if scale is None or codes.bytes != packed_bytes(tensor.elements, bits):
            raise ValueError(f"{file.name} holds no signs of {name}")
        signs[name] = StoredSigns(codes, bits, scale, tensor.dtype, tensor.shape)
    return Directions(tensors, signs)


def _numbers(stored: Tensor) -> list[float]:
    with open(stored.file, "rb") as stream:
        stream.seek(stored.begin)
        numbers: list[float] = np.frombuffer(stream.read(stored.bytes), "<f8").tolist()
        return numbers
