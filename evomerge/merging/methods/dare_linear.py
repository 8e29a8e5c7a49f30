"""DARE: task arithmetic over task vectors with elements dropped at random."""

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import Densities, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2311.03099", draws=True)
def dare_linear(
    *,
    weight: Weights,
    density: Densities = 1.0,
    scale: Scale = 1.0,
    rescale: bool = True,
    normalize: bool = False,
) -> Masked:
    """Drop elements of each task vector at random, rescale the rest, add; see dare_ties."""
    return Masked(weight, density, "random", rescale=rescale, normalize=normalize, scale=scale)
