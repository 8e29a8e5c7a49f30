"""Spherical interpolation of two models."""

import numpy as np

from evomerge.operators import Fraction, linear_method

LERP_ABOVE = 0.9995  # cosine from which mergekit interpolates linearly


@linear_method(paper="https://doi.org/10.1145/325334.325242", models=2)
def slerp(gram: np.ndarray, *, t: Fraction) -> np.ndarray:
    """Walk the great circle from the first model (t = 0) to the second (t = 1), per tensor.

    (sin((1 - t) w) A + sin(t w) B) / sin w, with w the angle between the two flattened
    tensors; the chord (1 - t) A + t B where |cos w| > 0.9995 or a tensor is zero, as in
    mergekit. Fine-tunes of one base are nearly always within that.
    """
    norms = np.sqrt(np.diag(gram))
    cosine = gram[0, 1] / (norms[0] * norms[1]) if norms.all() else 1.0
    if abs(cosine) > LERP_ABOVE:
        return np.array([1.0 - t, t])
    angle = np.arccos(cosine)
    return np.array([np.sin((1.0 - t) * angle), np.sin(t * angle)]) / np.sin(angle)
