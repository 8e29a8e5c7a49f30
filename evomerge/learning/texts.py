"""Which texts to learn on."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


def chosen(lists: Sequence[Sequence[_T]], count: int, seed: int) -> list[_T]:
    """Return `count` entries, as equally as can be from each list, drawn with a seed.

    >>> sorted(chosen([[1, 2, 3, 4], [10]], 3, seed=0))[2]
    10
    """
    rng = np.random.default_rng(seed)
    waiting = [list(rng.permutation(len(entries))) for entries in lists]
    found: list[_T] = []
    while len(found) < count and any(waiting):
        for entries, left in zip(lists, waiting, strict=True):
            if left and len(found) < count:
                found.append(entries[left.pop(0)])
    return found
