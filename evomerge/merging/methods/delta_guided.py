"""CoDiEmb's delta-guided fusion: models share each tensor by the length of its task vector."""

import numpy as np

from evomerge.merging.methods import ONE, Scale, Weights, linear_method


@linear_method(paper="https://arxiv.org/abs/2508.11442", base=True)
def delta_guided(gram: np.ndarray, *, weight: Weights = ONE, scale: Scale = 1.0) -> np.ndarray:
    """Add task vectors, each with its share w_i |tau_i| / sum_j |w_j| |tau_j| of the deviation.

    Of the fusion in CoDiEmb (Zhang et al. 2025, arXiv:2508.11442) its abstract alone was at hand:
    weights of checkpoints, parameter by parameter, by how far each deviates from the common
    initialization. What this computes is derived from that: the deviation is the Euclidean one of
    a whole tensor, to the first power. `varm` has its square.

    >>> delta_guided(np.diag([9.0, 1.0]))
    array([0.75, 0.25])
    """
    lengths = np.sqrt(np.diag(gram)) * weight
    total = np.abs(lengths).sum()
    return scale * lengths / total if total > 0 else np.zeros(len(gram))
