"""TSV-M: task singular vectors, kept apart from one another."""

import numpy as np

from evomerge.merging.methods import (
    ONE,
    Directions,
    Scale,
    TaskVectorsView,
    Weights,
    prepared_method,
)
from evomerge.merging.spectrum import REAL, nearest_orthonormal


def directions(vectors: TaskVectorsView) -> Directions:
    """Give each model the largest singular parts of its task vector, freed of the others'.

    Of every matrix the floor(r / N) largest of its r singular values are kept; the N models'
    left and right singular vectors are each made orthonormal together, by the nearest such
    matrix (Gargiulo et al. 2024, arXiv:2412.00081, algorithm 1). Parts below 1/256 of the largest
    are left out: rounding, which would turn the others. Other tensors are averaged:
    D_i = tau_i / N.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.diag([2.0, 1.0]).astype(np.float32)
    >>> merge_arrays("tsv_m", np.zeros_like(model), [model], weight=1.0).round(3) + 0.0
    array([[2., 0.],
           [0., 1.]], dtype=float32)
    """
    import torch

    for name in vectors.names:
        taus = vectors.of(name)
        rank = min(taus[0].shape) // len(taus) if taus[0].dim() == 2 else 0  # floor(r / N)
        if rank < 1:
            yield name, [tau / len(taus) for tau in taus]
            continue
        left, sizes, right = [], [], []
        for tau in taus:
            u, s, v = torch.linalg.svd(tau, full_matrices=False)
            kept = s[:rank] * (s[:rank] > s[0] * REAL)
            sizes.append(kept)
            left.append(u[:, :rank] * (kept > 0))
            right.append(v[:rank].T * (kept > 0))
        lefts = nearest_orthonormal(torch.cat(left, 1)).split(rank, 1)
        rights = nearest_orthonormal(torch.cat(right, 1)).split(rank, 1)
        # D_i = U^_i S_i V^_i^T
        yield name, [u * s @ v.T for u, s, v in zip(lefts, sizes, rights, strict=True)]


@prepared_method(paper="https://arxiv.org/abs/2412.00081", prepare=directions)
def tsv_m(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add what the task vectors' largest singular parts become when no two of them overlap.

    >>> tsv_m(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
