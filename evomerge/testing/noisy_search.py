"""A search whose scores are noisy: every item is right with a chance that the point decides.

The same items buy few candidates that are known well, or many of which each is known a little.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.scoring.estimates import towards_mean
from evomerge.scoring.outcome import Score
from evomerge.search.controllers import CONTROLLERS, Controller, Feedback, Problem, make_controller
from evomerge.search.objectives import Objective
from evomerge.search.race import (
    Course,
    Standing,
    judged,
    most_promising,
    places,
    schedule,
)
from evomerge.sections import parse
from evomerge.testing.breeding import crossed, founders

_OPTIMUM = 0.3
_ITEMS, _PART = 400, 25  # of all, and of a part: 25 items have a standard error of 0.1
_CONFIRMED = 0.2  # share of the items that goes into races, as in a campaign


def distance(point: np.ndarray) -> float:
    """Return how far a point of the box is from the optimum, root mean square over its genes.

    >>> distance(np.array([0.3, 0.4])) < distance(np.array([0.3, 0.5]))
    True
    """
    return float(np.sqrt(np.mean((point - _OPTIMUM) ** 2)))


def chance(point: np.ndarray) -> float:
    """Return with which chance a point solves an item.

    >>> chance(np.full(5, 0.3))
    0.9
    """
    return 0.9 - 0.8 * min(1.0, 2.0 * distance(point))


@dataclass
class _World:
    """Points, and their scores of items: drawn once, so that an item has one answer."""

    seed: int
    points: dict[int, np.ndarray] = field(default_factory=dict)
    known: dict[bytes, np.ndarray] = field(default_factory=dict)

    def scores(self, candidate: int) -> np.ndarray:
        """Return the (items,) float32 scores of a point."""
        point = self.points[candidate]
        key = point.tobytes()
        if key not in self.known:
            rng = np.random.default_rng([self.seed, *np.frombuffer(key, np.uint32).tolist()])
            self.known[key] = (rng.random(_ITEMS) < chance(point)).astype(np.float32)
        return self.known[key]


def found_distance(
    name: str, items: int, *, in_parts: bool, seed: int = 1, dimension: int = 5, **options: Any
) -> float:
    """Return how far the point that a search ends with is from the optimum.

    Scored in full, it is the candidate of the best score, or, if that is better, the one that the
    controller recommends; in parts, the winner of a race, as in a campaign.

    Args:
        name: of the controller.
        items: that may be scored.
        in_parts: whether candidates are scored on parts of the items.
        seed: of controller and scores.
        dimension: genes.
        options: of the controller.

    >>> found_distance("cmaes", 4000, in_parts=True) < 0.2
    True
    """
    cls = CONTROLLERS.get(name)
    sides = 2 if cls.breeds else dimension
    parts = _ITEMS // _PART if in_parts else 1
    section = parse(cls.section, {"kind": name, **options})
    controller = make_controller(Problem(sides, seed, np.full(sides, 0.5), parts=parts), section)
    world = _World(seed)
    for corner in founders(dimension):
        number = len(world.points) + 1
        world.points[number] = corner
        controller.tell(_feedback(None, number, None, world.scores(number), cls.breeds, False))
    each = _PART if in_parts else _ITEMS
    searched = (1.0 - _CONFIRMED) * items if in_parts else items - _ITEMS
    estimates: dict[int, list[float]] = {}  # of the candidate that was scored first
    first_of: dict[int, int] = {}
    spent = ordinal = 0
    while spent + each <= searched:
        (proposal,) = controller.ask(1)
        number = len(world.points) + 1
        if proposal.again is not None:
            world.points[number] = world.points[proposal.again]
        elif cls.breeds:
            world.points[number] = crossed(proposal.genome, proposal.parents, world.points)
        else:
            world.points[number] = proposal.genome
        first_of[number] = first_of.get(proposal.again or 0, proposal.again or number)
        scores = world.scores(number)
        if in_parts:
            rounds, place = divmod(proposal.part, parts)
            order = np.random.default_rng([seed, rounds]).permutation(_ITEMS)
            scores = scores[order[place * _PART : (place + 1) * _PART]]
        controller.tell(_feedback(ordinal, number, proposal.genome, scores, cls.breeds, in_parts))
        estimates.setdefault(first_of[number], []).append(float(scores.mean()))
        ordinal += 1
        spent += each
    return distance(_confirmed(controller, world, estimates, items - spent, in_parts))


def _feedback(
    ordinal: int | None,
    candidate: int,
    genome: np.ndarray | None,
    scores: np.ndarray,
    breeds: bool,
    in_parts: bool,
) -> Feedback:
    mean = float(scores.mean())
    error = (
        float(scores.std(ddof=1) / np.sqrt(len(scores)))
        if in_parts and ordinal is not None
        else 0.0
    )
    return Feedback(ordinal, genome, mean, (mean,), 0.0, candidate, scores, breeds, (error,))


def _confirmed(
    controller: Controller,
    world: _World,
    estimates: Mapping[int, list[float]],
    allowance: float,
    in_parts: bool,
) -> np.ndarray:
    """Return the point of the best score of all items among those that are scored on all."""
    racers = []
    for genome, _ in controller.recommend():
        number = len(world.points) + 1
        world.points[number] = genome
        racers.append(number)
    means = {}
    drawn = towards_mean([_estimate(found) for found in estimates.values()])
    for number, score in zip(estimates, drawn, strict=True):
        means[number] = Standing(0.0, score.mean, (score.mean,), {})
    if not in_parts:
        best = most_promising(means, 1, on_front=False)
        racers = [*best, *racers[:1]]
        return world.points[max(racers, key=lambda n: float(world.scores(n).mean()))]
    racers = racers or most_promising(means, 48, on_front=False)
    course = Course(
        [Objective("noisy")], {"noisy": _ITEMS}, {"noisy": 1.0}, {"noisy": 1.0}, [world.seed, 9]
    )
    ends = [course.end(number) for number in range(course.rounds)]
    starters, finishers = schedule(len(racers), ends, allowance)
    racers = racers[:starters]
    for round_ in range(course.rounds):
        which = course.until(round_)["noisy"]
        standings = {}
        for number in racers:
            mean = float(world.scores(number)[which].mean())
            standings[number] = Standing(0.0, mean, (mean,), {"noisy": world.scores(number)})
        if round_ + 1 == course.rounds:
            break
        left = places(starters, finishers, round_ + 1)
        outs = judged(course, standings, {}, round_, left, max(1, starters - 1), on_front=False)
        racers = [n for n in racers if n not in {out.candidate for out in outs}]
    return world.points[most_promising(standings, 1, on_front=False)[0]]


def _estimate(means: list[float]) -> Score:
    """Return the mean of a candidate's parts; an item that is right or wrong varies by 0.2."""
    items = _PART * len(means)
    return Score(float(np.mean(means)), (0.2 / items) ** 0.5, items)
