"""K-means clustering of a few points, the same on every machine of one kind."""

import numpy as np

# Beginnings, of which the best clustering is taken, and most steps of each; scikit-learn's, by
# which LoRA-LEGO's reproductions cluster.
_BEGINNINGS, _MOST_STEPS = 10, 300


def k_means(points: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Return which cluster each point is in, by Lloyd's algorithm from several beginnings.

    Of the beginnings, which k-means++ draws (Arthur and Vassilvitskii 2007, "k-means++: the
    advantages of careful seeding", section 2.2), that of the least sum of squared distances counts.

    Args:
        points: (points, dimensions) float64.
        count: clusters, 1 at least; with as many as points, or more, each point is its own.
        seed: of the draws.

    Returns:
        (points,) whole numbers from 0; clusters are numbered in the order of their first points.

    >>> k_means(np.array([[0.0], [9.0], [0.1], [9.2]]), 2)
    array([0, 1, 0, 1])
    """
    if count >= len(points):
        return np.arange(len(points))
    generator = np.random.Generator(np.random.PCG64(seed))
    best, least = np.zeros(len(points), int), np.inf
    for _ in range(_BEGINNINGS):
        labels, total = _lloyd(points, _beginning(points, count, generator))
        if total < least:
            best, least = labels, total
    _, first = np.unique(best, return_index=True)
    order = {int(best[index]): number for number, index in enumerate(np.sort(first))}
    return np.array([order[int(label)] for label in best])


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return (points, centres) squared distances."""
    differences = points[:, None, :] - centres[None, :, :]
    distances: np.ndarray = (differences**2).sum(2)
    return distances


def _beginning(points: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw centres among the points, far ones more likely: k-means++.

    Of a few draws the best one is taken, as in the greedy variant of the paper's authors.
    """
    centres = points[[generator.integers(len(points))]]
    nearest = _squared_distances(points, centres)[:, 0]
    draws = 2 + int(np.log(count))
    while len(centres) < count:
        # with probability D(x)^2 / sum D(x)^2, of the distance to the nearest centre
        total = nearest.cumsum()
        drawn = np.searchsorted(total, generator.random(draws) * total[-1], side="right")
        drawn = drawn.clip(max=len(points) - 1)  # equal points may leave no distance
        left = np.minimum(nearest[:, None], _squared_distances(points, points[drawn]))
        best = left.sum(0).argmin()
        centres = np.concatenate([centres, points[drawn[[best]]]])
        nearest = left[:, best]
    return centres


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Return labels and the sum of squared distances once no point changes its cluster."""
    labels = np.full(len(points), -1)
    for _ in range(_MOST_STEPS):
        distances = _squared_distances(points, centres)
        nearest = distances.argmin(1)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        centres = centres.copy()
        for cluster in range(len(centres)):
            members = labels == cluster
            if members.any():
                centres[cluster] = points[members].mean(0)
            else:  # the point that is farthest from its own centre begins a cluster anew
                centres[cluster] = points[distances.min(1).argmax()]
    return labels, float(_squared_distances(points, centres).min(1).sum())
