"""MagMax: at each element the task vector of largest magnitude."""

import numpy as np

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2407.06322")
def magmax(*, weight: Weights = 1.0, scale: Scale = 0.5) -> Masked:
    """Take, element by element, the largest of the weighted task vectors, the later of equals."""
    return Masked(weight, np.ones(len(weight)), "magnitude", "largest", scale=scale)
