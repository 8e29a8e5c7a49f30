"""WUDI in closed form: the merged matrix that disturbs each task vector's own inputs least."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from evomerge.merging.methods import Positive, Scale, Weights, prepared_method


def directions(vectors: Any, *, ridge: Positive = 0.1) -> Iterator[tuple[str, list]]:
    """Share out the minimum of sum_i |(tau - tau_i) tau_i^T|^2 / |tau_i|^2 among the models.

    The published method (Cheng et al. 2025, arXiv:2503.08099) stops a gradient descent from
    sum tau_i early; here a ridge towards that start, `ridge` times the mean eigenvalue of
    G = sum_i tau_i^T tau_i / |tau_i|^2, stands for it: D_i = tau_i (G_i + r I) (G + r I)^-1,
    solved in float64. Tensors that are no matrices are averaged.
    """
    import torch

    for name in vectors.names:
        taus = vectors.of(name)
        if taus[0].dim() != 2:
            yield name, [tau / len(taus) for tau in taus]
            continue
        wide = [tau.double() for tau in taus]
        grams = [t.T @ t / (t**2).sum().clamp(min=1e-300) for t in wide]
        whole = sum(grams)
        mean = float(whole.diagonal().mean())
        if mean == 0.0:  # all models are the base
            yield name, taus
            continue
        for gram in (*grams, whole):
            gram.diagonal().add_(ridge * mean)
        if ridge > 0.0:
            factor = torch.linalg.cholesky(whole)
            pulled = ((t @ g).T for t, g in zip(wide, grams, strict=True))
            found = [torch.cholesky_solve(pull, factor).T for pull in pulled]
        else:
            inverse = torch.linalg.pinv(whole, hermitian=True)
            found = [t @ g @ inverse for t, g in zip(wide, grams, strict=True)]
        yield name, [d.float() for d in found]


@prepared_method(paper="https://arxiv.org/abs/2503.08099", prepare=directions)
def wudi(*, weight: Weights = 1.0, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors projected so that each disturbs the others' inputs least."""
    return weight * scale
