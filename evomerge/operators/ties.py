"""TIES: trim, elect a sign, merge those who agree."""

from evomerge.operators import Densities, Masked, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2306.01708")
def ties(
    *, weight: Weights, density: Densities = 1.0, scale: Scale = 1.0, normalize: bool = True
) -> Masked:
    """Trim each task vector to its largest elements, elect a sign, average those who agree.

    Trims per tensor, as mergekit does (the paper: per model), and elects by the weighted sum.
    """
    return Masked(weight, density, "magnitude", elect=True, normalize=normalize, scale=scale)
