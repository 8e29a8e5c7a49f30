"""Two candidates on the same items, item by item.

What is hard for one model is mostly hard for the other, so that the difference of their means is
known better than either mean.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from evomerge.archive.reader import ArchiveReader
from evomerge.errors import EvomergeError
from evomerge.scoring.outcome import Score, summary


class Paired(NamedTuple):
    """How one candidate did beside another on the items of one objective.

    Attributes:
        difference: the mean of its item scores minus the other's, signed so that more is better,
            with the standard error of the paired differences.
        better, worse: on how many items it did better, and worse.

    >>> Paired(Score(0.02, 0.0099, 400), better=12, worse=4).p_value
    0.076812744140625
    """

    difference: Score
    better: int
    worse: int

    @property
    def p_value(self) -> float:
        """The chance that a fair coin is as lopsided over the items on which the two differ.

        McNemar's exact test where scores are 0 or 1, the sign test elsewhere; two-sided.
        """
        unequal = self.better + self.worse
        fewer = min(self.better, self.worse)
        # P = 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c)
        tail = sum(math.comb(unequal, i) for i in range(fewer + 1))
        return min(1.0, 2 * tail / 2**unequal)


def paired(
    archive: ArchiveReader,
    candidate: int,
    rival: int,
    split: str = "heldout",
    *,
    rivals: ArchiveReader | None = None,
) -> dict[str, Paired]:
    """Return objective -> how a candidate did beside a rival on the same items.

    Objectives are left out on which either was not scored on all items of the split, and costs.

    Args:
        archive: the candidate's.
        candidate, rival: their numbers.
        split: "search" or "heldout".
        rivals: the rival's archive, if it is of another run.

    Raises:
        EvomergeError: the two runs do not have the same items.

    >>> from evomerge.testing.archives import example_archive
    >>> beside = paired(example_archive(), 3, 1, "search")["accuracy"]
    >>> beside.better, beside.worse, beside.difference.mean
    (4, 0, 0.5)
    """
    others = archive if rivals is None else rivals
    found = {}
    for objective in archive.objectives:
        if objective.cost:
            continue
        name = objective.name
        hashes = archive.item_hashes(name, split)
        if others is not archive and others.item_hashes(name, split) != hashes:
            wrong = f"{others.path}: has other {split} items of '{name}' than {archive.path}"
            raise EvomergeError(f"{wrong}; compare runs of the same items and seed")
        one = archive.item_scores(candidate, name, split)
        other = others.item_scores(rival, name, split)
        if one is None or other is None or not len(one) == len(other) == len(hashes):
            continue
        differences = objective.sign * (one.astype(np.float64) - other)
        better, worse = int((differences > 0).sum()), int((differences < 0).sum())
        found[name] = Paired(summary(differences), better, worse)
    return found


def mean_difference(archive: ArchiveReader, pairs: Mapping[str, Paired]) -> Score | None:
    """Return the weighted mean of the objectives' differences, with its standard error.

    As in `summary.mean_score`, costs do not count, and the objectives' items are taken as
    independent. None if an objective is missing.

    >>> from evomerge.testing.archives import example_archive
    >>> archive = example_archive()
    >>> mean_difference(archive, paired(archive, 3, 1, "search")).mean  # (0.5 - 4) / 2
    -1.75
    """
    counted = [o for o in archive.objectives if not o.cost]
    if not counted or any(o.name not in pairs for o in counted):
        return None
    total = sum(o.weight for o in counted)
    differences = [(o.weight / total, pairs[o.name].difference) for o in counted]
    mean = sum(weight * difference.mean for weight, difference in differences)
    variance = sum((weight * difference.stderr) ** 2 for weight, difference in differences)
    items = sum(difference.items for _, difference in differences)
    return Score(mean, math.sqrt(variance), items)
