"""A soup of category experts (SoCE): for each category the model that is best at it.

Souper-Model (Maiti et al. 2025, arXiv:2511.13254): categories of a benchmark whose scores hardly
correlate over the models need experts of their own; each one's expert is the model that scores best
on it; the experts are averaged, with those weights of a grid that score best. Here the categories
are a campaign's objectives. Ours, for the reason named: a correlation far below 0 counts as weak,
where the paper has |rho|, since categories that go against one another need two experts all the
more; the threshold is fixed; a grid of tenths has 84 points for four experts, each of them a model
to score, so that it is climbed from its middle, a tenth moved at a time; and an expert may lose all
its weight, where the paper leaves it a tenth, since one that is best at its category may have
forgotten all others.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

THRESHOLD = 0.5  # tau: correlations below it are weak
TENTHS = 10  # the grid's: weights are whole tenths
_SOUPS_EACH = 3  # at most so many scored for each expert


def correlations(scores: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each two categories over the models; NaN of a constant one.

    Args:
        scores: (models, categories) float64.

    Returns:
        (categories, categories) float64.

    >>> correlations(np.array([[0.0, 1.0], [1.0, 0.0], [2.0, -1.0]])).round(3).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    apart = scores - scores.mean(axis=0)
    lengths = np.sqrt((apart**2).sum(axis=0))
    lengths[lengths < 1e-12] = np.nan
    # rho_ij = sum_m (P_mi - P_i)(P_mj - P_j) / sqrt(sum_m (P_mi - P_i)^2 sum_m (P_mj - P_j)^2)
    return (apart.T @ apart) / np.outer(lengths, lengths)


def weakly_correlated(scores: np.ndarray) -> list[int]:
    """Return the categories that correlate weakly, or negatively, with any other one.

    Args:
        scores: (models, categories) float64.

    >>> weakly_correlated(np.array([[1.0, 0.9, 0.0], [0.0, 0.1, 1.0], [0.2, 0.0, 0.1]]))
    [0, 1, 2]
    >>> weakly_correlated(np.array([[1.0, 0.9], [0.0, 0.1], [0.2, 0.3]]))
    []
    """
    # L = {C_k : rho_kl < tau for some l}; a category's own is 1, and a NaN is not below anything
    weak = correlations(scores) < THRESHOLD
    return [int(k) for k in np.flatnonzero(weak.any(axis=1))]


def category_experts(
    scores: Mapping[str, Sequence[float]], worth: Mapping[str, float]
) -> list[str]:
    """Return the models that are best at any weakly correlated category, the worthiest first.

    Args:
        scores: of each model, one for each category, more is better.
        worth: of each model, all in all; of two that are equally good at a category it decides.

    >>> scores = {"ja": (0.9, 0.1), "fr": (0.1, 0.8), "en": (0.5, 0.2), "de": (0.1, 0.1)}
    >>> category_experts(scores, {"ja": 0.5, "fr": 0.4, "en": 0.3, "de": 0.1})
    ['ja', 'fr']
    """
    models = sorted(scores, key=lambda model: -worth[model])
    if len(models) < 2:
        return models
    rows = np.array([scores[model] for model in models], float)
    best = {models[int(np.argmax(rows[:, k]))] for k in weakly_correlated(rows)}
    return [model for model in models if model in best]


def most_soups(experts: int) -> int:
    """Return how many soups of so many experts are scored at most.

    >>> most_soups(4)
    12
    """
    return _SOUPS_EACH * experts if experts > 1 else 0


def climb(
    experts: int, value_of: Callable[[tuple[int, ...]], float | None]
) -> tuple[int, ...] | None:
    """Return the best weights that were scored, in tenths that sum to ten; None if none could be.

    From equal weights on, a tenth goes from one expert to another as long as that helps, from the
    last ones to the first ones first; then the next pair has its turn, until no pair helps or
    `most_soups` were scored.

    Args:
        experts: at most ten, the best first: they have the larger share of what is left over.
        value_of: scores the soup of such weights; None if it failed.

    >>> climb(2, lambda tenths: -abs(tenths[0] - 7))
    (7, 3)
    """
    share, rest = divmod(TENTHS, experts)
    tenths = tuple(share + (k < rest) for k in range(experts))
    known = {tenths: value_of(tenths)}

    def is_better(moved: tuple[int, ...]) -> bool:
        if min(moved) < 0 or moved in known or len(known) >= most_soups(experts):
            return False
        known[moved] = value_of(moved)
        before, after = known[tenths], known[moved]
        return after is not None and (before is None or after > before)

    has_moved = True
    while has_moved:
        has_moved = False
        for taker in range(experts):
            for giver in reversed(range(experts)):
                while giver != taker and is_better(moved := _moved(tenths, giver, taker)):
                    tenths, has_moved = moved, True
    return tenths if known[tenths] is not None else None


def _moved(tenths: tuple[int, ...], giver: int, taker: int) -> tuple[int, ...]:
    found = list(tenths)
    found[giver] -= 1
    found[taker] += 1
    return tuple(found)
