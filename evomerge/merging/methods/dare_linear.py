"""DARE: task arithmetic over task vectors with elements dropped at random."""

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import (
    ONE,
    Densities,
    Normalize,
    Rescale,
    Scale,
    Weights,
    masked_method,
)


@masked_method(paper="https://arxiv.org/abs/2311.03099", draws=True)
def dare_linear(
    *,
    weight: Weights,
    density: Densities = ONE,
    scale: Scale = 1.0,
    rescale: Rescale = True,
    normalize: Normalize = False,
) -> Masked:
    """Drop elements of each task vector at random, rescale the rest, add; see dare_ties.

    >>> import numpy as np
    >>> dare_linear(weight=np.ones(2), density=np.array([0.1, 0.2])).join
    'sum'
    """
    return Masked(weight, density, "random", rescale=rescale, normalize=normalize, scale=scale)
