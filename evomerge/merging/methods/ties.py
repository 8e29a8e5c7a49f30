"""TIES: trim, elect a sign, merge those who agree."""

from typing import Annotated

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import ONE, Densities, Normalize, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2306.01708")
def ties(
    *,
    weight: Weights,
    density: Densities = ONE,
    scale: Scale = 1.0,
    normalize: Normalize = True,
    whole: Annotated[
        bool, "trim over the whole task vector, as the paper does, not tensor by tensor"
    ] = False,
) -> Masked:
    """Trim each task vector to its largest elements, elect a sign, average those who agree.

    Trims tensor by tensor, as mergekit does, or, with `whole`, over the whole task vector, as
    the paper does. Elects by the weighted sum.

    >>> import numpy as np
    >>> trimmed = ties(weight=np.ones(2), density=np.array([0.2, 0.2]))
    >>> trimmed.thin, trimmed.join, trimmed.normalize
    ('magnitude', 'elect', True)
    """
    return Masked(
        weight, density, "magnitude", "elect", whole=whole, normalize=normalize, scale=scale
    )
