"""Task arithmetic that takes small weights for smaller."""

import numpy as np

from evomerge.merging.methods import Weights, linear_method


@linear_method(paper="https://arxiv.org/abs/2212.04089", base=True)
def squared(*, weight: Weights) -> np.ndarray:
    """Add each task vector by its weight squared, with the weight's sign.

    >>> squared(weight=np.array([0.5, -1.0]))
    array([ 0.25, -1.  ])
    """
    return weight * np.abs(weight)
