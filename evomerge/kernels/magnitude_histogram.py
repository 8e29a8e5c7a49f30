"""Magnitude tables: the k-th largest element of a task vector for any k, without sorting again."""

from collections.abc import Callable, Iterable

import numpy as np
import torch


class MagnitudeTable:
    """Finds the k-th largest magnitude of one task vector, for any k, without sorting it again.

    A histogram of the top 15 bits below the sign of the float32 magnitudes; for bfloat16
    task vectors these are all the bits, so the bin is the threshold. Elsewhere the elements
    of one bin are searched.
    """

    BINS = 1 << 15

    def __init__(self, tau: torch.Tensor):
        """
        Args:
            tau: a task vector of any floating dtype and shape; not kept.
        """
        exact = tau.dtype == torch.bfloat16
        self._fill(
            tau.numel(), exact, torch.bincount(_bins(tau), minlength=self.BINS).cpu().numpy()
        )

    def _fill(self, size: int, exact: bool, counts: np.ndarray) -> None:
        self.size, self.exact = size, exact
        there = np.flatnonzero(counts)
        self.first, last = (int(there[0]), int(there[-1])) if len(there) else (0, 0)
        # how many elements lie in each occupied bin or above it; below zero, so that they ascend
        self.minus_above = -np.cumsum(counts[self.first : last + 1][::-1])[::-1].astype(np.int64)

    def _counts(self) -> np.ndarray:
        counts = np.zeros(self.BINS, np.int64)
        counts[self.first : self.first + len(self.minus_above)] = np.diff(
            self.minus_above, append=0
        )
        return counts

    def largest(self, tau: torch.Tensor, k: int) -> float:
        """Return the k-th largest magnitude; infinity for k < 1, 0 beyond the last.

        Args:
            tau: the same task vector again; any tensor where the table is exact.
            k: of all its elements; those that equal the k-th are as large.
        """
        if k < 1:
            return float("inf")
        if k > self.size:
            return 0.0
        index, rank, _ = self.place(k)
        if self.exact:
            return _from_bin(index)
        return ranked(_in_bin(tau, index), rank)

    def largest_of(self, tensors: Callable[[], Iterable[torch.Tensor]], k: int) -> float:
        """Return the k-th largest magnitude of the tensors whose tables were added to this one."""
        if self.exact or not 1 <= k <= self.size:
            return self.largest(torch.empty(0), k)
        index, rank, _ = self.place(k)
        return ranked(torch.cat([_in_bin(tau, index) for tau in tensors()]), rank)

    def place(self, k: int) -> tuple[int, int, int]:
        """Return the bin of the k-th largest magnitude, its rank from above in there, and how
        many there are, zeros among them; k is from 1 to the size."""
        index = int(self.minus_above.searchsorted(-k, side="right")) - 1  # last with >= k above
        higher = -int(self.minus_above[index + 1]) if index + 1 < len(self.minus_above) else 0
        return self.first + index, k - higher, -int(self.minus_above[index]) - higher

    def __add__(self, other: "MagnitudeTable") -> "MagnitudeTable":
        """Return the table of both task vectors' elements together."""
        both = object.__new__(MagnitudeTable)
        counts = self._counts() + other._counts()
        both._fill(self.size + other.size, self.exact and other.exact, counts)
        return both


def kth_largest(tensors: Callable[[], Iterable[torch.Tensor]], k: int) -> float:
    """Return the k-th largest magnitude of many tensors together, in two passes over them.

    Args:
        tensors: gives them, the same ones each time.
        k: from 1; infinity below, 0 beyond the last.
    """
    return sum_tables(map(MagnitudeTable, tensors())).largest_of(tensors, k)


def sum_tables(tables: Iterable[MagnitudeTable]) -> MagnitudeTable:
    """Return the table of all the tables' elements together."""
    first, *others = tables
    return sum(others, start=first)


def _in_bin(tau: torch.Tensor, index: int) -> torch.Tensor:
    """Return the magnitudes of `tau` above zero that fall into one bin of a `MagnitudeTable`."""
    flat = tau.reshape(-1)
    return flat[(_bins(tau) == index) & (flat != 0)].abs()


def ranked(inside: torch.Tensor, rank: int) -> float:
    """Return the rank-th largest of a bin's magnitudes; what is not there is zero."""
    return float(torch.topk(inside, rank).values[-1]) if rank <= len(inside) else 0.0


def _bins(tau: torch.Tensor) -> torch.Tensor:
    bits = tau.reshape(-1).to(torch.float32).abs().view(torch.int32)
    return bits >> 16


def _from_bin(index: int) -> float:
    return float(np.array([index << 16], np.uint32).view(np.float32)[0])
