"""What must not be forgotten: tasks on which a merge may not fall below a source.

A guard has few items, so that a model which forgot nothing may well score a little lower on them. A
fall counts as one from where it is more than the noise: the difference to the source on the same
items, item by item, plus one standard error of its mean, is below minus the margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evomerge.scoring.outcome import Score, summary


@dataclass(frozen=True)
class Guard:
    """A task that is no objective, on which a source's score has to be kept.

    Attributes:
        name: of the task's entry.
        direction: what is better.
        against: the label of the source; "" for the one that is best at it.
        margin: by how much a mean may fall, in the score's own unit.

    >>> Guard("general").sign
    1.0
    """

    name: str
    direction: Literal["maximize", "minimize"] = "maximize"
    against: str = ""
    margin: float = 0.02

    @property
    def sign(self) -> float:
        return 1.0 if self.direction == "maximize" else -1.0


class Guards:
    """The guards of a campaign, with what is to be kept.

    >>> rows = {"base": {"general": np.array([1.0, 1.0, 0.0, 1.0])}}
    >>> guards = Guards([Guard("general", margin=0.1)], rows, ["base"])
    >>> guards.violation({"general": Score(0.0, 0.0, 4)}, {"general": np.zeros(4)})
    0.4
    >>> guards.violation({"general": Score(0.75, 0.25, 4)}, {"general": np.array([1, 0, 1, 1.0])})
    0.0
    """

    def __init__(
        self,
        guards: Sequence[Guard],
        rows: Mapping[str, Mapping[str, np.ndarray]],
        sources: Sequence[str],
    ):
        """
        Args:
            guards: of the campaign.
            rows: label -> guard -> (items,) scores, of each baseline that was scored.
            sources: the labels of those that are sources.

        Raises:
            ValueError: a guard's source could not be scored.
        """
        self.guards = tuple(guards)
        self.kept: dict[str, str] = {}  # guard -> the label of what is kept
        self._reference: dict[str, np.ndarray] = {}
        for guard in guards:
            there = {s: rows[s][guard.name] for s in sources if guard.name in rows.get(s, {})}
            label = guard.against
            if not label and there:
                label = max(there, key=lambda s: guard.sign * float(np.mean(there[s])))
            if label not in there:
                raise ValueError(f"'{label}', which {guard.name} guards, could not be scored")
            self.kept[guard.name] = label
            self._reference[guard.name] = np.asarray(there[label], np.float64)

    def violation(
        self,
        scores: Mapping[str, Score],
        items: Mapping[str, np.ndarray] | None = None,
        which: Mapping[str, np.ndarray] | None = None,
    ) -> float:
        """Return the sum of what a candidate falls beyond noise and margins.

        Args:
            scores: guard -> the mean or its estimate, with its standard error.
            items: guard -> scores of its items; None where only the means are known.
            which: guard -> (n,) positions of these among the search items; None: all of them.
        """
        fallen = 0.0
        for guard in self.guards:
            reference = self._reference[guard.name]
            if items is not None and guard.name in items:
                at = slice(None) if which is None else which[guard.name]
                apart = guard.sign * (np.asarray(items[guard.name], np.float64) - reference[at])
                difference = summary(apart)
                mean, error = difference.mean, difference.stderr
            else:
                score = scores[guard.name]
                mean = guard.sign * (score.mean - float(reference.mean()))
                error = score.stderr
            fallen += max(0.0, -(mean + error) - guard.margin)
        return round(fallen, 9)  # a difference of rounding is none
