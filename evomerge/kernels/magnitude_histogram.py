"""Histograms of magnitudes: the k-th largest element for any k, without sorting again."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

# A bin is the upper 16 bits of a float32, the sign's being 0: all that a bfloat16 has.
LOWER_BITS = 16

BINS = 1 << 15

INFINITE_BIN = 0x7F80  # of infinity; those of NaN are above


class HistogramPlace(NamedTuple):
    """Where the k-th largest of many magnitudes stands.

    Attributes:
        bin: of the histogram.
        rank: from 1, among the bin's magnitudes, the largest first.
        size: how many magnitudes the bin holds, zeros among them.

    >>> MagnitudeHistogram(torch.tensor([1.0, 1.001, 3.0])).place(2)
    HistogramPlace(bin=16256, rank=1, size=2)
    """

    bin: int
    rank: int
    size: int


class MagnitudeHistogram:
    """Finds the k-th largest magnitude of one tensor, for any k, without sorting it again.

    For bfloat16 the bin is the magnitude. Elsewhere the elements of one bin are searched.

    Attributes:
        size: how many elements there are.
        exact: whether a bin holds one magnitude alone.
        first: the lowest bin that is occupied.
        minus_above: (bins,) int64, for the bins from `first` to the highest that is occupied: how
            many elements lie in the bin or above it; negative, so that the numbers ascend.

    >>> tensor = torch.tensor([0.5, -3.0, 2.0, 2.5])
    >>> histogram = MagnitudeHistogram(tensor)
    >>> [histogram.largest(tensor, k) for k in (1, 2, 3)]
    [3.0, 2.5, 2.0]
    """

    def __init__(self, tensor: torch.Tensor):
        """
        Args:
            tensor: of any floating dtype and shape; not kept.
        """
        counts = torch.bincount(_bins(tensor), minlength=BINS).cpu().numpy()
        self._fill(tensor.numel(), tensor.dtype == torch.bfloat16, counts)

    def _fill(self, size: int, exact: bool, counts: np.ndarray) -> None:
        self.size, self.exact = size, exact
        occupied = np.flatnonzero(counts)
        self.first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, 0)
        above = np.cumsum(counts[self.first : last + 1][::-1])[::-1]
        self.minus_above = -above.astype(np.int64)

    def _counts(self) -> np.ndarray:
        counts = np.zeros(BINS, np.int64)
        last = self.first + len(self.minus_above)
        counts[self.first : last] = np.diff(self.minus_above, append=0)
        return counts

    def largest(self, tensor: torch.Tensor, k: int) -> float:
        """Return the k-th largest magnitude; infinity for k < 1, 0 beyond the last.

        Args:
            tensor: the same one again; any where the histogram is exact.
            k: of all its elements; those that equal the k-th are as large.
        """
        return self.largest_of(lambda: [tensor], k)

    def largest_of(self, tensors: Callable[[], Iterable[torch.Tensor]], k: int) -> float:
        """Return the k-th largest magnitude of tensors whose histograms were added to this one."""
        if k < 1:
            return float("inf")
        if k > self.size:
            return 0.0
        place = self.place(k)
        if self.exact:
            return _from_bin(place.bin)
        inside = torch.cat([in_bin(tensor, place.bin) for tensor in tensors()])
        return ranked(inside, place.rank)

    def place(self, k: int) -> HistogramPlace:
        """Return where the k-th largest magnitude stands; k is from 1 to the size."""
        # the last bin that has k elements or more in it and above
        index = int(self.minus_above.searchsorted(-k, side="right")) - 1
        higher = -int(self.minus_above[index + 1]) if index + 1 < len(self.minus_above) else 0
        size = -int(self.minus_above[index]) - higher
        return HistogramPlace(self.first + index, k - higher, size)

    def __add__(self, other: "MagnitudeHistogram") -> "MagnitudeHistogram":
        """Return the histogram of both tensors' elements together."""
        both = object.__new__(MagnitudeHistogram)
        counts = self._counts() + other._counts()
        both._fill(self.size + other.size, self.exact and other.exact, counts)
        return both


def kth_largest(tensors: Callable[[], Iterable[torch.Tensor]], k: int) -> float:
    """Return the k-th largest magnitude of many tensors together, in two passes over them.

    Args:
        tensors: gives them, the same ones each time.
        k: from 1; infinity below, 0 beyond the last.

    >>> kth_largest(lambda: [torch.tensor([1.0, -4.0]), torch.tensor([2.0])], 2)
    2.0
    """
    return histogram_of(tensors()).largest_of(tensors, k)


def histogram_of(tensors: Iterable[torch.Tensor]) -> MagnitudeHistogram:
    """Return the histogram of all elements of at least one tensor, read one at a time.

    >>> histogram_of([torch.ones(2), torch.zeros(3)]).size
    5
    """
    histograms = map(MagnitudeHistogram, tensors)
    total = next(histograms)
    for histogram in histograms:
        total = total + histogram
    return total


def in_bin(tensor: torch.Tensor, index: int) -> torch.Tensor:
    """Return the magnitudes above zero that fall into one bin of a `MagnitudeHistogram`.

    >>> in_bin(torch.tensor([1.0, -1.001, 3.0]), 0x3F80)
    tensor([1.0000, 1.0010])
    """
    flat = tensor.reshape(-1)
    return flat[(_bins(tensor) == index) & (flat != 0)].abs()


def ranked(inside: torch.Tensor, rank: int) -> float:
    """Return the rank-th largest of a bin's magnitudes; what is not there is zero.

    >>> ranked(torch.tensor([1.0, 3.0, 2.0]), 2), ranked(torch.tensor([]), 1)
    (2.0, 0.0)
    """
    return float(torch.topk(inside, rank).values[-1]) if rank <= len(inside) else 0.0


def _bins(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.reshape(-1).to(torch.float32).abs().view(torch.int32)
    return bits >> LOWER_BITS


def _from_bin(index: int) -> float:
    return float(np.array([index << LOWER_BITS], np.uint32).view(np.float32)[0])
