"""Which back end merges a plan: decided here, and nowhere else."""

from collections.abc import Mapping

import numpy as np
import torch

from evomerge.kernels.compiled import CompiledKernels
from evomerge.kernels.eager import EagerKernels
from evomerge.kernels.merge_plan import MergeKernels, MergePlan
from evomerge.kernels.native import NativeKernels
from evomerge.kernels.native_library import library

# Parameters from which a model is worth the seconds in which torch.compile makes its kernels; on a
# GPU smaller ones are merged in fewer milliseconds than that, whatever merges them.
COMPILE_FROM = 20_000_000


class Kernels:
    """Merges plans by the quickest back end that takes them; see `merge_plan.MergeKernels`.

    On a processor that is the native one where a C++ compiler is, and eager torch otherwise; on a
    GPU eager torch, or its compiled form for large models.

    >>> from evomerge.kernels.merge_plan import Operands, WeightedSums
    >>> operands = Operands({"w": (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))})
    >>> plan = MergePlan(operands, torch.float32, (WeightedSums(("w",), np.array([0.5, 0.5])),))
    >>> live = {"w": torch.empty(2)}
    >>> digests = Kernels().merge(plan, live)
    >>> live["w"]
    tensor([2., 3.])
    """

    def __init__(self, device: torch.device | str = "cpu", parameters: int = 0):
        """
        Args:
            device: where plans' operands lie.
            parameters: of a whole model.
        """
        self._device = torch.device(device)
        large = self._device.type != "cpu" and parameters >= COMPILE_FROM
        self._native = NativeKernels()
        self._torch: MergeKernels = CompiledKernels() if large else EagerKernels()

    @property
    def nbytes(self) -> int:
        """The memory that is kept between merges."""
        return self._native.nbytes

    def prepare(self) -> None:
        """Compile the native kernels if need be, so that no candidate's time goes by with it."""
        if self._device.type == "cpu":
            library()

    def merge(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """See `merge_plan.MergeKernels.merge`."""
        if self._native.takes(plan, targets):
            return self._native.merge(plan, targets)
        return self._torch.merge(plan, targets)
