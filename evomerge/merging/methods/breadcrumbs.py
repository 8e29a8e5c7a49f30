"""Model Breadcrumbs: neither the largest nor the smallest elements."""

from typing import Annotated

import numpy as np

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import Densities, Elect, Normalize, Scale, Weights, masked_method

# The paper keeps 85 to 95 % of a layer and masks its largest 1 %; mergekit's default for gamma.
DENSITY, GAMMA = np.array(0.9), np.array(0.01)


@masked_method(paper="https://arxiv.org/abs/2312.06795")
def breadcrumbs(
    *,
    weight: Weights,
    density: Densities = DENSITY,
    gamma: Annotated[
        Densities, "share of each task vector's largest elements that is left out as outliers"
    ] = GAMMA,
    scale: Scale = 1.0,
    normalize: Normalize = False,
    elect: Elect = False,
) -> Masked:
    """Leave out the share `gamma` of the largest elements, keep `density` of the next, add.

    Per tensor; with `elect` the signs are elected as in TIES (mergekit's breadcrumbs_ties).

    >>> each = np.ones(2)
    >>> breadcrumbs(weight=each, density=0.8 * each, gamma=0.02 * each).thin
    'band'
    """
    return Masked(
        weight,
        density,
        "band",
        "elect" if elect else "sum",
        normalize=normalize,
        scale=scale,
        gamma=gamma,
    )
