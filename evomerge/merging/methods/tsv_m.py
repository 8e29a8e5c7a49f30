"""TSV-M: task singular vectors, kept apart from one another."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from evomerge.merging.methods import Scale, Weights, prepared_method


def directions(vectors: Any) -> Iterator[tuple[str, list]]:
    """Give each model the largest singular parts of its task vector, freed of the others'.

    Of every matrix the floor(r / N) largest of its r singular values are kept; the N models'
    left and right singular vectors are each made orthonormal together, by the nearest such
    matrix (Gargiulo et al. 2024, algorithm 1). Parts below 1/256 of the largest are left out:
    rounding, which would turn the others. Other tensors are averaged: D_i = tau_i / N.
    """
    import torch

    def nearest(columns: torch.Tensor) -> torch.Tensor:
        left, _, right = torch.linalg.svd(columns, full_matrices=False)
        return left @ right

    for name in vectors.names:
        taus = vectors.of(name)
        rank = min(taus[0].shape) // len(taus) if taus[0].dim() == 2 else 0
        if rank < 1:
            yield name, [tau / len(taus) for tau in taus]
            continue
        parts = [torch.linalg.svd(tau, full_matrices=False) for tau in taus]
        real = [s[:rank] * (s[:rank] > s[0] / 256) for _, s, _ in parts]
        columns = [
            [u[:, :rank] * (s > 0) for (u, _, _), s in zip(parts, real, strict=True)],
            [v[:rank].T * (s > 0) for (_, _, v), s in zip(parts, real, strict=True)],
        ]
        left, right = (nearest(torch.cat(side, 1)).split(rank, 1) for side in columns)
        yield name, [u * s @ v.T for u, s, v in zip(left, real, right, strict=True)]


@prepared_method(paper="https://arxiv.org/abs/2412.00081", prepare=directions)
def tsv_m(*, weight: Weights = 1.0, scale: Scale = 1.0) -> np.ndarray:
    """Add what the task vectors' largest singular parts become when no two of them overlap."""
    return weight * scale
