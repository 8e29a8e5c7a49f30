"""The campaign's loop between controller, archive and pool.

Every proposal and every outcome is on disk before the controller hears of it, and a
controller is rebuilt by replaying the ledger: this process may be killed at any line, and
what is lost is only the evaluations then in flight.
"""

from collections.abc import Callable

from evomerge.archive.archive import Archive
from evomerge.archive.selection import finalists
from evomerge.campaign.baselines import Baselines
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.confirmation import Confirmation
from evomerge.campaign.evaluation import Evaluation
from evomerge.campaign.observer import Observer
from evomerge.campaign.replay import quantized, replayed
from evomerge.errors import EvomergeError
from evomerge.recipes.recipe import Recipe
from evomerge.search.controllers import Controller, Proposal
from evomerge.search.spaces import BreedingSpace, PointSpace
from evomerge.workers.protocol import Pool

_PARENTS_KEPT = 256  # recipes of the latest parents, which are read once


def never() -> bool:
    """Return False: a campaign that nobody stops.

    >>> never()
    False
    """
    return False


class Runner:
    """Drives one search of a campaign until its budget is spent or it is told to stop.

    >>> from evomerge.testing.campaigns import example_runner
    >>> runner = example_runner()
    >>> runner.run()
    True
    """

    def __init__(
        self,
        campaign: Campaign,
        archive: Archive,
        pool: Pool,
        observer: Observer,
        *,
        rebuild_controller: bool = False,
        stop: Callable[[], bool] = never,
    ):
        """
        Args:
            campaign: checked and opened.
            archive: open for writing, with this campaign in it.
            pool: idle.
            observer: hears of every outcome and every heartbeat.
            rebuild_controller: go on from the told outcomes if the controller proposes otherwise
                than the ledger holds.
            stop: tells whether to take nothing more on; asked again and again.
        """
        self._campaign, self._archive, self._pool = campaign, archive, pool
        self._rebuild = rebuild_controller
        archive.stage = campaign.stage
        self._evaluation = Evaluation(campaign, archive, pool, observer, stop)
        self._recipes: dict[int, tuple[Recipe, str]] = {}  # of the latest parents, and their ids

    @property
    def stop(self) -> bool:
        """Whether it takes nothing more on; what is in flight is waited for."""
        return self._evaluation.stop

    def run(self) -> bool:
        """Baselines, search, finals; return whether the budget was spent (not interrupted)."""
        try:
            return self._run()
        finally:
            self._evaluation.note_seconds()

    def _run(self) -> bool:
        evaluation = self._evaluation
        baselines = Baselines(self._campaign, evaluation)
        if self._campaign.stage:  # whose sources are judged on the first stage's scale
            evaluation.feedback = baselines.feedback_scale()
        baselines.score()
        if self.stop:
            return False
        start = baselines.score_soups()
        if self.stop:
            return False
        feedback = evaluation.feedback = baselines.feedback_scale()
        self._archive.set_values(baselines.worth(feedback))
        controller = evaluation.controller = replayed(
            self._campaign, self._archive, feedback, start=start, rebuild=self._rebuild
        )
        baselines.score_seeds()
        baselines.score_warm_starts()
        if self.stop:
            return False
        if self._campaign.parts is not None:
            evaluation.confirmation = Confirmation(
                self._campaign, self._archive, feedback, controller
            )
        for candidate in self._archive.unfinished(self._campaign.stage):
            if candidate.origin != "recommended":
                evaluation.submit(candidate)
        while not self.stop and (wanted := self._wanted()) is not None:
            wanted -= self._run_race()
            if wanted > 0:
                self._ask(controller, wanted)
            evaluation.wait()
        while self._pool.busy:
            evaluation.wait()
        if not self.stop:
            self._confirm()
        if not self.stop:
            self._score_finals()
        return not self.stop

    def _wanted(self) -> int | None:
        """Return how many candidates to ask for now; None when the budget is spent."""
        budget, evaluation = self._campaign.search.budget, self._evaluation
        idle = self._pool.idle
        proposed = self._archive.proposed_in(self._campaign.stage)
        left = [idle]
        if budget.evaluations is not None:
            left.append(budget.evaluations - proposed)
        if budget.items is not None:
            kept = evaluation.confirmation.reserve if evaluation.confirmation else 0.0
            parts = self._campaign.parts
            each = parts.size if parts else self._campaign.search_items
            left.append(int((budget.items - kept - evaluation.items) // each))
            # copies cost no items, and a space of few points has nothing else after a while
            left.append(budget.items - proposed)
        if min(left[1:], default=1) <= 0 or self._is_too_late():
            return None
        return min(left)

    def _is_too_late(self) -> bool:
        """Tell whether the hours are over, or the patience with a best that stays the same."""
        hours = self._campaign.plan.hours
        if hours is not None and self._evaluation.seconds >= hours * 3600:
            return True
        patience = self._campaign.search.budget.patience
        return patience is not None and self._archive.proposed_since_best() >= patience

    def _run_race(self) -> int:
        """Submit what a race can go on with, or begin one if it is due; return how many jobs."""
        confirmation = self._evaluation.confirmation
        if confirmation is None:
            return 0
        confirmation.begin_if_due(self._archive.proposed_in(self._campaign.stage))
        return self._submit_race(confirmation)

    def _submit_race(self, confirmation: Confirmation) -> int:
        """Submit what a race can go on with, as long as a worker is free; return how many jobs."""
        submitted = 0
        while self._pool.idle and (job := confirmation.next_job()) is not None:
            self._evaluation.submit_race(*job)
            submitted += 1
        return submitted

    def _confirm(self) -> None:
        """Bring a race that is on to its end, and hold the last one."""
        confirmation = self._evaluation.confirmation
        if confirmation is None:
            return
        self._finish_race(confirmation)
        if not self.stop:
            confirmation.begin_last()
            self._finish_race(confirmation)

    def _finish_race(self, confirmation: Confirmation) -> None:
        """Run a race that is on to its end, or to a stop."""
        while (confirmation.is_racing and not self.stop) or self._pool.busy:
            if not self.stop:
                self._submit_race(confirmation)
            self._evaluation.wait()

    def _ask(self, controller: Controller, n: int) -> None:
        """Ask for candidates, record them, and only then submit them."""
        space = self._campaign.space
        proposals = quantized(controller.ask(n), space)
        if not proposals:
            if not self._pool.busy:
                raise EvomergeError("the controller proposed nothing while nothing is running")
            return
        rows, proposals = [], [self._as_it_was(proposal) for proposal in proposals]
        for proposal in proposals:
            if proposal.again is not None:
                recipe, recipe_id = self._parent(proposal.again)
            else:
                recipe = self._recipe(proposal)
                recipe_id = recipe.id(self._campaign.worker.hashes)
            rows.append((recipe_id, recipe))
        in_parts = self._campaign.parts is not None
        for candidate in self._archive.propose(n, proposals, rows, in_parts=in_parts):
            if isinstance(space, BreedingSpace):
                self._remember(candidate.id, candidate.recipe, candidate.recipe_id)
            self._evaluation.submit(candidate)

    def _as_it_was(self, proposal: Proposal) -> Proposal:
        """Return a proposal to score a candidate again with that candidate's genome and parents."""
        if proposal.again is None:
            return proposal
        before = self._archive.candidate(proposal.again)
        genome = proposal.genome if before.genome is None else before.genome
        return proposal._replace(genome=genome, parents=before.parents)

    def _recipe(self, proposal: Proposal) -> Recipe:
        """Return what a proposal means: a point of the space, or a child of its parents."""
        space = self._campaign.space
        if isinstance(space, BreedingSpace):
            parents = [self._parent(number) for number in proposal.parents]
            recipes, ids = zip(*parents, strict=True)
            return space.cross(proposal.genome, recipes, ids)
        assert isinstance(space, PointSpace)
        return space.decode(proposal.genome)

    def _parent(self, number: int) -> tuple[Recipe, str]:
        """Return a parent's recipe and its id."""
        if number not in self._recipes:
            candidate = self._archive.candidate(number)
            self._remember(number, candidate.recipe, candidate.recipe_id)
        return self._recipes[number]

    def _remember(self, number: int, recipe: Recipe, recipe_id: str) -> None:
        if len(self._recipes) >= _PARENTS_KEPT:
            del self._recipes[next(iter(self._recipes))]
        self._recipes[number] = (recipe, recipe_id)

    def _score_finals(self) -> None:
        """Score baselines, the best and the most telling of the front on held-out items.

        Those of this stage: others were at its end, and another stage's worker may have a model
        of another shape.
        """
        feedback = self._evaluation.feedback
        if feedback is None or not any(s.heldout for s in self._campaign.splits.values()):
            return
        done, stage = self._archive.finals_done(), self._campaign.stage
        waiting = []
        for number in finalists(self._archive, feedback.scale, self._campaign.plan.finals, stage):
            candidate = self._archive.candidate(number)
            if number not in done and candidate.stage == stage:
                waiting.append(candidate)
        if waiting:
            self._keep_item_texts()
        self._evaluation.score_all(waiting, self._evaluation.submit_final)

    def _keep_item_texts(self) -> None:
        """Write down what the held-out items ask, so that answers can be read beside them."""
        for objective in self._campaign.scored:
            if not self._archive.item_texts(objective):
                self._archive.add_item_texts(objective, self._campaign.item_texts(objective))
