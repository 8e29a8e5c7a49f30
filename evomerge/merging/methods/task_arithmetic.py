"""Task arithmetic."""

import numpy as np

from evomerge.merging.methods import Scale, Weights, linear_method


@linear_method(paper="https://arxiv.org/abs/2212.04089", base=True)
def task_arithmetic(*, weight: Weights, scale: Scale = 1.0) -> np.ndarray:
    """Add the task vectors to the base: W_0 + scale * sum w_i (W_i - W_0).

    >>> task_arithmetic(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return scale * weight
