"""Whom a search recommends is scored in full, by races that stop who is worse.

Where candidates are scored in parts, nobody is known well until that. A few are confirmed while the
search runs, so that there is always a best to look at, and more at its end.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.archive.records import Candidate, PartScores, RaceEnd, Recommended
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.feedback import FeedbackScale
from evomerge.scoring.estimates import towards_mean
from evomerge.scoring.outcome import Outcome, Score, summary
from evomerge.scoring.parts import BatchesSection
from evomerge.search.controllers import CONTROLLERS, Controller
from evomerge.search.race import Course, Standing, judged, most_promising, places, schedule
from evomerge.search.spaces import PointSpace, quantize

# Of what confirmation may cost, this much is spent while the search runs, on one candidate after
# the other; the rest at its end.
_MEANWHILE = 0.5
_MOST = 48  # candidates that begin a race: what more of them gain grows as sqrt(2 ln n)

Positions = Mapping[str, np.ndarray]  # objective -> (n,) int64 positions among the search items


class Race(NamedTuple):
    """A race that is on.

    >>> from evomerge.testing.races import example_course
    >>> Race(example_course(), {}, starters=4, finishers=1).chances
    3

    Attributes:
        course: its items, in their order.
        rivals: scored in full before.
        starters, finishers: how many began it, and may end it.
    """

    course: Course
    rivals: Mapping[int, Standing]
    starters: int
    finishers: int

    @property
    def chances(self) -> int:
        """Among how many comparisons of a round the error rate is shared out."""
        return max(1, self.starters + len(self.rivals) - 1)


class Confirmation:
    """The races of one search: who runs, how far, and what becomes of them.

    All of it follows from the ledger, so that a race that was interrupted goes on.

    >>> from evomerge.testing.campaigns import example_runner
    >>> runner = example_runner()
    >>> runner.run()  # of so few items that every candidate is scored in full: there are no races
    True
    """

    def __init__(
        self,
        campaign: Campaign,
        archive: Archive,
        feedback: FeedbackScale,
        controller: Controller,
    ):
        """
        Args:
            campaign: whose candidates are scored in parts.
            archive: open for writing.
            feedback: puts scores on the baselines' scale.
            controller: is asked whom it recommends.
        """
        assert campaign.parts is not None and isinstance(campaign.plan.scoring, BatchesSection)
        self._campaign, self._archive = campaign, archive
        self._feedback, self._controller = feedback, controller
        self._share, self._part_size = campaign.plan.scoring.confirm, campaign.parts.size
        cls = CONTROLLERS.get(campaign.search.controller.kind)
        self._on_front = cls.seeks_front and len(campaign.objectives) > 1
        self._spent, self._begun = archive.items_spent_on_races(), archive.races()
        self._baseline_items = len(archive.baselines(campaign.stage)) * campaign.search_items
        self._racers: dict[int, Candidate] = {}
        self._scores: dict[int, dict[str, np.ndarray]] = {}  # of each, NaN where not scored yet
        self._flying: set[int] = set()
        self._race: Race | None = None
        self._take_up()

    @property
    def is_racing(self) -> bool:
        """Whether a race is on."""
        return self._race is not None

    @property
    def reserve(self) -> float:
        """How many items are kept for the race at the end, of a search limited in items."""
        items = self._campaign.search.budget.items
        if items is None:
            return 0.0
        full = self._campaign.search_items
        return max(self._share * (items - self._baseline_items) - self._spent, float(full))

    # --- races begin -------------------------------------------------------------------

    def begin_if_due(self, proposed: int) -> None:
        """Begin a race of one, if so many proposals have earned it."""
        due = (self._begun + 1) * self._campaign.search_items
        earned = _MEANWHILE * self._share * proposed * self._part_size
        if not self.is_racing and due <= earned:
            self._begin(self._recommended(1), 1, is_last=False)

    def begin_last(self) -> None:
        """Begin the race at the end of the search, unless it was begun before."""
        if not self._archive.asked_since_last_race():
            return
        spent = self._archive.items_scored(self._campaign.stage)
        if self._campaign.search.budget.items is not None:
            allowance = float(self._campaign.search.budget.items - spent)
        else:
            searched = spent - self._spent
            allowance = self._share / (1.0 - self._share) * searched - self._spent
        course = self._feedback.course(self._begun)
        rows = self._recommended(_MOST)
        ends = [course.end(number) for number in range(course.rounds)]
        starters, finishers = schedule(len(rows), ends, allowance)
        self._begin(rows[:starters], finishers, is_last=True)

    def _begin(self, rows: list[Recommended], finishers: int, *, is_last: bool) -> None:
        if rows:
            self._archive.recommend(rows, finishers, is_last=is_last)
            self._begun += 1
            self._take_up()

    def _recommended(self, most: int) -> list[Recommended]:
        """Return at most so many candidates to be scored in full, each recipe once."""
        space, hashes = self._campaign.space, self._campaign.worker.hashes
        rows = []
        for genome, label in self._controller.recommend():
            assert isinstance(space, PointSpace)  # children are recommended by their numbers alone
            settled = space.settled(quantize(genome))
            recipe = space.decode(settled)
            rows.append(Recommended(recipe.id(hashes), recipe, label, settled))
        if not rows:
            for number in self._promising(most):
                found = self._archive.candidate(number)
                label = f"candidate {number}"
                of = (found.recipe_id, found.recipe, label, found.genome, found.parents, number)
                rows.append(Recommended(*of))
        fresh: dict[str, Recommended] = {}
        for row in rows:
            if self._archive.scored_before(row.recipe_id) is None:
                fresh.setdefault(row.recipe_id, row)
        return list(fresh.values())[:most]

    def _promising(self, most: int) -> list[int]:
        """Return the candidates of the best estimates."""
        found = self._archive.estimates()
        standings = {n: self._feedback.standing({}, s) for n, s in _towards_mean(found).items()}
        return most_promising(standings, most, self._on_front)

    # --- a race goes on ----------------------------------------------------------------

    def _take_up(self) -> None:
        """Take up the latest race where it is, if it is not over."""
        every, finishers = self._archive.race()
        self._racers = {c.id: c for c in every if self._archive.outcome(c.id) is None}
        if not self._racers:
            return
        self._scores = {number: self._scores_of(number) for number in self._racers}
        own = {candidate.id for candidate in every}
        rivals = {
            number: self._standing(self._scores_of(number))
            for number in self._archive.confirmed()
            if number not in own
        }
        if not self._on_front:
            rivals = {n: rivals[n] for n in most_promising(rivals, 1, on_front=False)}
        course = self._feedback.course(self._begun - 1)
        self._race = Race(course, rivals, len(every), finishers)
        self._judge()

    def _scores_of(self, candidate: int) -> dict[str, np.ndarray]:
        """Return a candidate's scores of all search items, NaN where there is none yet."""
        found = {}
        for name, split in self._campaign.splits.items():
            row = np.full(len(split.search), np.nan, np.float32)
            scores = self._archive.item_scores(candidate, name, "search")
            if scores is not None:
                which = self._archive.which_items(candidate, name)
                row[slice(None) if which is None else which] = scores
            found[name] = row
        return found

    def _standing(self, scores: Mapping[str, np.ndarray]) -> Standing:
        return self._feedback.standing(scores, _part_scores(scores).scores)

    def _round(self, race: Race, candidate: int) -> int:
        """Return how many rounds of a race a candidate has run."""
        scored = self._scores[candidate]
        for number in range(race.course.rounds):
            until = race.course.until(number)
            if any(np.isnan(scored[name][which]).any() for name, which in until.items()):
                return number
        return race.course.rounds

    def next_job(self) -> tuple[Candidate, Positions] | None:
        """Return a candidate and the items to score next; None if nothing is due."""
        if self._race is None:
            return None
        rounds = {number: self._round(self._race, number) for number in self._racers}
        now = min(rounds.values())
        for number, candidate in self._racers.items():
            if number in self._flying or rounds[number] > now:
                continue
            self._flying.add(number)
            until, scored = self._race.course.until(now), self._scores[number]
            wanted = {name: which[np.isnan(scored[name][which])] for name, which in until.items()}
            return candidate, {name: which for name, which in wanted.items() if len(which)}
        return None

    def hear(self, candidate: int, outcome: Outcome, which: Positions, items: int) -> None:
        """Record what one round of a candidate gave; a failure ends its race.

        Args:
            candidate: of the race.
            outcome: of the items of this round.
            which: objective -> their positions.
            items: how many these are, those of answers that are measured left out.
        """
        self._flying.discard(candidate)
        self._spent += items
        if outcome.status == "ok":
            for name, scores in outcome.scores.items():
                self._scores[candidate][name][which[name]] = scores
            part = _part_scores(self._scores[candidate])
            self._archive.record_race_part(candidate, outcome, part, items)
        else:
            before = self._items(self._scores[candidate])
            self._archive.record_race_failure(candidate, outcome, before + items)
            del self._racers[candidate], self._scores[candidate]
        self._judge()

    def _judge(self) -> None:
        """Let go who is out after a round that all have run, and who has run them all."""
        race = self._race
        if race is None or self._flying:
            return
        over = min((self._round(race, number) for number in self._racers), default=0) - 1
        if self._racers and over < 0:
            return
        standings = {number: self._standing(self._scores[number]) for number in self._racers}
        is_end = over + 1 == race.course.rounds
        ends = []
        if is_end:
            ends = [self._end(number, standings[number], "") for number in self._racers]
        elif self._racers:
            left = places(race.starters, race.finishers, over + 1)
            outs = judged(
                race.course, standings, race.rivals, over, left, race.chances, self._on_front
            )
            ends = [self._end(out.candidate, standings[out.candidate], out.reason) for out in outs]
        self._archive.record_race_ends(ends)
        for end in ends:
            del self._racers[end.candidate], self._scores[end.candidate]
        if not self._racers:
            self._race = None

    def _items(self, scores: Mapping[str, np.ndarray]) -> int:
        return sum(int((~np.isnan(scores[name])).sum()) for name in self._campaign.scored)

    def _end(self, number: int, standing: Standing, reason: str) -> RaceEnd:
        items = self._items(self._scores[number])
        return RaceEnd(number, not reason, reason, standing.value, standing.violation, items)


def _part_scores(scores: Mapping[str, np.ndarray]) -> PartScores:
    """Return what is scored so far of (items,) scores that are NaN elsewhere."""
    which = {name: np.flatnonzero(~np.isnan(row)) for name, row in scores.items()}
    items = {name: scores[name][at] for name, at in which.items()}
    return PartScores(which, items, {name: summary(row) for name, row in items.items()})


def _towards_mean(found: Mapping[int, Mapping[str, Score]]) -> dict[int, dict[str, Score]]:
    """Return estimates drawn towards their common mean, objective by objective."""
    drawn: dict[int, dict[str, Score]] = {number: {} for number in found}
    for name in next(iter(found.values()), {}):
        scores = towards_mean([found[number][name] for number in found])
        for number, score in zip(found, scores, strict=True):
            drawn[number][name] = score
    return drawn
