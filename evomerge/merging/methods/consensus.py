"""Consensus merging: the elements that matter to several tasks."""

import numpy as np

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import Count, Scale, Thresholds, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2405.07813")
def consensus(
    *, weight: Weights = 1.0, threshold: Thresholds = 0.4, least: Count = 2.0, scale: Scale = 0.3
) -> Masked:
    """Add the task vectors where `least` models or more find the element important.

    Model i does where |tau_i| > threshold_i |sum_j tau_j - tau_i| (the TALL mask).
    """
    every = np.ones(len(weight))
    return Masked(weight, every, "votes", scale=scale, threshold=threshold, least=least)
