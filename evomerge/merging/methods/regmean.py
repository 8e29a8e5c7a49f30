"""RegMean: linear layers that answer every model's own inputs most as that model does."""

from typing import Annotated

import numpy as np

from evomerge.merging.methods import (
    ONE,
    Directions,
    Fraction,
    Positive,
    Scale,
    TaskVectorsView,
    Weights,
    prepared_method,
)


def directions(
    vectors: TaskVectorsView,
    *,
    # 0.9: the paper's, but for T5, where it is 0.1
    correlation: Annotated[
        Fraction, "factor of the inputs' Gram matrices off the diagonal; 0 keeps the diagonal alone"
    ] = 0.9,
    ridge: Annotated[
        Positive, "pull towards the plain mean where inputs are few, in mean squares of an input"
    ] = 1e-4,
) -> Directions:
    """Share out the minimum of sum_i |X_i W^T - X_i W_i^T|^2 among the models.

    D_i = tau_i G_i (sum_j G_j)^-1 with G_i = X_i^T X_i / n_i, of the inputs of the same layer of
    model i on its own texts, so that the sum of all, at weight 1, is the paper's W - W_0 (Jin et
    al. 2023, arXiv:2212.09849). What is no linear layer is averaged.

    >>> from evomerge.testing import merge_arrays
    >>> a, b = np.float32([[2.0, 0.0]]), np.float32([[0.0, 4.0]])
    >>> inputs = [np.diag([3.0, 1.0]), np.diag([1.0, 1.0])]  # of a, and of b
    >>> merge_arrays("regmean", np.zeros_like(a), [a, b], inputs=inputs).round(3)
    array([[1.5, 2. ]], dtype=float32)
    """
    from evomerge.merging.regression import solved

    for name in vectors.names:
        taus = vectors.of(name)
        yield name, solved(taus, vectors.inputs(name), correlation, ridge)


@prepared_method(paper="https://arxiv.org/abs/2212.09849", prepare=directions, reads="inputs")
def regmean(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors weighted by what each model's layers take in on its own texts.

    >>> regmean(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
