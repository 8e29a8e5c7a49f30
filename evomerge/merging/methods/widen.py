"""WIDEN: columns weighed by how far each model moved their length and their direction."""

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

if TYPE_CHECKING:
    import torch


def directions(
    vectors: TaskVectorsView,
    *,
    # 1: the authors' ratio
    ratio: Annotated[
        Positive, "how many times its model's mean rank a column has to have to be kept in full"
    ] = 1.0,
) -> Directions:
    """Multiply each column of a task vector by its importance among the models.

    A matrix's columns are split into length and direction. In each model they are ranked by
    how much the length changed, and by 1 - cosine; ranks / n are softmaxed across models, and
    those above `ratio` times their model's mean become 1. The importance is the mean of both
    (Yu et al. 2024, arXiv:2408.03092). In other tensors elements are ranked by their change.

    >>> from evomerge.testing import merge_arrays
    >>> model = np.array([0.0, 1.0, 2.0], np.float32)
    >>> merge_arrays("widen", np.zeros_like(model), [model])
    array([0., 1., 2.], dtype=float32)
    """
    import torch

    def importance(moved: "torch.Tensor") -> "torch.Tensor":
        """Return the (models, n) importance of columns by how far they were moved."""
        n = moved.shape[1]
        ranks = moved.argsort(dim=1, stable=True).argsort(dim=1)
        important = ranks > ratio * (n - 1) / 2  # (n - 1) / 2 is the mean of 0 to n - 1
        return torch.softmax(ranks.float() / n, dim=0).masked_fill(important, 1.0)

    for name in vectors.names:
        base, taus = vectors.base(name), vectors.of(name)
        if base.dim() != 2:
            share = importance(torch.stack([tau.abs().reshape(-1) for tau in taus]))
            yield name, [tau * s.view_as(tau) for tau, s in zip(taus, share, strict=True)]
            continue
        base = base.double()
        models = [base + tau for tau in taus]
        lengths = torch.stack([model.norm(dim=0) for model in models])
        cosines = torch.stack([torch.cosine_similarity(model, base, dim=0) for model in models])
        both = importance((lengths - base.norm(dim=0)).abs()) + importance(1.0 - cosines)
        yield name, [tau * s / 2.0 for tau, s in zip(taus, both, strict=True)]


@prepared_method(paper="https://arxiv.org/abs/2408.03092", prepare=directions)
def widen(*, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors, the columns that a model changed most in full, others shared out.

    >>> widen(weight=np.array([1.0, 0.5]), scale=2.0)
    array([2., 1.])
    """
    return weight * scale
