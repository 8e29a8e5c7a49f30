"""SCE: select by variance, calculate weights by energy, erase minority signs."""

import numpy as np

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import Fraction, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2408.07990")
def sce(*, weight: Weights = 1.0, density: Fraction = 1.0, scale: Scale = 1.0) -> Masked:
    """Keep the `density` share of elements that vary most across models, weigh by mean square.

    The share is of the elements that vary at all; models' mean squares are taken of what is
    kept, per tensor, times `weight`. Mergekit's fall-back to equal weights where the mean
    squares sum to less than 1e-6, which nearly every fine-tune's do, is left out.
    """
    each = np.full(len(weight), density)
    return Masked(weight, each, "variance", "elect", normalize=True, energy=True, scale=scale)
