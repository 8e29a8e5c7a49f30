"""NuSLERP: spherical interpolation by weights, of models or of task vectors."""

from typing import Annotated

import numpy as np

from evomerge.merging.methods import Weights, linear_method
from evomerge.merging.sphere import on_the_circle

CANCELS = 1e-6  # mergekit's

CHORD_ABOVE = 1.0 - 1e-12  # where the angle's sine loses its digits in float64


@linear_method(paper="https://doi.org/10.1145/325334.325242", base=None, models=2)
def nuslerp(
    gram: np.ndarray, *, weight: Annotated[Weights, "share of each of the two on the way"]
) -> np.ndarray:
    """Walk the great circle between two models, or two task vectors if there is a base.

    t = w_2 / (w_1 + w_2), a half where the weights cancel, as in mergekit. Task vectors are
    nearly at right angles, where the circle keeps the norm and the chord does not. Per
    flattened tensor.

    >>> nuslerp(np.eye(2), weight=np.array([1.0, 1.0])).round(3)
    array([0.707, 0.707])
    """
    total = weight.sum()
    t = 0.5 if abs(total) < CANCELS else weight[1] / total
    return on_the_circle(gram, t, CHORD_ABOVE)
