"""VaRM: models share each tensor by how far they moved it."""

import numpy as np

from evomerge.merging.methods import ONE, Scale, Weights, linear_method


@linear_method(paper="https://arxiv.org/abs/2402.16107", base=True)
def varm(gram: np.ndarray, *, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors, each with its share w_i |tau_i|^2 / sum_j |w_j| |tau_j|^2 of the movement.

    With equal weights these are the variation ratios of FuseChat (Wan et al. 2024,
    arXiv:2402.16107, section 3.3), tensor by tensor. `sce` has them too, of the elements that it
    selects.

    >>> varm(np.diag([3.0, 1.0]))
    array([0.75, 0.25])
    """
    squares = np.diag(gram) * weight
    total = np.abs(squares).sum()
    return scale * squares / total if total > 0 else np.zeros(len(gram))
