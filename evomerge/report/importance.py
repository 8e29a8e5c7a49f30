"""How much each gene matters for the value: what a forest loses without it, with an interval."""

from typing import NamedTuple

import numpy as np

ROUNDS = 20  # bootstrap samples, each with a forest of its own
_TREES = 20
_MOST = 1500  # candidates that are looked at
_LEAST, _LEAST_EACH = 40, 3  # candidates in all, and for each gene


class Importance(NamedTuple):
    """What the forests lose without a gene, as a share of the variance of the values.

    Attributes:
        middle: the median over bootstrap samples.
        low, high: the 5 % and 95 % quantiles.

    >>> Importance(0.5, 0.4, 0.6).middle
    0.5
    """

    middle: float
    low: float
    high: float


def enough(candidates: int, genes: int) -> int:
    """Return 0 where there are enough candidates for so many genes, else how many it takes.

    >>> enough(39, 2), enough(240, 12)
    (40, 0)
    """
    needed = max(_LEAST, _LEAST_EACH * genes)
    return 0 if candidates >= needed else needed


def importances(genomes: np.ndarray, values: np.ndarray) -> tuple[list[Importance], float]:
    """Return each gene's importance for the value, and how much of it forests predict.

    Permutation importance (Breiman 2001, "Random Forests", section 10): on the candidates that a
    bootstrap sample left out, by how much the squared error of its forest grows when a gene's
    column is shuffled, over the variance of their values. The same data give the same numbers.

    Args:
        genomes: (candidates, genes) float64.
        values: (candidates,) float64.

    Returns:
        One importance a gene; and the median R^2 on candidates that were left out.

    >>> rng = np.random.default_rng(0)
    >>> genomes = rng.random((200, 2))
    >>> (first, second), r2 = importances(genomes, genomes[:, 0])
    >>> first.low > 1.0, abs(second.middle) < 0.05, r2 > 0.9
    (True, True, True)
    """
    from sklearn.ensemble import ExtraTreesRegressor

    rng = np.random.default_rng(0)
    if len(genomes) > _MOST:
        kept = np.sort(rng.choice(len(genomes), _MOST, replace=False))
        genomes, values = genomes[kept], values[kept]
    count, genes = genomes.shape
    lost, explained = [], []
    for number in range(ROUNDS):
        drawn = rng.integers(0, count, count)
        left = np.setdiff1d(np.arange(count), drawn)
        truth, spread = values[left], float(values[left].var())
        if len(left) < 2 or spread == 0.0:
            continue
        forest = ExtraTreesRegressor(_TREES, min_samples_leaf=2, random_state=number, n_jobs=1).fit(
            genomes[drawn], values[drawn]
        )
        # one prediction for all: the columns as they are, then each gene's shuffled in its turn
        shuffled = np.repeat(genomes[None, left], genes + 1, axis=0)
        for gene in range(genes):
            shuffled[gene + 1, :, gene] = rng.permutation(shuffled[0, :, gene])
        predicted = forest.predict(shuffled.reshape(-1, genes)).reshape(genes + 1, -1)
        errors = ((predicted - truth) ** 2).mean(axis=1) / spread
        lost.append(errors[1:] - errors[0])
        explained.append(1.0 - errors[0])
    if not lost:
        return [Importance(0.0, 0.0, 0.0)] * genes, 0.0
    low, middle, high = np.quantile(lost, [0.05, 0.5, 0.95], axis=0)
    found = [Importance(*map(float, one)) for one in zip(middle, low, high, strict=True)]
    return found, float(np.median(explained))
