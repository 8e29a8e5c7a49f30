"""RESM (first called R-TSVM): TSV-M with ranks by sparsity and weights by outliers."""

from typing import TYPE_CHECKING, Annotated

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
from evomerge.merging.spectrum import nearest_orthonormal, real_parts

if TYPE_CHECKING:
    import torch


def directions(
    vectors: TaskVectorsView,
    *,
    deviations: Annotated[
        Positive, "from how many standard deviations on an element is an outlier"
    ] = 3.0,
) -> Directions:
    """Give each model singular parts as TSV-M does, as many and as strong as its elements say.

    Of RESM (Yang et al. 2025, arXiv:2502.06876) its abstract alone was at hand: outlier weighting
    and sparsity-aware selection of ranks. What this computes is derived from that. The rank of
    model i is the floor of R d_i / sum_j d_j, R the smaller side of the matrix and its density
    d_i = |tau_i|_1^2 / (n |tau_i|_2^2), which is 1 where all n elements are as large, and near 0
    where few matter. Its weight is the share of its norm that is no outlier, over the models'
    mean: what lies in a few huge elements is noise of preferences. Singular vectors are then made
    orthonormal together, and other tensors averaged.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.diag([2.0, 1.0]).astype(np.float32)
    >>> merge_arrays("resm", np.zeros_like(model), [model], weight=1.0).round(3) + 0.0
    array([[2., 0.],
           [0., 1.]], dtype=float32)
    """
    import torch

    for name in vectors.names:
        taus = vectors.of(name)
        if taus[0].dim() != 2 or min(taus[0].shape) < len(taus):
            yield name, [tau / len(taus) for tau in taus]
            continue
        densities = np.array([_density(tau) for tau in taus])
        shares = densities / max(densities.sum(), np.finfo(float).tiny)
        ranks = np.floor(min(taus[0].shape) * shares + 1e-9).astype(int)  # one model's is whole
        kept = np.array([_without_outliers(tau, deviations) for tau in taus])
        factors = kept / max(kept.mean(), np.finfo(float).tiny)
        parts = [real_parts(tau, int(rank)) for tau, rank in zip(taus, ranks, strict=True)]
        counts = [len(sizes) for _, sizes, _ in parts]
        if not sum(counts):  # every model is the base
            yield name, taus
            continue
        lefts = nearest_orthonormal(torch.cat([left for left, _, _ in parts], 1)).split(counts, 1)
        rights = nearest_orthonormal(torch.cat([right for *_, right in parts], 1)).split(counts, 1)
        found = []
        for factor, left, (_, sizes, _), right in zip(factors, lefts, parts, rights, strict=True):
            found.append(float(factor) * (left * sizes) @ right.T)  # D_i = f_i U^_i S_i V^_i^T
        yield name, found


def _density(tau: "torch.Tensor") -> float:
    """Return |tau|_1^2 / (n |tau|_2^2): the share of elements that matter, 0 of none."""
    wide = tau.double()
    squares = float(wide.square().sum())
    return float(wide.abs().sum()) ** 2 / (wide.numel() * squares) if squares > 0 else 0.0


def _without_outliers(tau: "torch.Tensor", deviations: float) -> float:
    """Return the share of a task vector's squared norm that lies in no outlier."""
    wide = tau.double()
    squares = wide.square()
    total = float(squares.sum())
    if total == 0.0:
        return 1.0
    spread = float(squares.mean()) ** 0.5  # around 0, as task vectors are
    return float(squares[wide.abs() <= deviations * spread].sum()) / total


@prepared_method(paper="https://arxiv.org/abs/2502.06876", prepare=directions)
def resm(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add singular parts that do not overlap, more of dense task vectors, less of outliers.

    >>> resm(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
