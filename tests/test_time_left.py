"""The time left, on ledgers that a simulated clock writes: right within a third from a tenth on."""

import heapq
import itertools

import numpy as np
import pytest

from evomerge.archive import archive as archive_module
from evomerge.archive import candidate_writer
from evomerge.archive.archive import Archive
from evomerge.archive.records import PartScores, Recommended
from evomerge.archive.time_left import patience_left, seconds_left
from evomerge.recipes.parameters import single
from evomerge.scoring.outcome import Outcome, Score
from evomerge.search.controllers import Proposal

FULL, PART, HELDOUT, BASELINES, FINALS = 400, 50, 600, 5, 6
EACH_JOB, EACH_ITEM = 1.0, 0.05  # seconds: a part of an eighth of the items takes a sixth of all
SHARE = 0.2
RECIPE = single("a", "float32")


class Clock:
    def __init__(self):
        self.now = 1.7e9

    def time(self):
        return self.now


class Simulation:
    """A campaign as the runner leaves it in the ledger, without any model.

    Whoever asks for a job gets the next of: baselines, proposals, a race in three rounds, finals.
    """

    def __init__(self, clock, *, workers, budget, parts, startup):
        self.clock, self.workers, self.budget, self.parts = clock, workers, budget, parts
        self.startup, self.random = startup, np.random.default_rng(3)
        self.archive = Archive(":memory:", write=True)
        limits = {"items": None, "evaluations": None, "patience": None, "hours": None} | budget
        plan = {
            "seed": 1,
            "stages": [],
            "budget": limits,
            "finals": FINALS,
            "workers": {"count": workers},
            "scoring": {"kind": "batches", "confirm": SHARE} if parts else {"kind": "full"},
        }
        provenance = {"objectives": [{"name": "maths"}], "sources": {}}
        items = [("maths", side, n, "") for side, of in (("search", FULL), ("heldout", HELDOUT))
                 for n in range(of)]  # fmt: skip
        self.archive.begin("simulated", plan, provenance, items)
        self.began = clock.now
        self.foretold = []  # (seconds since the beginning, seconds left)
        self.before = 0.0

    def run(self, stops=()):
        """Run to the end, with a start anew after each of these shares of the proposals."""
        self.jobs, self.left = self.all_jobs(), []
        stops = [*stops, None]
        for stop in stops:
            self.one_start(stop)
        self.archive.set_state("finished")
        return self.before, self.foretold

    def one_start(self, stop):
        start, began, told = self.archive.start({}), self.clock.now, 0
        flying, number = [], itertools.count()  # (when it ends, tie, what it tells)
        idle_from = [began + self.startup] * self.workers
        while True:
            while idle_from and (stop is None or told < stop):
                job = self.left.pop() if self.left else next(self.jobs, None)
                if job is None or (job == "wait" and flying):
                    if job == "wait":
                        self.left.append(job)
                    break
                if job == "wait":
                    continue
                seconds, tell = job
                at = max(idle_from.pop(), self.clock.now)
                heapq.heappush(flying, (at + seconds + 0.1, next(number), tell))
            if not flying:
                break
            self.clock.now, _, tell = heapq.heappop(flying)
            tell()
            told += 1
            idle_from.append(self.clock.now)
            self.archive.set_seconds(start, self.clock.now - began)
            if told % 4 == 0:
                passed = self.before + self.clock.now - began
                self.foretold.append((passed, seconds_left(self.archive)))
        self.before += self.clock.now - began
        self.clock.now += 5000.0  # before somebody starts it again

    def seconds(self, items):
        return float((EACH_JOB + EACH_ITEM * items) * self.random.uniform(0.7, 1.3))

    def all_jobs(self):
        archive = self.archive
        for number in range(BASELINES):
            archive.add_baseline(f"baseline {number}", RECIPE, f"baseline {number}")
        for number in range(1, BASELINES + 1):
            yield self.scored(number, 0.5)
        yield "wait"
        while self.goes_on():
            part = 0 if self.parts else None
            proposal = Proposal(np.array([0.5]), (), part or 0)
            recipes = [(f"proposal {archive.proposed()}", RECIPE)]
            (candidate,) = archive.propose(1, [proposal], recipes, in_parts=self.parts)
            yield self.scored(candidate.id, float(self.random.normal()), part)
        yield "wait"
        if self.parts:
            yield from self.race()
            yield "wait"
        finalists = [*range(1, BASELINES + 1)]
        finalists += [c for c in archive.front() if c not in finalists][:FINALS]
        for number in finalists:
            yield self.final(number)

    def scored(self, number, value, part=None):
        items = FULL if part is None else PART
        seconds = self.seconds(items)
        scores = {"maths": np.full(items, value, np.float32)}
        outcome = Outcome("ok", scores=scores, seconds_merge=0.1, seconds_score=seconds - 0.1)

        def tell():
            found = None
            if part is not None:
                means = {"maths": Score(value, 0.1, items)}
                found = PartScores({"maths": np.arange(items)}, scores, means)
            self.archive.record(number, outcome, value, part=found)

        return seconds, tell

    def race(self):
        """One candidate, a third of the items at once, and as many as the share allows."""
        searched = self.archive.items_scored() - BASELINES * FULL
        for number in range(max(1, round(SHARE / (1 - SHARE) * searched / FULL))):
            row = Recommended(f"promising {number}", RECIPE, "promising")
            (candidate,) = self.archive.recommend([row], 1, is_last=True)
            yield self.scored(candidate.id, 2.0 + number)

    def final(self, number):
        seconds = self.seconds(HELDOUT)
        scores = {"maths": np.ones(HELDOUT, np.float32)}
        outcome = Outcome("ok", scores=scores, seconds_score=seconds)
        return seconds, lambda: self.archive.record_final(number, outcome)

    def goes_on(self):
        """Whether the budget is not spent."""
        archive, budget = self.archive, self.budget
        spent = archive.items_scored()
        kept = SHARE * (budget.get("items", 0) - BASELINES * FULL) if self.parts else 0
        flying = archive.counts()["running"] * (PART if self.parts else FULL)
        each = PART if self.parts else FULL
        return not (
            (budget.get("items") and spent + flying + kept + each > budget["items"])
            or (budget.get("evaluations") and archive.proposed() >= budget["evaluations"])
            or (budget.get("hours") and archive.seconds >= 3600 * budget["hours"])
            or (budget.get("patience") and archive.proposed_since_best() >= budget["patience"])
        )


CASES = {
    "items in parts": ({"items": 40_000}, True, 1, ()),
    "evaluations in parts, eight workers": ({"evaluations": 800}, True, 8, ()),
    "evaluations in full": ({"evaluations": 120}, False, 2, ()),
    "items in full, eight workers": ({"items": 80_000}, False, 8, ()),
    "hours": ({"hours": 0.3, "evaluations": 10_000}, True, 2, ()),
    "begun thrice": ({"evaluations": 500}, True, 2, (100, 200)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_time_left_is_right_within_a_third(case, monkeypatch):
    budget, parts, workers, stops = CASES[case]
    clock = Clock()
    for module in (archive_module, candidate_writer):
        monkeypatch.setattr(module, "time", clock)
    simulation = Simulation(clock, workers=workers, budget=budget, parts=parts, startup=30.0)
    whole, foretold = simulation.run(stops)
    for share in (0.1, 0.2, 0.35, 0.5, 0.7, 0.9):
        passed, left = next(row for row in foretold if row[0] >= share * whole)
        assert left == pytest.approx(whole - passed, rel=1 / 3), share
    assert seconds_left(simulation.archive) == 0.0


@pytest.mark.parametrize("patience", [60, 300])
def test_patience_is_foretold_by_how_records_fall(patience):
    """Against searches of random values: as many end before as after, or just then."""
    random, now = np.random.default_rng(1), 100
    before = after = searches = 0
    for _ in range(2000):
        values = list(random.random(now))
        last = int(np.argmax(values))
        since = now - 1 - last
        if since >= patience:
            continue
        searches += 1
        best, number = values[last], now
        while number - 1 - last < patience:
            if (value := random.random()) > best:
                best, last = value, number
            number += 1
        foretold = now + patience_left(patience, since, now)
        before += number < foretold
        after += number > foretold
    assert max(before, after) < 0.6 * searches
