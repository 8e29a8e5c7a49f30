"""MagMax: at each element the task vector of largest magnitude."""

import numpy as np

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import ONE, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2407.06322")
def magmax(*, weight: Weights = ONE, scale: Scale = 0.5) -> Masked:  # 0.5: fusion_bench's
    """Take, element by element, the largest of the weighted task vectors, the later of equals.

    >>> magmax(weight=np.ones(2)).join
    'largest'
    """
    return Masked(weight, np.ones(len(weight)), "magnitude", "largest", scale=scale)
