"""What a few item scores say of the mean over all items.

Some items are easier than others, and those who were scored on all items tell which. So the mean is
estimated by how much better a candidate did on its few items than was predicted for these, added to
the mean of the predictions for all (the difference estimator: Cochran 1977, Sampling Techniques,
section 7.1). As the items are drawn at random and the predictions are fixed before, the estimate is
unbiased however good they are.
"""

from collections.abc import Sequence

import numpy as np

from evomerge.scoring.outcome import Score, summary


class ItemPredictions:
    """Predicted scores of one objective's search items, for a candidate that is not known yet.

    Attributes:
        predicted: (items,) float64; 0 where nobody was scored on all items.

    >>> rows = [np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])]
    >>> predictions = ItemPredictions(rows, items=4)
    >>> predictions.estimate(np.array([1, 2]), np.array([1.0, 1.0])).items
    2
    """

    def __init__(self, rows: Sequence[np.ndarray], items: int):
        """
        Args:
            rows: the (items,) scores of each candidate that was scored on all items.
            items: how many there are.
        """
        self.predicted = np.zeros(items)
        if len(rows) < 2:
            return
        scores = np.asarray(rows, np.float64)
        others = (scores.sum(axis=0) - scores) / (len(scores) - 1)
        # The slope by which the others' mean would have predicted each of them: below 1, as the
        # mean of a few is noisy itself.
        centred = others - others.mean(axis=1, keepdims=True)
        variance = (centred**2).sum()
        if variance <= 0.0:
            return
        slope = float((centred * scores).sum() / variance)
        self.predicted = min(1.0, max(0.0, slope)) * scores.mean(axis=0)

    def estimate(self, which: np.ndarray, scores: np.ndarray) -> Score:
        """Return the estimated mean over all items, its standard error, and the items scored.

        Where all are scored, the mean itself, with the error that it has as a sample.

        Args:
            which: (scored,) int64 positions, drawn at random without replacement.
            scores: (scored,) float32.
        """
        total, count = len(self.predicted), len(which)
        if count == total:
            return summary(scores)
        beyond = np.asarray(scores, np.float64) - self.predicted[which]
        mean = float(beyond.mean() + self.predicted.mean())
        if count < 2:
            return Score(mean, 0.0, count)
        # s^2 / n (1 - n / N): the sample is drawn from finitely many (Cochran, theorem 2.2)
        variance = float(beyond.var(ddof=1)) / count * (1.0 - count / total)
        return Score(mean, float(np.sqrt(variance)), count)


def towards_mean(scores: Sequence[Score]) -> list[Score]:
    """Return candidates' estimates drawn towards their common mean, those of few items more.

    The best of many estimates is the luckiest; a mean that weighs each by what its items are worth
    makes those of many and of few comparable (empirical Bayes: Efron & Morris 1975,
    doi:10.1080/01621459.1975.10479864).

    >>> [round(score.mean, 2) for score in towards_mean([Score(0.2, 0.1, 25), Score(0.6, 0.1, 25)])]
    [0.25, 0.55]
    """
    means = np.array([score.mean for score in scores])
    # of one item: all candidates' together, as a few scores may not differ by chance
    variance = float(np.mean([score.stderr**2 * score.items for score in scores]))
    noise = variance / np.array([score.items for score in scores])
    # Var(means) = signal + noise; a mean keeps signal / (signal + noise) of its distance
    signal = max(0.0, float(means.var()) - float(noise.mean()))
    kept = signal / (signal + noise) if signal > 0.0 else 1.0 / (1.0 + noise)
    drawn = means.mean() + kept * (means - means.mean())
    return [score._replace(mean=float(mean)) for score, mean in zip(scores, drawn, strict=True)]
