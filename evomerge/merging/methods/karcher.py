"""Karcher mean: the point on the sphere nearest to several directions."""

from typing import Annotated

import numpy as np

from evomerge.merging.methods import Weights, linear_method
from evomerge.merging.sphere import SMALLEST_LENGTH, unit_weights

STEPS = 50  # mergekit takes ten; the tolerance is nearly always met earlier

TOLERANCE = 1e-9  # length of a step on the unit sphere, far below float32's rounding

SMALLEST_ANGLE = 1e-7  # below it angle / sin(angle) is 1 in float64


@linear_method(paper="https://doi.org/10.1002/cpa.3160300502", base=None)
def karcher(
    gram: np.ndarray, *, weight: Annotated[Weights, "share of each model in the mean"]
) -> np.ndarray:
    """Average the directions along great circles, at the weighted mean of the lengths.

    The fixed point of u <- exp_u(sum a_i log_u(u_i)) (mergekit: equal weights, ten steps),
    found in the coordinates of the models. Weights are divided by their sum.

    >>> karcher(np.eye(2), weight=np.ones(2)).round(3)
    array([0.707, 0.707])
    """
    share, norms = unit_weights(weight), np.sqrt(np.diag(gram))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = gram * inverse[:, None] * inverse

    def length(x: np.ndarray) -> float:  # of sum_i x_i u_i
        return float(np.sqrt(max(x @ cosines @ x, 0.0)))

    if length(share) < SMALLEST_LENGTH:
        return share
    at = share / length(share)
    for _ in range(STEPS):
        near = np.clip(cosines @ at, -1.0, 1.0)  # u . u_i = cos(theta_i)
        angle = np.arccos(near)
        # theta_i / sin(theta_i), by which log_u(u_i) = that (u_i - cos(theta_i) u)
        sine = np.maximum(np.sin(angle), SMALLEST_LENGTH)
        stretch = np.where(angle > SMALLEST_ANGLE, angle / sine, 1.0)
        step = share * stretch - (share * stretch * near).sum() * at  # sum_i a_i log_u(u_i)
        far = length(step)
        if far < TOLERANCE:
            break
        at = np.cos(far) * at + np.sin(far) * step / far  # exp_u(step)
        at = at / length(at)
    return at * inverse * (share @ norms)
