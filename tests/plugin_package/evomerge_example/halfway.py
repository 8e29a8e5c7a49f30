"""Task arithmetic that goes half of the way."""

import numpy as np

from evomerge.merging.methods import Weights, linear_method


@linear_method(paper="https://arxiv.org/abs/2212.04089", base=True)
def halfway(*, weight: Weights) -> np.ndarray:
    """Add half of each weighted task vector.

    >>> halfway(weight=np.array([1.0, 3.0]))
    array([0.5, 1.5])
    """
    return 0.5 * weight
