"""Multi-SLERP: the normalized mean of several directions, at the mean length."""

from typing import Annotated

import numpy as np

from evomerge.merging.methods import Weights, linear_method
from evomerge.merging.sphere import SMALLEST_LENGTH, unit_weights


@linear_method(paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea", base=None)
def multislerp(
    gram: np.ndarray, *, weight: Annotated[Weights, "share of each model in the mean"]
) -> np.ndarray:
    """Average the directions, and give the average the weighted mean of the lengths.

    The exponential map of mergekit's barycentre adds nothing: the tangent vectors at the
    normalized mean sum to zero by its definition. Weights are divided by their sum.

    >>> multislerp(np.eye(2), weight=np.ones(2)).round(3)
    array([0.707, 0.707])
    """
    share, norms = unit_weights(weight), np.sqrt(np.diag(gram))
    # w_i / |x_i|: the coefficients of sum_i w_i u_i
    turned = np.divide(share, norms, out=np.zeros_like(share), where=norms > 0)
    length = np.sqrt(max(turned @ gram @ turned, 0.0))
    # c_i = w_i (sum_j w_j |x_j|) / (|x_i| |sum_j w_j u_j|)
    return turned * (share @ norms) / length if length > SMALLEST_LENGTH else share
