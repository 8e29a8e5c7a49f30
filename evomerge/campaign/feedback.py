"""What a controller hears of a candidate: the archive's scores in the controller's terms."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Candidate
from evomerge.campaign.campaign import Campaign
from evomerge.scoring.estimates import ItemPredictions
from evomerge.scoring.followers import followed_positions
from evomerge.scoring.outcome import Score
from evomerge.search.controllers import CONTROLLERS, Feedback
from evomerge.search.guards import Guards
from evomerge.search.objectives import Constraints, ItemScale, Scale
from evomerge.search.race import Course, Standing
from evomerge.search.spaces import BreedingSpace

_PREDICT_BY = 64  # candidates that were scored in full, the latest, whose mean predicts items
_PARTS_KEPT = 16  # parts in flight at once, and some more


class FeedbackScale:
    """Puts scores on the baselines' scale, which is known once these are scored.

    Attributes:
        scale: of the objectives.
        offset: proposals before the controller was last built anew, which it never made.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign()
    >>> archive = example_archive_of(campaign)  # its baselines are scored
    >>> means = {c.label: archive.means(c.id) for c in archive.baselines()}
    >>> FeedbackScale(campaign, archive, means).worth_of(archive.baselines()[3])[1]
    0.0
    """

    def __init__(
        self, campaign: Campaign, archive: ArchiveReader, means: Mapping[str, Mapping[str, float]]
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
        self._campaign = campaign
        self._predicted: dict[int, dict[str, ItemPredictions]] = {}  # of the latest parts
        self.scale = Scale(campaign.objectives, list(means.values()))
        self._constraints = Constraints(self.scale, means, list(campaign.labels.values()))
        self.guards: Guards | None = None
        if campaign.guards:
            rows = {str(c.label): self._item_scores(c) for c in archive.baselines(stage=0)}
            self.guards = Guards(campaign.guards, rows, list(campaign.labels.values()))
        self.offset = 0
        self._items: ItemScale | None = None
        if CONTROLLERS.get(campaign.search.controller.kind).reads_items:
            scored = [self._item_scores(c) for c in archive.baselines(stage=0)]
            self._items = ItemScale(campaign.objectives, [s for s in scored if s])

    def worth(
        self,
        scores: Mapping[str, Score],
        items: Mapping[str, np.ndarray] | None = None,
        which: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[float, float]:
        """Return a candidate's value, and its violation of the constraints and the guards.

        Args:
            scores: of each objective and guard.
            items: of each, where they are known.
            which: positions of these among the search items; None: all of them.
        """
        means = {name: score.mean for name, score in scores.items()}
        violation = self._constraints.violation(means)
        if self.guards is not None:
            violation += self.guards.violation(scores, items, which)
        return self.scale.value(means), violation

    def worth_of(self, candidate: Candidate) -> tuple[float, float]:
        """Return the value and the violation of an archived candidate that was scored."""
        scores = self._archive.scores(candidate.id, "search")
        return self.worth(scores, *self._guarded_items(candidate))

    def _guarded_items(
        self, candidate: Candidate
    ) -> tuple[Mapping[str, np.ndarray] | None, Mapping[str, np.ndarray] | None]:
        """Return a candidate's scores of the guards' items, and which these are."""
        if self.guards is None:
            return None, None
        items, which = {}, {}
        for guard in self.guards.guards:
            found = self._archive.item_scores(candidate.id, guard.name, "search")
            if found is None:
                continue
            at = self._archive.which_items(candidate.id, guard.name)
            items[guard.name], which[guard.name] = (
                found,
                np.arange(len(found)) if at is None else at,
            )
        return items, which

    def standing(
        self, scores: Mapping[str, np.ndarray], estimates: Mapping[str, Score]
    ) -> Standing:
        """Return how a candidate of a race is doing.

        Args:
            scores: objective -> (search items,) float32, NaN where not scored yet.
            estimates: of its means.
        """
        means = {name: score.mean for name, score in estimates.items()}
        which = {name: np.flatnonzero(~np.isnan(row)) for name, row in scores.items()}
        items = {name: scores[name][at] for name, at in which.items() if len(at)}
        value, violation = self.worth(estimates, items, which)
        return Standing(violation, value, self.scale.vector(means), scores)

    def course(self, race: int) -> Course:
        """Return the items in the order in which the stage's n-th race has them."""
        items = {name: len(split.search) for name, split in self._campaign.splits.items()}
        names = [objective.name for objective in self.scale.objectives]
        ranges = dict(zip(names, self.scale.range, strict=True))
        seed = [self._campaign.plan.seed, self._campaign.stage, race]
        followed = followed_positions(self._campaign.fitness, self._campaign.splits)
        return Course(self.scale.objectives, items, self._item_spans, ranges, seed, followed)

    @cached_property
    def _item_spans(self) -> dict[str, float]:
        """Return how far apart two scores of an item can be: as far as the baselines' are."""
        spans = {}
        for name in self._campaign.splits:
            found = [self._item_scores(c).get(name) for c in self._archive.baselines(stage=0)]
            every = np.concatenate([scores for scores in found if scores is not None])
            low, high = float(every.min()), float(every.max())
            within = low >= 0.0 and high <= 1.0  # then what is between: a share, or right or wrong
            spans[name] = 1.0 if within else (high - low) or 1.0
        return spans

    def predictions(self, part: int) -> dict[str, ItemPredictions]:
        """Return objective -> what was predicted when a part's first candidate was asked for."""
        if part not in self._predicted:
            known = self._archive.scored_in_full_before(part)[-_PREDICT_BY:]
            rows = [self._item_scores(self._archive.candidate(number)) for number in known]
            found = {}
            for name, split in self._campaign.splits.items():
                scored = [row[name] for row in rows if name in row]
                found[name] = ItemPredictions(scored, len(split.search))
            if len(self._predicted) >= _PARTS_KEPT:
                del self._predicted[next(iter(self._predicted))]
            self._predicted[part] = found
        return self._predicted[part]

    def feedback(
        self,
        candidate: Candidate,
        scores: Mapping[str, Score] | None,
        items: Mapping[str, np.ndarray] | None = None,
    ) -> Feedback:
        """Return what a controller hears.

        Args:
            candidate: whose outcome it is.
            scores: of each objective; None for a failure.
            items: objective -> float32 scores of its items; read from the archive if not given.
        """
        ordinal = candidate.ordinal
        if ordinal is not None:
            ordinal = None if ordinal < self.offset else ordinal - self.offset
        if scores is None:
            return Feedback(ordinal, candidate.genome, None, None, candidate=candidate.id)
        means = {name: score.mean for name, score in scores.items()}
        value, violation = self.worth(scores, *self._guarded_items(candidate))
        vector = None
        if self._items is not None:
            vector = self._items.vector(self._item_scores(candidate) if items is None else items)
        breeds = isinstance(self._space, BreedingSpace) and self._space.takes(
            candidate.origin, candidate.label
        )
        errors = (0.0,) * len(self.scale.objectives)
        if candidate.part is not None:
            errors = tuple(
                scores[objective.name].stderr / span
                for objective, span in zip(self.scale.objectives, self.scale.range, strict=True)
            )
        return Feedback(
            ordinal,
            candidate.genome,
            value,
            self.scale.vector(means),
            violation,
            candidate.id,
            vector,
            breeds,
            errors,
        )

    def _item_scores(self, candidate: Candidate) -> dict[str, np.ndarray]:
        scores = {}
        for name in self._campaign.splits:
            items = self._archive.item_scores(candidate.id, name, "search")
            if items is not None:
                scores[name] = items
        return scores
