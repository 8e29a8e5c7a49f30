"""BitDelta: task vectors of one bit an element."""

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
    """Replace each matrix of a task vector by its signs, times its mean magnitude.

    D_i = mean(|tau_i|) sign(tau_i), which is the nearest of that form (Liu et al. 2024,
    arXiv:2402.10193); the paper's training of the factors on texts is not done, as a search weighs
    them. Tensors that are no matrices stay as they are.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.array([[3.0, -1.0]], np.float32)
    >>> merge_arrays("bitdelta", np.zeros_like(model), [model])
    array([[ 2., -2.]], dtype=float32)
    """
    for name in vectors.names:
        taus = vectors.of(name)
        if taus[0].dim() != 2:
            yield name, taus
        else:
            yield name, [tau.abs().mean() * tau.sign() for tau in taus]


@prepared_method(paper="https://arxiv.org/abs/2402.10193", prepare=directions)
def bitdelta(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add the signs of task vectors, each matrix at its mean magnitude.

    >>> bitdelta(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
