"""DELLA: elements dropped at random, the smaller ones of a row more often."""

from typing import Annotated

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import (
    ONE,
    Densities,
    Elect,
    Fraction,
    Normalize,
    Rescale,
    Scale,
    Weights,
    masked_method,
)


@masked_method(paper="https://arxiv.org/abs/2406.11617", draws=True)
def della(
    *,
    weight: Weights,
    density: Densities = ONE,
    # 0.15: mergekit's default
    epsilon: Annotated[
        Fraction, "how far the probability of a row's smallest and largest is from the density"
    ] = 0.15,
    scale: Scale = 1.0,
    rescale: Rescale = True,
    normalize: Normalize = True,
    elect: Elect = True,
) -> Masked:
    """Keep by chance, from density - epsilon for a row's smallest to + epsilon for its largest.

    Probabilities rise in 256 steps and are clipped to [0, 1]; what is kept is divided by its
    own, as in the paper (mergekit matches the L1 norm). A density of 1 keeps everything.
    `elect: false` is mergekit's della_linear.

    >>> import numpy as np
    >>> della(weight=np.ones(2), density=np.array([0.4, 0.5])).epsilon
    0.15
    """
    return Masked(
        weight,
        density,
        "ranked",
        "elect" if elect else "sum",
        rescale=rescale,
        normalize=normalize,
        scale=scale,
        epsilon=epsilon,
    )
