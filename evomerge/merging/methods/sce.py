"""SCE: select by variance, calculate weights by energy, erase minority signs."""

from typing import Annotated

import numpy as np

from evomerge.kernels.masked import Masked
from evomerge.merging.methods import ONE, Fraction, Scale, Weights, masked_method


@masked_method(paper="https://arxiv.org/abs/2408.07990")
def sce(
    *,
    weight: Annotated[Weights, "factor of each model's share by energy"] = ONE,
    density: Annotated[
        Fraction, "share of the elements that vary across models that is kept"
    ] = 1.0,
    scale: Scale = 1.0,
) -> Masked:
    """Keep the `density` share of elements that vary most across models, weigh by mean square.

    The share is of the elements that vary at all; models' mean squares are taken of what is
    kept, per tensor, times `weight`. Mergekit's fall-back to equal weights where the mean
    squares sum to less than 1e-6, which nearly every fine-tune's do, is left out.

    >>> sce(weight=np.ones(2), density=0.3).density
    array([0.3, 0.3])
    """
    each = np.full(len(weight), density)
    return Masked(weight, each, "variance", "elect", normalize=True, energy=True, scale=scale)
