"""ISO: the summed task vectors with all their singular values alike."""

from typing import TYPE_CHECKING, Annotated

import numpy as np

from evomerge.merging.methods import (
    ONE,
    Directions,
    Fraction,
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
    # 0.8: the authors'
    common: Annotated[
        Fraction, "share of the singular parts that are of the sum; the others are single models'"
    ] = 0.8,
) -> Directions:
    """Give every singular part of the merged task vector the mean singular value.

    The largest parts of sum tau_i, the share `common` of them, and of each model's rest
    tau_i - U U^T tau_i as many of the largest parts as make up the rank; their vectors are made
    orthonormal together (ISO-CTS, and with `common: 1` ISO-C, of Marczak et al. 2025,
    arXiv:2502.04959). The paper merges once; here the parts of the sum are shared out, each by how
    much of it the models have, |u^T tau_i v|, so that the directions add up to the paper's merge.
    Parts below 1/256 of the largest are rounding: they would be turned up to the mean, so they are
    left out. Other tensors than matrices are averaged: D_i = tau_i / N.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.diag([3.0, 1.0]).astype(np.float32)
    >>> got = merge_arrays("iso", np.zeros_like(model), [model], options={"common": 1.0})
    >>> got.round(3) + 0.0
    array([[2., 0.],
           [0., 2.]], dtype=float32)
    """
    import torch

    for name in vectors.names:
        taus = vectors.of(name)
        if taus[0].dim() != 2:
            yield name, [tau / len(taus) for tau in taus]
            continue
        left, sizes, right = real_parts(sum(taus[1:], taus[0]))
        if not len(sizes):
            yield name, taus
            continue
        # As the authors' code: as many parts to each model, and what is left to the sum.
        rank = len(sizes)
        each = min(round((rank - int(common * rank)) / len(taus)), rank // len(taus))
        kept = rank - each * len(taus)
        left, sizes, right = left[:, :kept], sizes[:kept], right[:, :kept]
        own = [real_parts(tau - left @ (left.T @ tau), each) for tau in taus]
        lefts = nearest_orthonormal(torch.cat([left, *(u for u, _, _ in own)], 1))
        rights = nearest_orthonormal(torch.cat([right, *(v for _, _, v in own)], 1))
        mean = torch.cat([sizes, *(s for _, s, _ in own)]).mean()
        counts = [kept, *(len(s) for _, s, _ in own)]
        (u, *us), (v, *vs) = lefts.split(counts, 1), rights.split(counts, 1)
        shares = _shares(taus, left, right)
        yield (
            name,
            [
                mean * (u * shares[i] @ v.T + us[i] @ vs[i].T)  # D_i, which sum to mean * U V^T
                for i in range(len(taus))
            ],
        )


def _shares(
    taus: "list[torch.Tensor]", left: "torch.Tensor", right: "torch.Tensor"
) -> "torch.Tensor":
    """Return the (models, parts) shares of the models in the parts of their sum."""
    import torch

    sizes = torch.stack([((left.T @ tau) * right.T).sum(1).abs() for tau in taus])
    return sizes / sizes.sum(0)  # of a part of the sum, somebody has some


@prepared_method(paper="https://arxiv.org/abs/2502.04959", prepare=directions)
def iso(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add the task vectors' sum with all singular values alike, and parts of each model's own.

    >>> iso(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
