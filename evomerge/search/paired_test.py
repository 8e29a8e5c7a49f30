"""Whether one candidate is worse than another, told while their items are still being scored.

Both are scored on the same items, in one random order, and the test may be looked at after every
item: its error rate holds for all looks together.
"""

import numpy as np

# Shares of the largest stake that a fair game allows. Small ones gain from many items that differ
# little, large ones from few that differ much; the average of all is as safe as each.
_STAKES = np.geomspace(0.01, 0.9, 10)


def evidence_below(differences: np.ndarray, total: int, mean: float = 0.0) -> float:
    """Return the evidence, an e-value, that the mean of a finite pool is below a number.

    The capital of a gambler who bets on lower values than a pool of at least that mean would give,
    drawn without replacement (Waudby-Smith & Ramdas, arXiv:2006.04347 and arXiv:2010.09686). Where
    the pool's mean is not below the number, it ever exceeds 1 / alpha with probability alpha at
    most (Ville's inequality).

    Args:
        differences: (drawn,) float64 in [-1, 1], in the order in which they were drawn.
        total: how many the pool has.
        mean: the number.

    Returns:
        The largest e-value of all moments so far; infinite where nothing that is left can raise
        the pool's mean so far.

    >>> evidence_below(np.full(60, -0.5), 800) > 1000
    True
    >>> evidence_below(np.tile([0.5, -0.5], 30), 800) < 2
    True
    """
    drawn = np.asarray(differences, np.float64)
    count = len(drawn)
    if not count:
        return 1.0
    before = np.concatenate([[0.0], np.cumsum(drawn)])[:-1]
    # what the next one is on average, if the pool's mean is the number: (N m - S_t-1) / (N - t + 1)
    expected = (total * mean - before) / (total - np.arange(count))
    certain = np.flatnonzero(expected > 1.0 + 1e-12)
    first = int(certain[0]) if len(certain) else count
    if first == 0:
        return np.inf
    expected, drawn = np.clip(expected[:first], -1.0, 1.0), drawn[:first]
    # K_t = prod (1 + stake / (1 - expected) * (expected - x)); x <= 1 keeps each factor above 0
    room = np.maximum(1.0 - expected, 1e-9)
    factors = 1.0 + _STAKES[:, None] * np.maximum((expected - drawn) / room, -1.0)
    capital = np.exp(np.cumsum(np.log(factors), axis=1)).mean(axis=0)
    return np.inf if first < count else float(max(1.0, capital.max()))
