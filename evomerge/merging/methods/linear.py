"""Weighted averages of whole models."""

from typing import Annotated

import numpy as np

from evomerge.merging.methods import Weights, linear_method
from evomerge.merging.sphere import CANCELS


@linear_method(paper="https://arxiv.org/abs/2203.05482")
def linear(
    *,
    weight: Annotated[Weights, "factor of each model"],
    normalize: Annotated[bool, "divide the weights by their sum"] = True,
) -> np.ndarray:
    """Average the models: sum w_i W_i, over sum w_i unless `normalize` is false (model soups).

    Weights that sum to less than 1e-8 in magnitude are not divided, as in mergekit.

    >>> linear(weight=np.array([1.0, 3.0]))
    array([0.25, 0.75])
    """
    total = weight.sum()
    return weight / total if normalize and abs(total) >= CANCELS else weight
