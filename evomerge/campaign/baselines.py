"""What is scored before a controller is asked: sources, soups, candidates of other runs."""

import logging
from collections.abc import Callable, Mapping

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Candidate
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.evaluation import Evaluation
from evomerge.campaign.feedback import FeedbackScale
from evomerge.errors import EvomergeError
from evomerge.learning.parting import coarsened
from evomerge.recipes import soups
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.search.objectives import Scale
from evomerge.search.spaces import PointSpace, quantize

log = logging.getLogger("evomerge")

# Of the items, on which seeds are scored; far from those of the search, whose numbers begin at 0.
SEED_PART = 2**31

OFF_BOUNDS = 0.05  # of a gene's range: a start on a bound folds half of CMA-ES' steps back


def baseline_means(archive: ArchiveReader, stage: int | None = None) -> dict[str, dict[str, float]]:
    """Return label -> mean search scores of the baselines that were scored, of a stage or of all.

    >>> from evomerge.testing.archives import example_archive
    >>> baseline_means(example_archive())["ja"]["accuracy"]
    0.25
    """
    scored = {str(c.label): archive.means(c.id) for c in archive.baselines(stage)}
    return {label: means for label, means in scored.items() if means}


def start_after_baselines(
    campaign: Campaign,
    means: Mapping[str, Mapping[str, float]],
    means_of: Callable[[str, Recipe], Mapping[str, float] | None],
    learned: Mapping[str, Recipe],
) -> np.ndarray:
    """Cook the soups; return where the search begins, (dimension,).

    Args:
        campaign: whose soups they are.
        means: label -> mean search scores of the baselines that are scored by then.
        means_of: label and recipe of a soup -> its mean search scores; None if it has none.
        learned: label -> recipe of what was learned.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> start_after_baselines(example_campaign(), {}, lambda label, recipe: None, {}).shape
    (6,)
    """
    plan, labels = campaign.plan, campaign.labels
    sources = {k: m for k, m in means.items() if k in labels.values()}
    scale = Scale(campaign.objectives, list(sources.values()))
    scored = [m for m in campaign.models if labels[m] in sources]
    values = {m: scale.value(sources[labels[m]]) for m in scored}
    # a cost is no category at which a model could be the expert
    costs = [objective.cost for objective in campaign.objectives]
    categories = {}
    for model in scored:
        vector = zip(scale.vector(sources[labels[model]]), costs, strict=True)
        categories[model] = [score for score, is_cost in vector if not is_cost]

    def value_of(label: str, recipe: Recipe) -> float | None:
        found = means_of(label, recipe)
        return None if found is None else scale.value(found)

    averaged = campaign.models if campaign.has_average else ()
    dtype = campaign.worker.dtype
    cooked = soups.cook(campaign.soups, averaged, labels, values, categories, dtype, value_of)
    starts = []
    if plan.start_from_soup and campaign.stage == 0:
        for soup, value in cooked:
            starts.append((value, _genome(campaign, soup, is_learned=False)))
    if plan.start_from_learned and campaign.stage == 0:
        for label, recipe in learned.items():
            if label in means:
                genome = _genome(campaign, recipe, is_learned=True)
                starts.append((scale.value(means[label]), genome))
    return max(starts, key=lambda start: start[0])[1] if starts else campaign.space.start


def _genome(campaign: Campaign, merge: Recipe, *, is_learned: bool) -> np.ndarray:
    """Return the genome whose weights are those of a soup, or means of those that were learned."""
    space, first = campaign.space, campaign.space.first
    assert isinstance(space, PointSpace) and isinstance(first, ParametersRecipe)
    assert isinstance(merge, ParametersRecipe)
    if not is_learned:
        return quantize(space.encode(soups.seasoned(first, merge)))
    genome = space.encode(coarsened(first, merge, space.shapes.tensors))
    return quantize(np.clip(genome, OFF_BOUNDS, 1.0 - OFF_BOUNDS))


def learned_recipes(campaign: Campaign, archive: ArchiveReader) -> dict[str, Recipe]:
    """Return label -> recipe of what a search has learned, as it is archived.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign()
    >>> learned_recipes(campaign, example_archive_of(campaign))
    {}
    """
    labels = {section.label for section in campaign.learned}
    return {str(c.label): c.recipe for c in archive.baselines() if c.label in labels}


def add_baselines(campaign: Campaign, archive: Archive) -> None:
    """Write down every source, and the soups that depend on no score, unless they are there.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign(hashed=True)
    >>> archive = example_archive_of(campaign)
    >>> add_baselines(campaign, archive)
    >>> len(archive.baselines())
    4
    """
    known = {candidate.label for candidate in archive.baselines()}
    for label, recipe in campaign.baselines():
        if label not in known:
            archive.add_baseline(recipe.id(campaign.worker.hashes), recipe, label)


class Baselines:
    """Scores the baselines of a campaign; they fix the scale on which candidates are judged.

    >>> from evomerge.testing.campaigns import example_campaign, example_evaluation
    >>> baselines = Baselines(example_campaign(hashed=True), example_evaluation())
    >>> baselines.score()
    >>> sorted(baselines.means())
    ['a', 'b', 'base', 'uniform']
    """

    def __init__(self, campaign: Campaign, evaluation: Evaluation):
        self._campaign, self._evaluation = campaign, evaluation
        self._archive = evaluation.archive

    def score(self) -> None:
        """Score every source, the soups that depend on no score, and what was learned."""
        archive = self._archive
        counts = archive.counts()
        none_scored = bool(counts["failed"]) and not counts["ok"]
        if archive.baselines() and none_scored and not archive.proposed():
            archive.forget_baselines()  # the last start could score none; perhaps this one can
        add_baselines(self._campaign, archive)
        self._score_waiting("baseline")
        if taken := self._evaluation.taken:
            text = "%d baseline(s) were scored by the runs that it begins with, and are taken over"
            log.info(text, taken, extra={"for_user": True})

    def score_soups(self) -> np.ndarray:
        """Score the soups that depend on the sources' scores; return where the search begins."""

        def means_of(label: str, recipe: Recipe) -> Mapping[str, float] | None:
            self._add(label, recipe)
            self._score_waiting("baseline")
            return self.means().get(label)

        learned = learned_recipes(self._campaign, self._archive)
        start = start_after_baselines(self._campaign, self.means(), means_of, learned)
        return self._campaign.space.start if self._evaluation.stop else start

    def score_seeds(self) -> None:
        """Score what the space would have scored before its search: where it may well begin."""
        space, archive, campaign = self._campaign.space, self._archive, self._campaign
        known = archive.candidates("seed", campaign.stage)
        if not known and not archive.proposed_in(campaign.stage) and campaign.begins_with_seeds:
            rows = []
            for label, recipe in space.seeds():
                genome = quantize(space.encode(recipe)) if isinstance(space, PointSpace) else None
                rows.append((label, genome, recipe.id(campaign.worker.hashes), recipe))
            archive.add_seeds(rows, SEED_PART if campaign.parts else None)
        self._score_waiting("seed")

    def score_warm_starts(self) -> None:
        """Score what the campaign begins with; the controller hears of it before its first ask."""
        archive = self._archive
        if self._campaign.warm_starts and not archive.proposed():
            rows = []
            for label, recipe, genome, _ in self._campaign.warm_starts:
                rows.append((label, genome, recipe.id(self._campaign.worker.hashes), recipe))
            archive.add_warm_starts(rows)
        self._score_waiting("warm_start")
        theirs = {start.label: start.checksum for start in self._campaign.warm_starts}
        for candidate in archive.warm_starts():
            outcome, known = archive.outcome(candidate.id), theirs.get(str(candidate.label))
            if known and outcome and outcome["weights_checksum"] not in ("", known):
                log.warning(
                    "%s is not quite itself here: the space expresses it by other weights; where"
                    " that matters, widen its axes to hold 0, as a model more has to weigh nothing",
                    candidate.label,
                )

    def means(self, stage: int | None = None) -> dict[str, dict[str, float]]:
        """Return label -> mean search scores of the baselines that were scored, of all stages."""
        return baseline_means(self._archive, stage)

    def worth(self, feedback: FeedbackScale) -> Mapping[int, tuple[float, float]]:
        """Return each scored baseline's value and violation, by its number."""
        scored = [c for c in self._archive.baselines() if self._archive.means(c.id)]
        return {candidate.id: feedback.worth_of(candidate) for candidate in scored}

    def feedback_scale(self) -> FeedbackScale:
        """Return the scale that the baselines of the first stage fix.

        A later stage's sources leave it as it is, so that values stay comparable.

        Raises:
            EvomergeError: no baseline could be scored, or one that a constraint names could not.
        """
        means = self.means(stage=0)
        if not means:
            first = self._archive.outcome(self._archive.baselines()[0].id)
            reason = first["reason"] if first else "it has no outcome"
            raise EvomergeError(f"no source could be scored: {reason}")
        try:
            return FeedbackScale(self._campaign, self._archive, means)
        except ValueError as error:
            raise EvomergeError(f"{error}; mend the source, or the constraint") from None

    def _add(self, label: str, recipe: Recipe) -> None:
        if label not in {c.label for c in self._archive.baselines()}:
            recipe_id = recipe.id(self._campaign.worker.hashes)
            self._archive.add_baseline(recipe_id, recipe, label)

    def _score_waiting(self, origin: str) -> None:
        waiting: list[Candidate] = self._archive.unfinished(self._campaign.stage)
        chosen = [candidate for candidate in waiting if candidate.origin == origin]
        self._evaluation.score_all(chosen, self._evaluation.submit)
