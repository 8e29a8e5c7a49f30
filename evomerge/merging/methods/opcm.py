"""OPCM: models added one after the other, each freed of what those before it use most."""

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

if TYPE_CHECKING:
    import torch


def directions(
    vectors: TaskVectorsView,
    *,
    # 0.5: the authors'
    used: Annotated[
        Fraction, "share of the singular values whose directions belong to the models before"
    ] = 0.5,
) -> Directions:
    """Free each task vector of the largest singular directions of the sum before it.

    With U S V^T of what the models before add up to, and P = U^T tau_t V, the diagonal of P and its
    block of the first k directions are set to zero, k those whose values have the share `used` of
    all: U P V^T, which is tau_t less what was set to zero, is added (Tang et al. 2025,
    arXiv:2501.09522). All is divided by one number, so that the whole is as long as the task
    vectors are on average; the paper does that after each model, which comes to the same. Tensors
    that are no matrices are added as they are. The order of the models matters: the first is kept
    whole.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.diag([2.0, 1.0]).astype(np.float32)
    >>> merge_arrays("opcm", np.zeros_like(model), [model, model]).round(3) + 0.0
    array([[2., 0.],
           [0., 1.]], dtype=float32)
    """
    # A pass over all tensors for the two lengths, then one for the directions.
    squares, total = [0.0] * vectors.count, 0.0
    for name in vectors.names:
        taus = vectors.of(name)
        added = _freed(taus, used)
        squares = [
            square + float(tau.double().square().sum())
            for square, tau in zip(squares, taus, strict=True)
        ]
        total += float(sum(added[1:], added[0]).double().square().sum())
    mean = sum(square**0.5 for square in squares) / len(squares)
    factor = mean / total**0.5 if total > 0 else 1.0  # 1 / lambda_N
    for name in vectors.names:
        yield name, [tau * factor for tau in _freed(vectors.of(name), used)]


def _freed(taus: "list[torch.Tensor]", used: float) -> "list[torch.Tensor]":
    """Return what each task vector of one tensor adds to those before it."""
    import torch

    if taus[0].dim() != 2:
        return taus
    total, added = taus[0], [taus[0]]
    for tau in taus[1:]:
        # what is set to zero lies in the first min(out, in) directions of both sides
        left, sizes, right = torch.linalg.svd(total, full_matrices=False)
        projected = left.T @ tau @ right.T
        reached = sizes.cumsum(0) > used * sizes.sum()
        first = int(reached.int().argmax()) if bool(reached.any()) else 0
        gone = torch.diag(projected.diagonal())
        gone[:first, :first] = projected[:first, :first]
        added.append(tau - left @ gone @ right)
        total = total + added[-1]
    return added


@prepared_method(paper="https://arxiv.org/abs/2501.09522", prepare=directions, ordered=True)
def opcm(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors in their order, each freed of the directions that those before it use.

    >>> opcm(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
