"""The campaign's loop between controller, archive and pool.

Every proposal and every outcome is on disk before the controller hears of it, and a
controller is rebuilt by replaying the ledger: this process may be killed at any line, and
what is lost is only the evaluations then in flight.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from evomerge.archive.archive import Archive, Candidate
from evomerge.archive.selection import finalists
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.feedback import Teller
from evomerge.campaign.resume import quantized, replayed
from evomerge.errors import EvomergeError
from evomerge.merging.lineage_weights import Pedigree
from evomerge.recipes import soups
from evomerge.recipes.parameters import Recipe
from evomerge.recipes.parse import from_json
from evomerge.scoring.outcome import Outcome, summary
from evomerge.search.controllers import Proposal
from evomerge.search.objectives import Scale
from evomerge.search.spaces import quantize
from evomerge.workers.protocol import Finished, Job, Lost, Pool

log = logging.getLogger("evomerge")

_DEATHS_ALLOWED = 1  # a candidate that kills its worker once more than this has failed

_LOSSES_ALLOWED = 9  # nodes may die by themselves, but one that outlives none would go on for ever

_SAME_FAILURES = 20  # in a row, after which the campaign stops

_PARENTS_KEPT = 256  # recipes, read once

_HEARTBEAT = 1.0  # seconds between looks at the clock and at a request to stop


class Runner:
    """Drives one campaign until its budget is spent or `stop` is set."""

    def __init__(
        self,
        campaign: Campaign,
        archive: Archive,
        pool: Pool,
        *,
        adopt: bool = False,
        on_progress: Callable[[Archive], None] = lambda archive: None,
    ):
        """
        Args:
            campaign: checked and opened.
            archive: open for writing, with this campaign in it.
            pool: idle.
            adopt: go on from the told outcomes if the controller proposes otherwise than
                the ledger holds.
            on_progress: called after every outcome and every heartbeat.
        """
        self.campaign, self.archive, self.pool = campaign, archive, pool
        self.stop = False
        self._adopt, self._on_progress = adopt, on_progress
        self._last_failure = ("", 0)  # reason, how often in a row
        self._recipes: dict[int, tuple[Any, str]] = {}  # of the latest parents, and their ids
        self._pedigree = Pedigree(campaign.space.sources.weights, archive.recipe)
        self._twins: dict[str, list[Candidate]] = {}  # recipe in flight -> the same, waiting
        self._teller: Teller | None = None
        archive.stage = campaign.stage
        self._start = archive.start(campaign.machine())
        self._began, self._before = time.monotonic(), archive.seconds

    def run(self) -> bool:
        """Baselines, search, finals; return whether the budget was spent (not interrupted)."""
        if self.campaign.stage:
            self._teller = self._make_teller()
        self._score_baselines()
        if self.stop:
            return False
        self._genome = self._score_soups()
        if self.stop:
            return False
        self._teller = self._make_teller()
        worth = {c.id: self._teller.worth(m) for c, m in self._baselines_scored()}
        self.archive.set_values(worth)
        self._controller = replayed(
            self.campaign, self.archive, self._teller, start=self._genome, adopt=self._adopt
        )
        self._score_adopted()
        if self.stop:
            return False
        for candidate in self.archive.unfinished(self.campaign.stage):
            self._submit(candidate)
        while not self.stop and (wanted := self._wanted()) is not None:
            if wanted:
                self._ask(wanted)
            self._wait()
        while self.pool.busy:
            self._wait()
        if not self.stop:
            self._score_finals()
        return not self.stop

    # --- baselines ---------------------------------------------------------------------

    def _score_baselines(self) -> None:
        """Score every source and the uniform average, before the controller is asked."""
        there = self.archive.baselines()
        counts = self.archive.counts()
        if there and counts["failed"] and not counts["ok"] and not self.archive.proposed():
            self.archive.forget_baselines()  # the last start could score none; perhaps this one
        for label, recipe in self.campaign.baselines():
            self._add_baseline(label, recipe)
        self._score_all(self._waiting("baseline"), self._submit)

    def _score_soups(self) -> np.ndarray:
        """Score the soups that hang on the sources' scores; return where the search begins."""
        campaign, start = self.campaign, self.campaign.space.start
        labels, plan = campaign.labels, campaign.plan
        means = {c.label: m for c, m in self._baselines_scored() if c.label in labels.values()}
        scale = Scale(campaign.objectives, list(means.values()))
        values = {m: scale.value(means[labels[m]]) for m in campaign.models if labels[m] in means}

        def value_of(label: str, recipe: Recipe) -> float | None:
            self._add_baseline(label, recipe)
            self._score_all(self._waiting("baseline"), self._submit)
            found = [m for c, m in self._baselines_scored() if c.label == label]
            return scale.value(found[0]) if found else None

        cooked = soups.cook(
            plan["soups"],
            campaign.models if campaign.even else (),
            labels,
            values,
            campaign.worker.dtype,
            value_of,
        )
        if not plan["start_from_soup"] or not cooked or self.stop:
            return start
        soup = max(cooked, key=lambda found: found[1])[0]
        return quantize(campaign.space.encode(soups.seasoned(campaign.space.decode(start), soup)))

    def _add_baseline(self, label: str, recipe: Recipe) -> None:
        if label not in {c.label for c in self.archive.baselines()}:
            recipe_id = recipe.id(self.campaign.worker.hashes)
            self.archive.add_baseline(recipe_id, recipe.to_json(), label)

    def _score_adopted(self) -> None:
        """Score what the campaign begins with; the controller hears of it before its first ask."""
        if self.campaign.adopted and not self.archive.proposed():
            rows = []
            for label, genome in self.campaign.adopted:
                recipe = self.campaign.space.decode(genome)
                hashes = self.campaign.worker.hashes
                rows.append((label, genome, recipe.id(hashes), recipe.to_json()))
            self.archive.add_adopted(rows)
        self._score_all(self._waiting("adopted"), self._submit)

    def _waiting(self, origin: str) -> list[Candidate]:
        return [c for c in self.archive.unfinished(self.campaign.stage) if c.origin == origin]

    def _score_all(self, waiting: list[Candidate], submit: Callable[[Candidate], None]) -> None:
        """Submit candidates as workers are free; return when all are done, or at a stop."""
        while (waiting and not self.stop) or self.pool.busy:
            while waiting and self.pool.idle and not self.stop:
                submit(waiting.pop(0))
            self._wait()

    def _baselines_scored(self, first: bool = False) -> list[tuple[Candidate, dict[str, float]]]:
        found = []
        for candidate in self.archive.baselines(first):
            if means := self.archive.means(candidate.id):
                found.append((candidate, means))
        return found

    def _make_teller(self) -> Teller:
        # A later stage's sources leave the scale as it is, so that values stay comparable.
        means = {c.label: m for c, m in self._baselines_scored(first=True)}
        if not means:
            first = self.archive.outcome(self.archive.baselines()[0].id)
            raise EvomergeError(f"no source could be scored: {first['reason']}")
        try:
            return Teller(self.campaign, self.archive, means)
        except ValueError as error:
            raise EvomergeError(f"{error}; mend the source, or the constraint") from None

    # --- search ------------------------------------------------------------------------

    def _wanted(self) -> int | None:
        """Return how many candidates to ask for now; None when the budget is spent."""
        proposed = self.archive.proposed_in(self.campaign.stage)
        left = self.campaign.plan["budget"]["evaluations"] - proposed
        hours = self.campaign.plan["budget"]["hours"]
        if left <= 0 or (hours is not None and self._seconds() >= hours * 3600):
            return None
        return min(left, self.pool.idle)

    def _ask(self, n: int) -> None:
        proposals = quantized(self._controller.ask(n), self.campaign.space)
        if not proposals:
            if not self.pool.busy:
                raise EvomergeError("the controller proposed nothing while nothing is running")
            return
        recipes = [self._recipe(proposal) for proposal in proposals]
        recipe_ids = [r.id(self.campaign.worker.hashes) for r in recipes]
        rows = [(i, r.to_json()) for i, r in zip(recipe_ids, recipes, strict=True)]
        ids = self.archive.propose(n, proposals, rows)
        if self.campaign.space.breeds:
            for candidate, known in zip(ids, zip(recipes, recipe_ids, strict=True), strict=True):
                self._know(candidate, *known)
        for candidate in self.archive.candidates("id >= ?", (ids[0],)):
            self._submit(candidate)

    def _recipe(self, proposal: Proposal) -> Recipe:
        """Return what a proposal means: a point of the space, or a child of its parents."""
        space = self.campaign.space
        if not space.breeds:
            return space.decode(proposal.genome)
        recipes, ids = zip(*map(self._known, proposal.parents), strict=True)
        return space.cross(proposal.genome, recipes, ids)

    def _known(self, parent: int) -> tuple[Any, str]:
        """Return a parent's recipe and its id."""
        if parent not in self._recipes:
            (found,) = self.archive.candidates("id = ?", (parent,))
            self._know(parent, from_json(found.recipe, f"candidate {parent}"), found.recipe_id)
        return self._recipes[parent]

    def _know(self, candidate: int, recipe: Any, recipe_id: str) -> None:
        if len(self._recipes) >= _PARENTS_KEPT:
            del self._recipes[next(iter(self._recipes))]
        self._recipes[candidate] = (recipe, recipe_id)

    def _job(self, candidate: Candidate, split: str) -> Job:
        weights = None
        if candidate.recipe["kind"] == "explicit":
            known = self._recipes.get(candidate.id)
            recipe = known[0] if known else from_json(candidate.recipe, f"candidate {candidate.id}")
            weights = self._pedigree.weights(candidate.recipe_id, recipe)
        return Job(candidate.id, candidate.recipe, split, weights)

    def _submit(self, candidate: Candidate) -> None:
        """Score a candidate, unless the same recipe was scored or is in flight."""
        earlier = self.archive.earlier(candidate.recipe_id)
        if earlier is not None:
            self._record_copy(candidate, earlier)
        elif candidate.recipe_id in self._twins:
            self._twins[candidate.recipe_id].append(candidate)
        else:
            self._twins[candidate.recipe_id] = []
            self.pool.submit(self._job(candidate, "search"))

    def _wait(self) -> None:
        """Take the next event of the pool, if there is one within a heartbeat."""
        event = self.pool.next_finished(timeout=_HEARTBEAT)
        if isinstance(event, Lost) and self.stop:
            log.warning(
                "candidate %d: left for the next start: %s", event.job.candidate, event.reason
            )
        elif isinstance(event, Lost):
            log.warning("candidate %d: its worker was lost: %s", event.job.candidate, event.reason)
            deaths, losses = self.archive.record_retry(
                event.job.candidate, event.reason, event.blamed
            )
            if deaths <= _DEATHS_ALLOWED and losses <= _LOSSES_ALLOWED:
                self.pool.submit(event.job)
            else:
                verb, times = ("killed", deaths) if deaths > _DEATHS_ALLOWED else ("lost", losses)
                reason = f"{verb} its worker {times} times: {event.reason}"
                event = Finished(event.job, Outcome("failed", reason))
        if isinstance(event, Finished):
            if event.outcome.status != "ok":
                log.warning("candidate %d failed: %s", event.job.candidate, event.outcome.reason)
            self._record(event.job, event.outcome)
            self._watch_failures(event.outcome)
        self.archive.set_seconds(self._start, time.monotonic() - self._began)
        self._on_progress(self.archive)

    def _watch_failures(self, outcome: Outcome) -> None:
        """Stop when one reason fails candidate after candidate: that is no candidate's fault."""
        reason = outcome.reason
        if reason.startswith("OutOfMemoryError"):  # tells how much is free, each time another
            reason = "OutOfMemoryError"
        same = outcome.status == "failed" and reason == self._last_failure[0]
        self._last_failure = (reason, self._last_failure[1] + 1 if same else 1)
        if outcome.status == "failed" and self._last_failure[1] >= _SAME_FAILURES:
            raise EvomergeError(
                f"{_SAME_FAILURES} candidates in a row failed with: {outcome.reason}; mend that and"
                " run the campaign again, which goes on from here"
            )

    def _record(self, job: Job, outcome: Outcome) -> None:
        if job.split == "heldout":
            self.archive.record_final(job.candidate, outcome)
            return
        (candidate,) = self.archive.candidates("id = ?", (job.candidate,))
        searching = candidate.origin != "baseline"
        means = {o: summary(s).mean for o, s in outcome.scores.items()} or None
        worth = self._teller.worth(means) if self._teller and means else (None, 0.0)
        self.archive.record(job.candidate, outcome, *worth)  # disk first,
        if searching:
            self._controller.tell(self._teller.told(candidate, means))  # then memory
        for twin in self._twins.pop(candidate.recipe_id, []):
            self._record_copy(twin, candidate.id)

    def _record_copy(self, candidate: Candidate, earlier: int) -> None:
        self.archive.record_copy(candidate.id, earlier)
        if candidate.origin != "baseline":
            means = self.archive.means(candidate.id) or None
            self._controller.tell(self._teller.told(candidate, means))

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    # --- finals ------------------------------------------------------------------------

    def _score_finals(self) -> None:
        """Score baselines, the best and the most telling of the front on held-out items.

        Those of this stage: others were at its end, and another stage's worker may have a model
        of another shape.
        """
        if not any(split.heldout for split in self.campaign.splits.values()):
            return
        done = self.archive.finals_done()
        most = self.campaign.plan["finals"]
        mine, stage = "id = ? AND stage = ?", self.campaign.stage
        chosen = finalists(self.archive, self._teller.scale, most, stage)
        left = [i for i in chosen if i not in done]
        waiting = [c for i in left for c in self.archive.candidates(mine, (i, stage))]
        self._score_all(waiting, lambda c: self.pool.submit(self._job(c, "heldout")))
