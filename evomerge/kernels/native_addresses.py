"""Where operands lie and what they are, as `native.cpp` reads it."""

from collections.abc import Sequence

import numpy as np
import torch

from evomerge.kernels.merge_plan import Operand
from evomerge.kernels.signs import Signs

# The numbers of native.cpp's `Dtype`; of signs by their bits.
DTYPES = {torch.bfloat16: 0, torch.float32: 1, torch.float16: 2}

SIGNS = {1: 4, 2: 5}


def memory_of(operand: Operand) -> torch.Tensor:
    """Return what the address of an operand is of.

    >>> memory_of(torch.tensor([1.0]))
    tensor([1.])
    """
    return operand.codes if isinstance(operand, Signs) else operand


def _code_of(operand: Operand) -> int:
    """Return an operand's kind, as native.cpp's `Dtype` has it."""
    return SIGNS[operand.bits] if isinstance(operand, Signs) else DTYPES[operand.dtype]


class Addresses:
    """Where tensors lie, of each name its operands; fewer than others' are followed by zeros.

    >>> some = Addresses([(torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16))])
    >>> _, dtypes = some.of_runs(np.array([0]), np.array([0]))
    >>> dtypes
    array([[1, 0]], dtype=int32)
    """

    def __init__(self, tensors: Sequence[Sequence[Operand]]):
        shape = len(tensors), max(map(len, tensors))
        self._data, self._width = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
        self._dtypes = np.zeros(shape, np.int32)
        self._scales: np.ndarray | None = None  # of signs; of other operands 1
        for row, operands in enumerate(tensors):
            count = len(operands)
            memory = list(map(memory_of, operands))
            self._data[row, :count] = [tensor.data_ptr() for tensor in memory]
            self._width[row, :count] = [tensor.element_size() for tensor in memory]
            self._dtypes[row, :count] = list(map(_code_of, operands))
            for column, operand in enumerate(operands):
                if isinstance(operand, Signs):
                    if self._scales is None:
                        self._scales = np.ones(shape, np.float32)
                    self._scales[row, column] = operand.scale

    def scales(self, of: np.ndarray) -> np.ndarray | None:
        """Return what runs' coefficients are multiplied by, (runs, operands), if there are signs.

        Args:
            of: (runs,), the place of each run's name.
        """
        return None if self._scales is None else self._scales[of]

    def of_runs(self, of: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where runs of tensors begin, and their dtypes, each (runs, operands).

        Args:
            of: (runs,), the place of each run's name.
            begin: (runs,), its first element.
        """
        start = self._width[of] * begin[:, None].astype(np.uint64)
        return self._data[of] + start, self._dtypes[of]
