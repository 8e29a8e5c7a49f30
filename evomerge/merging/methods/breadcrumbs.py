"""Model Breadcrumbs: neither the largest nor the smallest elements."""

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import Densities, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2312.06795")
def breadcrumbs(
    *,
    weight: Weights,
    density: Densities = 0.9,
    gamma: Densities = 0.01,
    scale: Scale = 1.0,
    normalize: bool = False,
    elect: bool = False,
) -> Masked:
    """Leave out the share `gamma` of the largest elements, keep `density` of the next, add.

    Per tensor; with `elect` the signs are elected as in TIES (mergekit's breadcrumbs_ties).
    """
    join = "elect" if elect else "sum"
    return Masked(weight, density, "band", join, normalize=normalize, scale=scale, gamma=gamma)
