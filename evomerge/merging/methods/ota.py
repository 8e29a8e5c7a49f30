"""OTA merging with fast Fisher grafting: Adam's second moments as the models' curvature."""

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
    # 0.5: sqrt(v), by which Adam divides; an example of the authors' code has 0.25
    power: Annotated[Positive, "exponent of the second moments"] = 0.5,
    keep: Annotated[
        Fraction, "share of each tensor's elements of which the loss depends most that is kept"
    ] = 1.0,
) -> Directions:
    """Weigh each element by the models' preconditioners, of the elements that matter alone.

    D_i = v_i^p m_i tau_i / sum_j v_j^p, where v is Adam's second moment at the training's end and
    m_i keeps the largest v_i tau_i^2, the loss of taking the element back to the base ("fast Fisher
    grafting"; Mahdavinia et al. 2025, arXiv:2509.11167). Where a model comes with texts instead,
    its diagonal Fisher information stands for v.

    >>> from evomerge.testing import merge_arrays
    >>> a, b = np.float32([2.0, 1.0]), np.float32([0.0, 4.0])
    >>> moments = [np.float32([9.0, 1.0]), np.float32([1.0, 1.0])]  # of a, and of b
    >>> merge_arrays("ota", np.zeros_like(a), [a, b], moments=moments).round(3)
    array([1.5, 2.5], dtype=float32)
    """
    from evomerge.merging.curved import by_curvature

    for name in vectors.names:
        yield name, by_curvature(vectors.of(name), vectors.curvature(name), power, keep)


@prepared_method(paper="https://arxiv.org/abs/2509.11167", prepare=directions, reads="curvature")
def ota(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors, each element weighted by roots of Adam's second moments.

    >>> ota(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
