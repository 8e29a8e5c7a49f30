"""Stored signs: a tensor of one or two bits an element and one number, by its place. Torch-free."""

from typing import NamedTuple

from evomerge.sources.safetensors_file import Tensor


class StoredSigns(NamedTuple):
    """A tensor of the numbers s, -s and, of two bits, 0; see `kernels.signs.Signs`.

    Attributes:
        codes: where they lie, as bytes.
        bits: of each element's code, 1 or 2.
        scale: s.
        dtype: of the tensor that they stand for, as safetensors writes it.
        shape: of that tensor.

    >>> from pathlib import Path
    >>> codes = Tensor("U8", (16,), Path("0.safetensors"), "w:signs", 80, 96)
    >>> StoredSigns(codes, 1, 0.01, "BF16", (10, 10)).codes.bytes
    16
    """

    codes: Tensor
    bits: int
    scale: float
    dtype: str
    shape: tuple[int, ...]
