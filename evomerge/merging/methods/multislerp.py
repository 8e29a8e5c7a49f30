"""Multi-SLERP: the normalized mean of several directions, at the mean length."""

import numpy as np

from evomerge.merging.methods import Weights, linear_method, unit_weights


@linear_method(paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea", base=None)
def multislerp(gram: np.ndarray, *, weight: Weights) -> np.ndarray:
    """Average the directions, and give the average the weighted mean of the lengths.

    The exponential map of mergekit's barycentre adds nothing: the tangent vectors at the
    normalized mean sum to zero by its definition. Weights are divided by their sum.
    """
    share, norms = unit_weights(weight), np.sqrt(np.diag(gram))
    turned = np.divide(share, norms, out=np.zeros_like(share), where=norms > 0)
    length = np.sqrt(max(turned @ gram @ turned, 0.0))
    return turned * (share @ norms) / length if length > 1e-12 else share
