"""SVC: shared singular directions are not counted once for each model that has them."""

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


def directions(
    vectors: TaskVectorsView,
    *,
    # 1: the paper's alpha, with which nothing is made larger
    least: Annotated[Positive, "how little a model counts in a direction in which it is cut"] = 1.0,
) -> Directions:
    """Scale the rows u_r^T tau_i, u_r the left singular vectors of T = sum tau_i, by f_r.

    f_r = N / sum_i max(least, <a_r, a_r^i> / |a_r^i|^2), with a_r = u_r^T T and
    a_r^i = u_r^T tau_i: how many times larger the sum is than each model there (Li et al. 2026,
    arXiv:2602.05536). D_i = tau_i + U diag(f - 1) U^T tau_i, so that they add up to the paper's
    U diag(f s) V^T. Tensors that are no matrices stay as they are.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.diag([2.0, 1.0]).astype(np.float32)
    >>> merge_arrays("svc", np.zeros_like(model), [model, model]).round(3) + 0.0
    array([[2., 0.],
           [0., 1.]], dtype=float32)
    """
    import torch

    for name in vectors.names:
        taus = vectors.of(name)
        if taus[0].dim() != 2:
            yield name, taus
            continue
        total = sum(taus[1:], taus[0])
        left = torch.linalg.svd(total, full_matrices=False)[0]
        whole, own = left.T @ total, torch.stack([left.T @ tau for tau in taus])  # a_r, a_r^i
        squares = (own * own).sum(2)
        # a model that has nothing there counts as the least does
        slopes = torch.where(squares > 0, (whole * own).sum(2) / squares, 0.0).clamp(min=least)
        sums = slopes.sum(0)
        factors = torch.where(sums > 0, len(taus) / sums, 1.0)
        yield (
            name,
            [
                tau + left @ ((factors - 1)[:, None] * rows)
                for tau, rows in zip(taus, own, strict=True)
            ],
        )


@prepared_method(paper="https://arxiv.org/abs/2602.05536", prepare=directions)
def svc(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors whose shared directions are scaled down to one model's share.

    >>> svc(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
