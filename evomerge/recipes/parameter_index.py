"""The parameters of a model as one row of numbers."""

import hashlib
import itertools
import json
from collections.abc import Mapping

import numpy as np


class ParameterIndex:
    """Where each tensor begins and ends among the flattened parameters, in canonical order.

    Attributes:
        names: of the tensors.
        edges: (tensors + 1,) int64; tensor t holds the parameters edges[t] to edges[t + 1].
        span: tensor name -> (first, last + 1) of its parameters.
        hash: 16 hex digits that change with the tensors' names, sizes and order.

    >>> index = ParameterIndex({"embed.weight": 6, "lm_head.weight": 4})
    >>> index.span["lm_head.weight"], index.total
    ((6, 10), 10)
    """

    def __init__(self, sizes: Mapping[str, int]):
        """
        Args:
            sizes: tensor name -> elements, in canonical order.
        """
        self.names = tuple(sizes)
        self.edges = np.concatenate([[0], np.cumsum(list(sizes.values()), dtype=np.int64)])
        ends: list[int] = self.edges.tolist()
        self.span = dict(zip(self.names, itertools.pairwise(ends), strict=True))
        listed = json.dumps(list(sizes.items())).encode()
        self.hash = hashlib.sha256(listed).hexdigest()[:16]

    @property
    def total(self) -> int:
        """The number of parameters."""
        return int(self.edges[-1])
