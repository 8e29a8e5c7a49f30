"""Points of a box that are bred: what a controller that crosses candidates is tried on."""

from collections.abc import Mapping, Sequence

import numpy as np


def founders(dimension: int) -> np.ndarray:
    """Return (4, dimension) corners of the box from which crossings reach every point of it.

    >>> founders(3)[:2].tolist()
    [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    others = np.random.default_rng(99).integers(0, 2, (4, dimension))
    return np.vstack([np.zeros(dimension), np.ones(dimension), others])


def crossed(
    genome: np.ndarray, parents: Sequence[int], individuals: Mapping[int, np.ndarray]
) -> np.ndarray:
    """Return the child of two points of the box: mixed, with the shares exchanged from a split on.

    >>> corners = {1: np.zeros(4), 2: np.ones(4)}
    >>> crossed(np.array([0.25, 0.5]), (1, 2), corners).tolist()
    [0.25, 0.25, 0.75, 0.75]
    """
    first, second = (individuals[p] for p in (*parents, *parents)[:2])
    split = np.arange(len(first)) < genome[1] * len(first)
    mix = np.where(split, genome[0], 1.0 - genome[0])
    return (1.0 - mix) * first + mix * second
