"""Karcher mean: the point on the sphere nearest to several directions."""

import numpy as np

from evomerge.merging.methods import Weights, linear_method, unit_weights

_STEPS, _TOLERANCE = 50, 1e-9


@linear_method(paper="https://doi.org/10.1002/cpa.3160300502", base=None)
def karcher(gram: np.ndarray, *, weight: Weights) -> np.ndarray:
    """Average the directions along great circles, at the weighted mean of the lengths.

    The fixed point of u <- exp_u(sum a_i log_u(u_i)) (mergekit: equal weights, ten steps),
    found in the coordinates of the models. Weights are divided by their sum.
    """
    share, norms = unit_weights(weight), np.sqrt(np.diag(gram))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = gram * inverse[:, None] * inverse

    def length(x: np.ndarray) -> float:
        return float(np.sqrt(max(x @ cosines @ x, 0.0)))

    if length(share) < 1e-12:
        return share
    at = share / length(share)
    for _ in range(_STEPS):
        near = np.clip(cosines @ at, -1.0, 1.0)
        angle = np.arccos(near)
        stretch = np.where(angle > 1e-7, angle / np.maximum(np.sin(angle), 1e-12), 1.0)
        step = share * stretch - (share * stretch * near).sum() * at
        far = length(step)
        if far < _TOLERANCE:
            break
        at = np.cos(far) * at + np.sin(far) * step / far
        at = at / length(at)
    return at * inverse * (share @ norms)
