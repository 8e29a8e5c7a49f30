"""Which back end merges a plan: decided here, and nowhere else."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np
import torch

from evomerge.kernels.eager import EagerKernels
from evomerge.kernels.fused import FusedKernels
from evomerge.kernels.merge_plan import MergePlan
from evomerge.kernels.native import NativeKernels
from evomerge.kernels.native_library import library

log = logging.getLogger("evomerge")


class Kernels:
    """Merges plans by the quickest back end that takes them; see `merge_plan.MergeKernels`.

    On a processor that is the native one where a C++ compiler is, and eager torch otherwise; on a
    GPU the fused one where Triton is, which comes with torch for CUDA, and eager torch otherwise.

    >>> from evomerge.kernels.merge_plan import Operands, WeightedSums
    >>> operands = Operands({"w": (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))})
    >>> plan = MergePlan(operands, torch.float32, (WeightedSums(("w",), np.array([0.5, 0.5])),))
    >>> live = {"w": torch.empty(2)}
    >>> digests = Kernels().merge(plan, live)
    >>> live["w"]
    tensor([2., 3.])
    """

    def __init__(self, device: torch.device | str = "cpu"):
        """
        Args:
            device: where plans' operands lie.
        """
        self._device = torch.device(device)
        self._native = NativeKernels()
        self._torch: EagerKernels | FusedKernels = EagerKernels()
        if self._device.type == "cuda":
            if find_spec("triton") is not None:
                self._torch = FusedKernels()
            else:
                log.warning("merging in eager torch, which is slower: Triton is not installed")

    @property
    def nbytes(self) -> int:
        """The memory that is kept between merges."""
        return self._native.nbytes + self._torch.nbytes

    def prepare(self) -> None:
        """Compile the native kernels if need be, so that no candidate's time goes by with it."""
        if self._device.type == "cpu":
            library()

    def merge(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """See `merge_plan.MergeKernels.merge`."""
        if self._device.type == "cpu" and self._native.takes(plan, targets):
            return self._native.merge(plan, targets)
        return self._torch.merge(plan, targets)
