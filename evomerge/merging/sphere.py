"""Coefficients of averages along great circles, for methods that turn models, not only add them."""

import numpy as np

CANCELS = 1e-8  # a sum of weights below this is no divisor, as in mergekit

SMALLEST_LENGTH = 1e-12  # of a mean of unit vectors: below it they cancel


def unit_weights(weight: np.ndarray) -> np.ndarray:
    """Return (n,) weights over their sum; equal ones where they cancel.

    >>> unit_weights(np.array([1.0, 3.0]))
    array([0.25, 0.75])
    """
    total = weight.sum()
    if abs(total) < CANCELS:
        return np.full(len(weight), 1.0 / len(weight))
    return weight / total


def on_the_circle(gram: np.ndarray, t: float, chord_above: float) -> np.ndarray:
    """Return the two coefficients of spherical interpolation (Shoemake 1985).

    Args:
        gram: (2, 2) inner products.
        t: 0 at the first, 1 at the second.
        chord_above: |cosine| from which the chord stands for the arc.

    >>> on_the_circle(np.eye(2), 0.5, 0.9995).round(3)
    array([0.707, 0.707])
    """
    norms = np.sqrt(np.diag(gram))
    cosine = gram[0, 1] / (norms[0] * norms[1]) if norms.all() else 1.0
    if abs(cosine) > chord_above:
        return np.array([1.0 - t, t])
    angle = np.arccos(cosine)
    # slerp(A, B; t) = (sin((1 - t) w) A + sin(t w) B) / sin w
    return np.array([np.sin((1.0 - t) * angle), np.sin(t * angle)]) / np.sin(angle)
