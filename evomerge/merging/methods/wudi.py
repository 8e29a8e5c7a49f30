"""WUDI in closed form: the merged matrix that disturbs each task vector's own inputs least."""

from typing import Annotated

import numpy as np

from evomerge.merging.methods import (
    ONE,
    Directions,
    Positive,
    Scale,
    TaskVectorsView,
    Weights,
    prepared_method,
)

SMALLEST_SQUARE = 1e-300  # |tau|^2 of a model that is the base, as a divisor


def directions(
    vectors: TaskVectorsView,
    *,
    # 0.1: keeps the solution near the start, as the published method's few steps do
    ridge: Annotated[
        Positive, "pull towards the sum of the task vectors, in mean eigenvalues of the inputs"
    ] = 0.1,
) -> Directions:
    """Share out the minimum of sum_i |(tau - tau_i) tau_i^T|^2 / |tau_i|^2 among the models.

    The published method (Cheng et al. 2025, arXiv:2503.08099) stops a gradient descent from
    sum tau_i early; here a ridge towards that start, `ridge` times the mean eigenvalue of
    G = sum_i tau_i^T tau_i / |tau_i|^2, stands for it: D_i = tau_i (G_i + r I) (G + r I)^-1,
    solved in float64. Tensors that are no matrices are averaged.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.diag([2.0, 1.0]).astype(np.float32)
    >>> merge_arrays("wudi", np.zeros_like(model), [model])
    array([[2., 0.],
           [0., 1.]], dtype=float32)
    """
    import torch

    for name in vectors.names:
        taus = vectors.of(name)
        if taus[0].dim() != 2:
            yield name, [tau / len(taus) for tau in taus]
            continue
        wide = [tau.double() for tau in taus]
        grams = [t.T @ t / (t**2).sum().clamp(min=SMALLEST_SQUARE) for t in wide]  # G_i
        whole = torch.zeros_like(grams[0])  # G
        for gram in grams:
            whole = whole + gram
        mean = float(whole.diagonal().mean())
        if mean == 0.0:  # all models are the base
            yield name, taus
            continue
        for gram in (*grams, whole):
            gram.diagonal().add_(ridge * mean)
        if ridge > 0.0:  # then G + r I is positive definite
            factor = torch.linalg.cholesky(whole)
            found = [
                torch.cholesky_solve((t @ g).T, factor).T for t, g in zip(wide, grams, strict=True)
            ]
        else:
            inverse = torch.linalg.pinv(whole, hermitian=True)
            found = [t @ g @ inverse for t, g in zip(wide, grams, strict=True)]
        yield name, [d.float() for d in found]


@prepared_method(paper="https://arxiv.org/abs/2503.08099", prepare=directions)
def wudi(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors projected so that each disturbs the others' inputs least.

    >>> wudi(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
