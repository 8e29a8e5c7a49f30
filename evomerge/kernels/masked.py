"""What a masked merge is told of its task vectors."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Thinning = Literal["magnitude", "band", "random", "ranked", "variance", "votes"]

Joining = Literal["sum", "elect", "largest"]


@dataclass(frozen=True, eq=False)
class Masked:
    """What the masked kernel does with task vectors tau_i = W_i - W_base, i = 1..n.

    Each is thinned out, multiplied by its weight, and joined with the others.

    Attributes:
        weight: (n,) float64.
        density: (n,) float64, the share of tau_i's elements kept.
        thin: what is kept of tau_i.
            "magnitude"  the largest elements of each tensor
            "band"       the same, once the share `gamma` of the very largest is left out
            "random"     elements drawn with probability `density`
            "ranked"     drawn with a probability that rises with the rank of the magnitude in
                         its row, from density - epsilon to density + epsilon
            "variance"   the elements that vary most across models, density[0] of those that do
            "votes"      the elements at which |tau_i| > threshold_i |sum tau - tau_i| holds for
                         `least` models or more
        join: how elements come together.
            "sum"        all are added
            "elect"      those whose sign is that of the sum are added
            "largest"    the one of largest magnitude stands for all
        whole: rank magnitudes over the whole task vector, not tensor by tensor.
        rescale: divide what a draw kept by its probability, so that the mean stays.
        normalize: divide by the sum of |weight| of the elements that are left.
        energy: multiply each weight by the share of tau_i's kept mean square in all of them.
        scale: multiplier of the merged task vector (lambda).
        gamma: (n,) float64, of "band".
        epsilon: of "ranked".
        threshold: (n,) float64, of "votes".
        least: of "votes".

    >>> trimmed = Masked(np.array([1.0, 0.5]), np.array([0.2, 0.2]), "magnitude", "elect")
    >>> trimmed.thin, trimmed.scale
    ('magnitude', 1.0)
    """

    weight: np.ndarray
    density: np.ndarray
    thin: Thinning
    join: Joining = "sum"
    whole: bool = False
    rescale: bool = False
    normalize: bool = False
    energy: bool = False
    scale: float = 1.0
    gamma: np.ndarray | None = None
    epsilon: float = 0.0
    threshold: np.ndarray | None = None
    least: float = 2.0
