"""Model Stock: how far to walk from the base to the average, by the models' angle."""

from typing import Annotated

import numpy as np

from evomerge.merging.methods import Scale, linear_method


@linear_method(paper="https://arxiv.org/abs/2403.19522", base=True)
def model_stock(
    gram: np.ndarray,
    *,
    scale: Annotated[Scale, "factor of the way from the base to the average"] = 1.0,
) -> np.ndarray:
    """Go t = N cos / (1 + (N - 1) cos) of the way to the average of N models, per tensor.

    cos is the mean cosine of their task vectors, taken as 0 where it is negative (mergekit
    lets t turn negative, and grow without bound); `scale` multiplies t.

    >>> model_stock(np.array([[1.0, 0.5], [0.5, 1.0]])).round(3)
    array([0.333, 0.333])
    """
    n = len(gram)
    norms = np.sqrt(np.diag(gram))
    pairs = np.triu_indices(n, 1)
    lengths = np.outer(norms, norms)[pairs]
    known = lengths > 0
    cosine = (gram[pairs][known] / lengths[known]).mean() if known.any() else float(n == 1)
    cosine = min(max(cosine, 0.0), 1.0)
    # W = t mean(W_i) + (1 - t) W_0, so that each task vector is added t / N times
    return np.full(n, scale * cosine / (1.0 + (n - 1) * cosine))
