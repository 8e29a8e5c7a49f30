"""Candidates through the pool and into the archive: what was proposed, scored, lost or failed."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.archive.records import Candidate, PartScores
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.confirmation import Confirmation, Positions
from evomerge.campaign.earlier_runs import EarlierRuns
from evomerge.campaign.feedback import FeedbackScale
from evomerge.campaign.observer import Observer
from evomerge.errors import EvomergeError
from evomerge.merging.lineage_weights import Pedigree
from evomerge.recipes.lineage import ExplicitRecipe
from evomerge.scoring.followers import with_followers
from evomerge.scoring.outcome import Outcome, Score
from evomerge.search.controllers import Controller
from evomerge.workers.protocol import Finished, Job, Lost, Pool, Side

log = logging.getLogger("evomerge")

_DEATHS_ALLOWED = 1  # a candidate that kills its worker once more than this has failed
# Nodes may die by themselves, but a candidate that none outlives would go on for ever.
_LOSSES_ALLOWED = 9
_SAME_FAILURES = 20  # in a row, after which the campaign stops: that is no candidate's fault
_HEARTBEAT = 1.0  # seconds between looks at a request to stop, and between notes of the time


class Evaluation:
    """Scores candidates of one start of a campaign, and records what becomes of them.

    An outcome is on disk before the controller hears of it. The same recipe is scored once.

    Attributes:
        feedback: puts scores on the baselines' scale, once these are scored.
        controller: hears of outcomes, once it is there.
        confirmation: hears of the outcomes of races, where candidates are scored in parts.
        items: search items of this stage that were scored, or are to be.
        taken: candidates that were not scored, as another run had done it.

    >>> from evomerge.testing.campaigns import example_evaluation
    >>> evaluation = example_evaluation()
    >>> evaluation.score_all(evaluation.archive.unfinished(), evaluation.submit)
    >>> evaluation.archive.counts()["running"]
    0
    """

    def __init__(
        self,
        campaign: Campaign,
        archive: Archive,
        pool: Pool,
        observer: Observer,
        stop: Callable[[], bool],
    ):
        """
        Args:
            campaign: whose candidates these are.
            archive: open for writing, with this campaign in it.
            pool: idle.
            observer: hears of every outcome and every heartbeat.
            stop: tells whether to take nothing more on.
        """
        self.archive, self.pool = archive, pool
        self._asked, self._is_stopped = stop, False
        self.feedback: FeedbackScale | None = None
        self.controller: Controller | None = None
        self.confirmation: Confirmation | None = None
        self.parts = campaign.parts
        self._splits, self._fitness = campaign.splits, campaign.fitness
        self._scored = campaign.scored
        self._runs, self.taken = EarlierRuns(campaign), 0
        self.items = archive.items_scored(campaign.stage)
        self._observer = observer
        # by number, with the search items that it is scored on, if not all
        self._flying: dict[int, tuple[Candidate, Positions | None]] = {}
        # recipe in flight, and the part of the items -> the same, waiting
        self._twins: dict[tuple[str, int | None], list[Candidate]] = {}
        self._last_failure = ("", 0)  # reason, how often in a row
        shapes = campaign.space.shapes
        self._pedigree = Pedigree(shapes.weights, archive.recipe) if shapes.weights else None
        self._start = archive.start(campaign.machine())
        self._began, self._before = time.monotonic(), archive.seconds
        self._noted = self._began

    @property
    def stop(self) -> bool:
        """Whether it takes nothing more on; what is in flight is waited for."""
        self._is_stopped = self._is_stopped or self._asked()
        return self._is_stopped

    @property
    def seconds(self) -> float:
        """Wall time of all starts together."""
        return self._before + time.monotonic() - self._began

    def note_seconds(self) -> None:
        """Write down how long this start has run."""
        self._noted = time.monotonic()
        self.archive.set_seconds(self._start, self._noted - self._began)

    def score_all(self, waiting: Sequence[Candidate], submit: Callable[[Candidate], None]) -> None:
        """Submit candidates as workers are free; return when all are done, or at a stop."""
        left = list(waiting)
        while (left and not self.stop) or self.pool.busy:
            while left and self.pool.idle and not self.stop:
                submit(left.pop(0))
            self.wait()

    def submit(self, candidate: Candidate) -> None:
        """Score a candidate on search items, unless the same recipe was scored or is in flight.

        What a run that the campaign begins with scored in full, on the same items, is its too.
        """
        model = (candidate.recipe_id, candidate.part)
        earlier = self.archive.scored_before(*model)
        if earlier is not None:
            self._record_copy(candidate, earlier)
        elif model in self._twins:
            self._twins[model].append(candidate)
        elif candidate.part is None and (taken := self._runs.outcome_of(candidate.recipe_id)):
            log.info("candidate %d: %s", candidate.id, taken.reason)
            self.taken += 1
            self._keep(candidate, taken, 0)
        else:
            self._twins[model] = []
            which = None
            if self.parts is not None and candidate.part is not None:
                which = self.parts.of(candidate.part)
            self._send(candidate, "search", which)

    def submit_race(self, candidate: Candidate, which: Positions) -> None:
        """Score a candidate of a race on the next of the search items."""
        self._send(candidate, "search", which)

    def submit_final(self, candidate: Candidate) -> None:
        """Score a candidate on held-out items, unless a run that it begins with has done it."""
        if taken := self._runs.outcome_of(candidate.recipe_id, "heldout"):
            self.archive.record_final(candidate.id, taken)
        else:
            self._send(candidate, "heldout")

    def _send(self, candidate: Candidate, side: Side, which: Positions | None = None) -> None:
        weights = None
        if isinstance(candidate.recipe, ExplicitRecipe):
            # an archived child tells its last birth alone; its weights are grown here
            if self._pedigree is None:
                raise RuntimeError("the sources' weights are read once their hashes are known")
            weights = self._pedigree.weights(candidate.recipe_id, candidate.recipe)
        ordinals = None
        if which is not None:
            which = with_followers(which, self._fitness, self._splits)
            ordinals = {}
            for name, positions in which.items():
                search = self._splits[name].search
                ordinals[name] = tuple(search[position] for position in positions)
        self._flying[candidate.id] = (candidate, which)
        if side == "search":
            self.items += self._count(which)
        self.pool.submit(Job(candidate.id, candidate.recipe, side, weights, ordinals))

    def _count(self, which: Positions | None) -> int:
        """Return how many search items positions are, those of followers left out; None: all."""
        if which is None:
            return sum(len(self._splits[name].search) for name in self._scored)
        return sum(len(which[name]) for name in self._scored if name in which)

    def wait(self) -> None:
        """Take the next event of the pool, if there is one within a heartbeat."""
        self._observer.update(self.archive, self.pool.workers)  # the inline pool works within
        event = self.pool.next_finished(timeout=_HEARTBEAT)
        if isinstance(event, Lost):
            event = self._after_loss(event)
        if isinstance(event, Finished):
            outcome = event.outcome
            if outcome.status != "ok":
                log.warning("candidate %d failed: %s", event.job.candidate, outcome.reason)
                if outcome.traceback and outcome.reason != self._last_failure[0]:
                    log.warning("%s", outcome.traceback)
            self._record(event.job, outcome)
            self._watch_failures(outcome)
        if time.monotonic() - self._noted >= _HEARTBEAT:
            self.note_seconds()
        self._observer.update(self.archive, self.pool.workers)

    def _after_loss(self, lost: Lost) -> Finished | None:
        """Try a candidate again whose worker was lost, or return its failure."""
        number = lost.job.candidate
        if self.stop:
            log.warning("candidate %d: left for the next start: %s", number, lost.reason)
            return None
        log.warning("candidate %d: its worker was lost: %s", number, lost.reason)
        deaths, losses = self.archive.record_retry(number, lost.reason, lost.blamed)
        if deaths > _DEATHS_ALLOWED:
            reason = f"killed its worker {deaths} times: {lost.reason}"
        elif losses > _LOSSES_ALLOWED:
            reason = f"lost its worker {losses} times: {lost.reason}"
        else:
            self.pool.submit(lost.job)
            return None
        return Finished(lost.job, Outcome("failed", reason))

    def _watch_failures(self, outcome: Outcome) -> None:
        """Stop when one reason fails candidate after candidate: that is no candidate's fault."""
        reason = outcome.reason
        if "OutOfMemoryError" in reason:  # tells how much is free, each time another
            reason = "OutOfMemoryError"
        repeated = outcome.status == "failed" and reason == self._last_failure[0]
        self._last_failure = (reason, self._last_failure[1] + 1 if repeated else 1)
        if outcome.status == "failed" and self._last_failure[1] >= _SAME_FAILURES:
            raise EvomergeError(
                f"{_SAME_FAILURES} candidates in a row failed with: {outcome.reason}; mend that and"
                " run the campaign again, which goes on from here"
            )

    def _record(self, job: Job, outcome: Outcome) -> None:
        candidate, which = self._flying.pop(job.candidate)
        if job.side == "heldout":
            self.archive.record_final(candidate.id, outcome)
            return
        if candidate.origin == "recommended":
            if self.confirmation is None or which is None:
                raise RuntimeError("a race was run before there was one")
            self.confirmation.hear(candidate.id, outcome, which, self._count(which))
            return
        self._keep(candidate, outcome, self._count(which), which)
        for twin in self._twins.pop((candidate.recipe_id, candidate.part), []):
            self._record_copy(twin, candidate.id)

    def _keep(
        self, candidate: Candidate, outcome: Outcome, items: int, which: Positions | None = None
    ) -> None:
        """Write down an outcome on search items, and let the controller hear of it."""
        part, scores = None, outcome.summaries
        if which is not None and scores:
            part = self._part(candidate, outcome, which)
            scores = dict(part.scores)
        value, violation = None, 0.0
        if self.feedback and scores:
            value, violation = self.feedback.worth(scores, outcome.scores, which)
        self.archive.record(  # disk first,
            candidate.id, outcome, value, violation, items=items, part=part
        )
        self._tell(candidate, scores or None, outcome.scores)  # then memory

    def _part(self, candidate: Candidate, outcome: Outcome, which: Positions) -> PartScores:
        """Return what a candidate's part says of its means over all search items."""
        if self.feedback is None or candidate.part is None:
            raise RuntimeError("a part was scored before there was a scale")
        predictions = self.feedback.predictions(candidate.part)
        scores = {
            name: predictions[name].estimate(which[name], items)
            for name, items in outcome.scores.items()
        }
        return PartScores(which, outcome.scores, scores)

    def _record_copy(self, candidate: Candidate, earlier: int) -> None:
        self.archive.record_copy(candidate.id, earlier)
        self._tell(candidate, self.archive.scores(candidate.id, "search") or None)

    def _tell(
        self,
        candidate: Candidate,
        scores: Mapping[str, Score] | None,
        items: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Let the controller hear of an outcome; baselines are told when it is built."""
        if candidate.origin == "baseline":
            return
        if self.controller is None or self.feedback is None:
            raise RuntimeError("a candidate was scored before there was a controller")
        self.controller.tell(self.feedback.feedback(candidate, scores, items))
