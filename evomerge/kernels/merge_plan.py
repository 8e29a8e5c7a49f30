"""A frozen merge plan: all that a back end is told, as data.

Tensors come in groups that are merged alike; each group names its tensors, and says by which
numbers they become one. What a number depends on (a density's threshold in a histogram, a draw's
key) is worked out by whoever makes the plan, except for what needs a pass over the tensors
themselves: there the plan says where to look, and each back end looks by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from evomerge.errors import CandidateFailure
from evomerge.kernels.magnitude_histogram import HistogramPlace
from evomerge.kernels.masked import Masked
from evomerge.kernels.signs import Signs


class Kept(NamedTuple):
    """What thinning one model's task vector of one tensor needs beside `Masked`.

    Attributes:
        low, high: the magnitudes kept; of a variance, the least.
        key: of the random generator, two 32-bit words.
        levels: uint8, of the base's size: every element's rank (see `chances.rank_levels`).
        place: of a variance, where the least one kept stands among the variances above zero,
            instead of `low`.

    >>> Kept(low=0.25).high
    inf
    """

    low: float = 0.0
    high: float = float("inf")
    key: tuple[int, int] = (0, 0)
    levels: torch.Tensor | None = None
    place: HistogramPlace | None = None


Operand = torch.Tensor | Signs  # what a weighted sum adds up; everything else is of tensors alone


@dataclass(frozen=True, eq=False)
class Operands:
    """The tensors that are merged, which a back end may keep addresses of while this object lives.

    Attributes:
        tensors: name -> the models' tensors, all of one shape, on one device; the base comes
            first where there is one. Signs are of `WeightedSums` alone.

    >>> len(Operands({"norm.weight": (torch.zeros(3), torch.ones(3))}).tensors["norm.weight"])
    2
    """

    tensors: Mapping[str, tuple[Operand, ...]]

    def dense(self, name: str) -> tuple[torch.Tensor, ...]:
        """Return the operands of a tensor, of which none is signs.

        >>> Operands({"w": (torch.ones(1),)}).dense("w")
        (tensor([1.]),)
        """
        found = []
        for operand in self.tensors[name]:
            assert isinstance(operand, torch.Tensor), "signs are of weighted sums alone"
            found.append(operand)
        return tuple(found)

    def has_signs(self, name: str) -> bool:
        """Tell whether one of the operands of a tensor is signs.

        >>> Operands({"w": (torch.ones(1),)}).has_signs("w")
        False
        """
        return any(isinstance(operand, Signs) for operand in self.tensors[name])


@dataclass(frozen=True, eq=False)
class WeightedSums:
    """Tensors that become sum_k c_k W_k of their operands.

    Attributes:
        names: of the tensors.
        coefficients: float64: (operands,) of all the tensors, or (names, operands).

    >>> WeightedSums(("norm.weight",), np.array([0.5, 0.5])).of(0)
    array([0.5, 0.5])
    """

    names: tuple[str, ...]
    coefficients: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """Return the (operands,) coefficients of the tensor `names[row]`."""
        return self.coefficients if self.coefficients.ndim == 1 else self.coefficients[row]


@dataclass(frozen=True, eq=False)
class SegmentedSums:
    """Tensors whose runs of flattened elements are each a weighted sum of its own: a mixture's.

    Attributes:
        names: of the tensors.
        starts: for each tensor, where its runs begin; the first does at 0.
        coefficients: for each tensor, (runs, operands) float64.

    >>> cut = SegmentedSums(("w",), (np.array([0, 4]),), (np.eye(2),))
    >>> len(cut.coefficients[0])
    2
    """

    names: tuple[str, ...]
    starts: tuple[np.ndarray, ...]
    coefficients: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class MaskedSums:
    """Tensors that become their base plus what is left of the models' task vectors.

    Attributes:
        names: of the tensors.
        masked: what is done with their task vectors.
        kept: for each tensor: one a model; of "variance" a single one for all models; of "votes"
            none.

    >>> votes = Masked(np.ones(2), np.ones(2), "votes", threshold=np.ones(2))
    >>> MaskedSums(("w",), votes, ((),)).masked.thin
    'votes'
    """

    names: tuple[str, ...]
    masked: Masked
    kept: tuple[tuple[Kept, ...], ...]


Sums = WeightedSums | SegmentedSums | MaskedSums


@dataclass(frozen=True, eq=False)
class MergePlan:
    """What is to be merged: tensors in, and the numbers by which they become one each.

    Attributes:
        operands: what is read.
        dtype: of the merged tensors, to which they are rounded once.
        groups: every name of `operands` is in one of them.

    >>> operands = Operands({"w": (torch.zeros(2), torch.ones(2))})
    >>> plan = MergePlan(operands, torch.float32, (WeightedSums(("w",), np.array([0.5, 0.5])),))
    >>> plan.groups[0].names
    ('w',)
    """

    operands: Operands
    dtype: torch.dtype
    groups: tuple[Sums, ...]


def run_starts(groups: Sequence[Sums]) -> dict[str, np.ndarray]:
    """Return where runs begin, of the tensors that have them.

    >>> cut = SegmentedSums(("w",), (np.array([0, 4]),), (np.eye(2),))
    >>> run_starts([cut])
    {'w': array([0, 4])}
    """
    starts: dict[str, np.ndarray] = {}
    for group in groups:
        if isinstance(group, SegmentedSums):
            starts |= zip(group.names, group.starts, strict=True)
    return starts


class MergeKernels(Protocol):
    """What each back end does."""

    def merge(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Overwrite tensors with merged ones.

        Args:
            plan: what to merge.
            targets: the plan's names -> contiguous tensors of their shapes and of any floating
                dtype, which get the values as rounded to the plan's.

        Returns:
            name -> digests of its tiles in the plan's dtype, see `checksum.tile_digests`.

        Raises:
            CandidateFailure: a merged tensor is not finite; some targets are overwritten then.
        """


def not_finite(name: str) -> CandidateFailure:
    """Return the failure of a candidate of which a merged tensor holds an infinity or NaN.

    >>> str(not_finite("lm_head.weight"))
    'merged tensor lm_head.weight is not finite'
    """
    return CandidateFailure(f"merged tensor {name} is not finite")


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Fail the candidate if a merged tensor is not finite.

    Raises:
        CandidateFailure: it is not.

    >>> check_finite("w", torch.tensor([1.0, float("inf")]))
    Traceback (most recent call last):
    evomerge.errors.CandidateFailure: merged tensor w is not finite
    """
    # least and largest in one pass: both are NaN where an element is
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise not_finite(name)
