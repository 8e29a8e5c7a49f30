"""Spherical interpolation of two models."""

from typing import Annotated

import numpy as np

from evomerge.merging.methods import Fraction, linear_method
from evomerge.merging.sphere import on_the_circle

LERP_ABOVE = 0.9995  # cosine from which mergekit interpolates linearly


@linear_method(paper="https://doi.org/10.1145/325334.325242", models=2)
def slerp(
    gram: np.ndarray,
    *,
    t: Annotated[Fraction, "how far to go from the first model (0) to the second (1)"],
) -> np.ndarray:
    """Walk the great circle from the first model (t = 0) to the second (t = 1), per tensor.

    (sin((1 - t) w) A + sin(t w) B) / sin w, with w the angle between the two flattened
    tensors; the chord (1 - t) A + t B where |cos w| > 0.9995 or a tensor is zero, as in
    mergekit. Fine-tunes of one base are nearly always within that.

    >>> slerp(np.eye(2), t=0.5).round(3)
    array([0.707, 0.707])
    """
    return on_the_circle(gram, t, LERP_ABOVE)
