"""Fisher-weighted averaging: each element by how much each model's predictions depend on it."""

import numpy as np

from evomerge.merging.methods import (
    ONE,
    Directions,
    Scale,
    TaskVectorsView,
    Weights,
    prepared_method,
)


def directions(vectors: TaskVectorsView) -> Directions:
    """Weigh each element by the models' diagonal curvature there.

    D_i = F_i tau_i / sum_j F_j, so that their sum, at weight 1, is the mean of equation 4 of Matena
    and Raffel 2022 (arXiv:2111.09832) with lambda_i = 1. A search's weights are factors of D_i,
    not the paper's lambda_i, which stand in the denominator too.

    >>> from evomerge.testing import merge_arrays
    >>> a, b = np.float32([2.0, 0.0]), np.float32([0.0, 4.0])
    >>> moments = [np.float32([3.0, 1.0]), np.float32([1.0, 1.0])]  # of a, and of b
    >>> merge_arrays("fisher", np.zeros_like(a), [a, b], moments=moments).round(3)
    array([1.5, 2. ], dtype=float32)
    """
    from evomerge.merging.curved import by_curvature

    for name in vectors.names:
        yield name, by_curvature(vectors.of(name), vectors.curvature(name), 1.0, 1.0)


@prepared_method(paper="https://arxiv.org/abs/2111.09832", prepare=directions, reads="curvature")
def fisher(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors, each element weighted by the models' Fisher information on their texts.

    >>> fisher(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
