"""DARE with TIES' sign election."""

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
def dare_ties(
    *,
    weight: Weights,
    density: Densities = ONE,
    scale: Scale = 1.0,
    rescale: Rescale = True,
    normalize: Normalize = False,
) -> Masked:
    """Drop elements of each task vector at random, rescale the rest, elect a sign, add.

    What is kept is divided by the density, as in the paper (mergekit matches the L1 norm).
    The masks depend on the recipe's seed, the model and the tensor alone.

    >>> import numpy as np
    >>> dare_ties(weight=np.ones(2), density=np.array([0.1, 0.2])).join
    'elect'
    """
    return Masked(
        weight, density, "random", "elect", rescale=rescale, normalize=normalize, scale=scale
    )
