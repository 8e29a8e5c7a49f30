"""DELLA: elements dropped at random, the smaller ones of a row more often."""

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import Densities, Fraction, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2406.11617", draws=True)
def della(
    *,
    weight: Weights,
    density: Densities = 1.0,
    epsilon: Fraction = 0.15,
    scale: Scale = 1.0,
    rescale: bool = True,
    normalize: bool = True,
    elect: bool = True,
) -> Masked:
    """Keep by chance, from density - epsilon for a row's smallest to + epsilon for its largest.

    Probabilities rise in 256 steps and are clipped to [0, 1]; what is kept is divided by its
    own, as in the paper (mergekit matches the L1 norm). A density of 1 keeps everything.
    `elect: false` is mergekit's della_linear.
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
