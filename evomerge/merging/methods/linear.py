"""Weighted averages of whole models."""

import numpy as np

from evomerge.merging.methods import Weights, linear_method


@linear_method(paper="https://arxiv.org/abs/2203.05482")
def linear(*, weight: Weights, normalize: bool = True) -> np.ndarray:
    """Average the models: sum w_i W_i, over sum w_i unless `normalize` is false (model soups).

    Weights that sum to less than 1e-8 in magnitude are not divided, as in mergekit.
    """
    total = weight.sum()
    return weight / total if normalize and abs(total) >= 1e-8 else weight
