"""BitDelta: task vectors of one bit an element."""

from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging.methods import (
    ONE,
    Directions,
    Scale,
    TaskVectorsView,
    Weights,
    prepared_method,
)

if TYPE_CHECKING:
    import torch


def directions(vectors: TaskVectorsView) -> Directions:
    """Replace each matrix of a task vector by its signs, times its mean magnitude.

    D_i = mean(|tau_i|) sign(tau_i), which is the nearest of that form (Liu et al. 2024,
    arXiv:2402.10193); the paper's training of the factors on texts is not done, as a search weighs
    them. Elements that did not move stay so, where the paper has them as -1. Tensors that are no
    matrices stay as they are.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.array([[3.0, -1.0]], np.float32)
    >>> merge_arrays("bitdelta", np.zeros_like(model), [model])
    array([[ 2., -2.]], dtype=float32)
    """
    from evomerge.kernels.signs import Signs

    for name in vectors.names:
        made: list[torch.Tensor | Signs] = []
        for i in range(vectors.count):  # one dense task vector at a time
            tau = vectors.one(i, name)
            made.append(Signs.of(tau, float(tau.abs().mean())) if tau.dim() == 2 else tau)
        yield name, made


@prepared_method(paper="https://arxiv.org/abs/2402.10193", prepare=directions, signs=True)
def bitdelta(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add the signs of task vectors, each matrix at its mean magnitude.

    >>> bitdelta(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
