"""TIES: trim, elect a sign, merge those who agree."""

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import Densities, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2306.01708")
def ties(
    *,
    weight: Weights,
    density: Densities = 1.0,
    scale: Scale = 1.0,
    normalize: bool = True,
    whole: bool = False,
) -> Masked:
    """Trim each task vector to its largest elements, elect a sign, average those who agree.

    Trims tensor by tensor, as mergekit does, or, with `whole`, over the whole task vector, as
    the paper does. Elects by the weighted sum.
    """
    return Masked(
        weight, density, "magnitude", "elect", whole=whole, normalize=normalize, scale=scale
    )
