"""ComPEFT: task vectors of which only signs are kept, all of one size."""

from typing import TYPE_CHECKING, Annotated

import numpy as np

from evomerge.merging.methods import (
    ONE,
    Directions,
    Fraction,
    Scale,
    TaskVectorsView,
    Weights,
    prepared_method,
)

if TYPE_CHECKING:
    import torch


def directions(
    vectors: TaskVectorsView,
    *,
    # 0.2: within the 5 to 50 % that the paper tries
    kept: Annotated[Fraction, "share of each task vector's elements, the largest, that is kept"] = (
        0.2
    ),
) -> Directions:
    """Replace each task vector by the signs of its largest elements, times its deviation.

    D_i = std(tau_i) sign(tau_i) where |tau_i| is among the share `kept`, else 0; threshold and
    standard deviation are the whole task vector's (Yadav et al. 2023, arXiv:2311.13171, whose
    alpha is `weight` here).

    >>> from evomerge.testing import merge_arrays
    >>> model = np.array([3.0, -3.0, 1.0, -1.0], np.float32)
    >>> merge_arrays("compeft", np.zeros_like(model), [model], options={"kept": 0.5}).round(3)
    array([ 2.236, -2.236,  0.   ,  0.   ], dtype=float32)
    """
    from evomerge.kernels.signs import Signs

    least, deviations = [], []
    for i in range(vectors.count):

        def magnitudes(name: str, i: int = i) -> "torch.Tensor":
            return vectors.one(i, name)

        least.append(vectors.kth_largest(magnitudes, max(1, int(kept * vectors.size))))
        total = square = 0.0
        for name in vectors.names:
            tau = vectors.one(i, name).double()
            total += float(tau.sum())
            square += float(tau.square().sum())
        mean = total / vectors.size
        deviations.append(max(square / vectors.size - mean * mean, 0.0) ** 0.5)
    for name in vectors.names:
        signs = []
        for i in range(vectors.count):  # one dense task vector at a time
            tau = vectors.one(i, name)
            signs.append(Signs.of(tau * (tau.abs() >= least[i]), deviations[i]))
        yield name, signs


@prepared_method(paper="https://arxiv.org/abs/2311.13171", prepare=directions, signs=True)
def compeft(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add the signs of each task vector's largest elements, at the task vector's deviation.

    >>> compeft(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
