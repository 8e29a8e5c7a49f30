"""Tensors of signs, packed: one or two bits an element and one number.

What BitDelta (Liu et al. 2024, arXiv:2402.10193) and ComPEFT (Yadav et al. 2023, arXiv:2311.13171)
leave of a task vector. Kernels read the bits as they are: no dense copy is made of them.
"""

import math
from dataclasses import dataclass

import torch

from evomerge.dtypes import PACKED

# The codes of s and -s, by their bits. Of two, the lower says that there is something, the upper
# that it is negative.
_PLUS, _MINUS = {1: 0, 2: 1}, {1: 1, 2: 3}


@dataclass(frozen=True, eq=False)
class Signs:
    """A tensor of the numbers s, -s and, of two bits, 0.

    Attributes:
        codes: uint8, as many as `dtypes.packed_bytes` says. Each element's code has `bits` bits,
            the first element's the lowest: of one bit, 0 for s and 1 for -s; of two, 0 or 2 for 0,
            1 for s and 3 for -s. After the last element come any, up to a multiple of 64.
        bits: 1 or 2.
        scale: s, a number that `dtype` has.
        shape: of the tensor.
        dtype: of the tensor that this stands for.

    >>> Signs.of(torch.tensor([[3.0, -1.0], [0.0, 2.0]]), 0.5).dense()
    tensor([[ 0.5000, -0.5000],
            [ 0.0000,  0.5000]])
    """

    codes: torch.Tensor
    bits: int
    scale: float
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, tensor: torch.Tensor, scale: float) -> "Signs":
        """Pack scale * sign(tensor): with one bit an element where none of them is 0.

        Args:
            tensor: of any dtype, on any device.
            scale: rounded to float32.

        >>> some = Signs.of(torch.tensor([1.0, -1.0, -1.0, 1.0]), 2.0)
        >>> some.bits, some.codes[0]
        (1, tensor(6, dtype=torch.uint8))
        """
        flat = tensor.reshape(-1)
        negative = flat < 0
        if bool((flat != 0).all()):
            bits, codes = 1, negative.to(torch.uint8)
        else:
            bits, codes = 2, (flat != 0).to(torch.uint8) | (negative.to(torch.uint8) << 1)
        codes = torch.nn.functional.pad(codes, (0, -flat.numel() % PACKED))
        per_byte = 8 // bits
        packed = torch.zeros(len(codes) // per_byte, dtype=torch.uint8, device=codes.device)
        for place in range(per_byte):
            packed |= codes[place::per_byte] << (bits * place)
        rounded = float(torch.tensor(scale, dtype=torch.float32))
        return cls(packed, bits, rounded, tuple(tensor.shape))

    @property
    def device(self) -> torch.device:
        """Where its codes are."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        return self.codes.nbytes

    def numel(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)

    def rounded(self, dtype: torch.dtype) -> "Signs":
        """Return the signs with the scale that another dtype has.

        >>> Signs.of(torch.ones(1), 0.3).rounded(torch.bfloat16).scale
        0.30078125
        """
        scale = float(torch.tensor(self.scale, dtype=torch.float64).to(dtype))
        return Signs(self.codes, self.bits, scale, self.shape, dtype)

    def part(
        self, start: int, stop: int, dtype: torch.dtype | None = None, factor: float = 1.0
    ) -> torch.Tensor:
        """Return flattened elements from `start` to `stop` times a factor, dense.

        Args:
            start, stop: the first, and the one behind the last.
            dtype: in which they are multiplied; the tensor's by default.
            factor: rounded to `dtype`.

        >>> Signs.of(torch.tensor([1.0, 0.0, -1.0]), 0.5).part(1, 3, factor=3.0)
        tensor([ 0.0000, -1.5000])
        """
        dtype, per_byte = dtype or self.dtype, 8 // self.bits
        size = torch.tensor(self.scale, dtype=dtype, device=self.device) * factor
        values = torch.zeros(1 << self.bits, dtype=dtype, device=self.device)  # of each code
        values[_PLUS[self.bits]], values[_MINUS[self.bits]] = size, -size
        # every byte's elements, to be looked up as one row
        of_byte = torch.arange(256, device=self.device)[:, None]
        places = torch.arange(0, 8, self.bits, device=self.device)
        rows = values[(of_byte >> places) & ((1 << self.bits) - 1)]
        first, last = start // per_byte, -(-stop // per_byte)
        dense = rows[self.codes[first:last].long()].reshape(-1)
        return dense[start - first * per_byte : stop - first * per_byte]

    def dense(self) -> torch.Tensor:
        """Return the tensor that this stands for."""
        return self.part(0, self.numel()).view(self.shape)
