"""DOGE: task vectors with one shared correction, by which they disturb one another less."""

from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    import torch

# Of the authors' code: Adam's steps and their size, and which part of the rank is left alone.
STEPS, STEP, SHARED = 400, 1e-4, 6


def directions(
    vectors: TaskVectorsView,
    *,
    # 0.07 and 0.3: the authors', for CLIP
    length: Annotated[Positive, "of each task vector in each tensor, before it is thinned out"] = (
        0.07
    ),
    kept: Annotated[Fraction, "share of each task vector's elements, the largest, that is kept"] = (
        0.3
    ),
) -> Directions:
    """Move all task vectors by one delta a matrix, then keep their largest elements.

    With lambda_i = length / |tau_i|, delta minimizes sum_j |rowsum(tau_j * (tau_j -
    sum_i lambda_i (tau_i + delta)))|^2: what each model's own rows lose in the merge. 400 steps of
    Adam, size 1e-4, go down its gradient, but not within the span of the first sixth of the left
    singular vectors that the models have in common. D_i = lambda_i mask_i (tau_i + delta), where
    the mask is of the whole task vector's largest elements (Wei et al. 2025, arXiv:2501.01230, with
    the numbers of its code). Tensors that are no matrices are averaged: D_i = tau_i / N.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.diag([2.0, 1.0]).astype(np.float32)
    >>> options = {"length": 5.0**0.5, "kept": 1.0}
    >>> merge_arrays("doge", np.zeros_like(model), [model], options=options).round(2) + 0.0
    array([[2., 0.],
           [0., 1.]], dtype=float32)
    """
    import torch

    least = []
    for i in range(vectors.count):

        def magnitudes(name: str, i: int = i) -> "torch.Tensor":
            return vectors.one(i, name)

        least.append(vectors.kth_largest(magnitudes, max(1, int(kept * vectors.size))))
    for name in vectors.names:
        taus = vectors.of(name)
        if taus[0].dim() != 2:
            yield name, [tau / len(taus) for tau in taus]
            continue
        norms = [float(tau.norm()) for tau in taus]
        factors = [length / norm if norm > 0 else 0.0 for norm in norms]  # lambda_i
        stacked = torch.stack(taus)
        delta = _correction(stacked, torch.tensor(factors).to(stacked))
        yield (
            name,
            [
                factor * (tau.abs() >= bound) * (tau + delta)
                for factor, tau, bound in zip(factors, taus, least, strict=True)
            ],
        )


def _correction(taus: "torch.Tensor", factors: "torch.Tensor") -> "torch.Tensor":
    """Return the (rows, columns) delta of (models, rows, columns) task vectors."""
    import torch

    shared = _shared_directions(taus)
    merged = torch.einsum("n,nrc->rc", factors, taus)
    # sum_c tau (tau - merged), which delta does not change
    given = (taus * (taus - merged)).sum(2)
    total = factors.sum()
    delta = torch.zeros_like(merged, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=STEP)
    for _ in range(STEPS):
        with torch.no_grad():
            lost = given - total * torch.einsum("nrc,rc->nr", taus, delta)
            slope = -2.0 * total * torch.einsum("nr,nrc->rc", lost, taus)
            delta.grad = slope - shared @ (shared.T @ slope)
        optimizer.step()
    return delta.detach()


def _shared_directions(taus: "torch.Tensor") -> "torch.Tensor":
    """Return (rows, k) orthonormal columns: what the models' left singular vectors span most."""
    import torch

    rank = min(taus.shape[1:])
    each = rank // len(taus)
    lefts = [torch.linalg.svd(tau, full_matrices=False)[0][:, :each] for tau in taus]
    if len(taus) == 1:  # of which no direction is more common than another
        return lefts[0][:, : rank // SHARED]
    return torch.linalg.svd(torch.cat(lefts, 1), full_matrices=False)[0][:, : rank // SHARED]


@prepared_method(paper="https://arxiv.org/abs/2501.01230", prepare=directions)
def doge(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors of equal length with one shared correction against interference.

    >>> doge(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
