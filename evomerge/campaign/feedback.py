"""What a controller hears of a candidate: the archive's scores in the controller's terms."""

from collections.abc import Mapping

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.archive.records import Candidate
from evomerge.campaign.campaign import Campaign
from evomerge.search.controllers import CONTROLLERS, Feedback
from evomerge.search.objectives import Constraints, ItemScale, Scale
from evomerge.search.spaces import BreedingSpace


class FeedbackScale:
    """Puts scores on the baselines' scale, which is known once these are scored.

    Attributes:
        scale: of the objectives.
        offset: proposals before the controller was last built anew, which it never made.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign()
    >>> archive = example_archive_of(campaign)  # its baselines are scored
    >>> means = {c.label: archive.means(c.id) for c in archive.baselines()}
    >>> FeedbackScale(campaign, archive, means).worth(means["uniform"])[1]
    0.0
    """

    def __init__(
        self, campaign: Campaign, archive: Archive, means: Mapping[str, Mapping[str, float]]
    ):
        """
        Args:
            campaign: whose controller hears.
            archive: with the baselines' outcomes.
            means: the mean scores of the baselines that were scored, by label.

        Raises:
            ValueError: a constraint depends on a baseline that could not be scored.
        """
        self._archive, self._space = archive, campaign.space
        self.scale = Scale(campaign.objectives, list(means.values()))
        self._constraints = Constraints(self.scale, means, list(campaign.labels.values()))
        self.offset = 0
        self._items: ItemScale | None = None
        if CONTROLLERS.get(campaign.search.controller.kind).reads_items:
            scored = [self._item_scores(c) for c in archive.baselines(stage=0)]
            self._items = ItemScale(campaign.objectives, [s for s in scored if s])

    def worth(self, means: Mapping[str, float]) -> tuple[float, float]:
        """Return a candidate's value and its violation of the constraints."""
        return self.scale.value(means), self._constraints.violation(means)

    def feedback(self, candidate: Candidate, means: Mapping[str, float] | None) -> Feedback:
        """Return what a controller hears; `means` are None for a failure."""
        ordinal = candidate.ordinal
        if ordinal is not None:
            ordinal = None if ordinal < self.offset else ordinal - self.offset
        if means is None:
            return Feedback(ordinal, candidate.genome, None, None, candidate=candidate.id)
        value, violation = self.worth(means)
        items = None
        if self._items is not None:
            items = self._items.vector(self._item_scores(candidate))
        breeds = isinstance(self._space, BreedingSpace) and self._space.takes(
            candidate.origin, candidate.label
        )
        vector = self.scale.vector(means)
        return Feedback(
            ordinal, candidate.genome, value, vector, violation, candidate.id, items, breeds
        )

    def _item_scores(self, candidate: Candidate) -> dict[str, np.ndarray]:
        scores = {}
        for objective in self.scale.objectives:
            items = self._archive.item_scores(candidate.id, objective.name, "search")
            if items is not None:
                scores[objective.name] = items
        return scores
