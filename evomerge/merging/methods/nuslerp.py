"""NuSLERP: spherical interpolation by weights, of models or of task vectors."""

import numpy as np

from evomerge.merging.methods import Weights, linear_method, on_the_circle


@linear_method(paper="https://doi.org/10.1145/325334.325242", base=None, models=2)
def nuslerp(gram: np.ndarray, *, weight: Weights) -> np.ndarray:
    """Walk the great circle between two models, or two task vectors if there is a base.

    t = w_2 / (w_1 + w_2), a half where the weights cancel, as in mergekit. Task vectors are
    nearly at right angles, where the circle keeps the norm and the chord does not. Per
    flattened tensor.
    """
    total = weight.sum()
    return on_the_circle(gram, 0.5 if abs(total) < 1e-6 else weight[1] / total, 1.0 - 1e-12)
