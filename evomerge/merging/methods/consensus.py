"""Consensus merging: the elements that matter to several tasks."""

from typing import Annotated

import numpy as np

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import ONE, Count, Scale, Thresholds, Weights, masked_method

THRESHOLD = np.array(0.4)  # the middle of the paper's grid, 0.2 to 0.6


@masked_method(paper="https://arxiv.org/abs/2405.07813")
def consensus(
    *,
    weight: Weights = ONE,
    threshold: Annotated[
        Thresholds, "how large an element has to be against those of all other models together"
    ] = THRESHOLD,
    # 2: the paper's; it leaves out "selfish" and "catastrophic" elements, of one model or none
    least: Annotated[Count, "models that have to find an element important"] = 2.0,
    scale: Scale = 0.3,  # the usual one of summed task vectors, arXiv:2212.04089
) -> Masked:
    """Add the task vectors where `least` models or more find the element important.

    Model i does where |tau_i| > threshold_i |sum_j tau_j - tau_i| (the TALL mask).

    >>> consensus(weight=np.ones(2), threshold=np.array([0.4, 0.2])).least
    2.0
    """
    every = np.ones(len(weight))
    return Masked(weight, every, "votes", scale=scale, threshold=threshold, least=least)
