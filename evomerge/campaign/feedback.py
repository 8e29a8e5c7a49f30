"""What a controller hears of a candidate: the archive's scores in the controller's terms."""

from collections.abc import Mapping

import numpy as np

from evomerge.archive.archive import Archive, Candidate
from evomerge.campaign.campaign import Campaign
from evomerge.search.controllers import CONTROLLERS, Told
from evomerge.search.objectives import Constraints, ItemScale, Scale


class Teller:
    """Puts scores on the baselines' scale, which is known once these are scored."""

    def __init__(self, campaign: Campaign, archive: Archive, means: Mapping[str, Mapping]):
        """
        Args:
            campaign: whose controller hears.
            archive: with the baselines' outcomes.
            means: the mean scores of the baselines that were scored, by label.

        Raises:
            ValueError: a constraint hangs on a baseline that could not be scored.
        """
        self._archive, self._space = archive, campaign.space
        self.scale = Scale(campaign.objectives, list(means.values()))
        self._constraints = Constraints(self.scale, means, list(campaign.labels.values()))
        self.offset = 0  # proposals before the latest adoption
        self._items = None
        if CONTROLLERS.get(campaign.plan["controller"]["kind"]).reads_items:
            scored = [self._scores(c) for c in archive.baselines(first=True)]
            self._items = ItemScale(campaign.objectives, [s for s in scored if s])

    def worth(self, means: Mapping[str, float]) -> tuple[float, float]:
        """Return a candidate's value and its violation of the constraints."""
        return self.scale.value(means), self._constraints.violation(means)

    def told(self, candidate: Candidate, means: Mapping[str, float] | None) -> Told:
        """Return what a controller hears; `means` are None for a failure."""
        ordinal = candidate.ordinal
        if ordinal is not None:
            ordinal = None if ordinal < self.offset else ordinal - self.offset
        if means is None:
            return Told(ordinal, candidate.genome, None, None, candidate=candidate.id)
        value, violation = self.worth(means)
        return Told(
            ordinal,
            candidate.genome,
            value,
            self.scale.vector(means),
            violation,
            candidate.id,
            None if self._items is None else self._items.vector(self._scores(candidate)),
            self._space.breeds and self._space.takes(candidate),
        )

    def _scores(self, candidate: Candidate) -> dict[str, np.ndarray]:
        names = [o.name for o in self.scale.objectives]
        found = {n: self._archive.item_scores(candidate.id, n, "search") for n in names}
        return {name: scores for name, scores in found.items() if scores is not None}
