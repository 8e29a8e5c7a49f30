"""COMO-CMA-ES (Toure et al. 2019, arXiv:1904.08823): several CMA-ES share out a Pareto front.

Each kernel is a CMA-ES that seeks what adds hypervolume to the means of the other kernels. The
authors' program, comocma, tells all kernels together, a generation at a time, and is made for
two objectives; here each is told as its outcomes come, and there may be any number.

Scored in parts, the candidates of a kernel's generation share a part, and a mean is scored on
several, as all that kernels do is measured against the means.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from evomerge.search.controllers import (
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    Recommendation,
    controller,
)
from evomerge.search.controllers.cmaes import CmaEs, CmaEsSection, default_population
from evomerge.search.pareto import hypervolume, hypervolume_contributions
from evomerge.sections import Number, Whole, option

_MEAN_PARTS = 4  # on which a mean is scored: half the standard error of a candidate
_REFERENCE = -0.1  # in each objective; why, is said in `Como`


def local_bounds(front: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the corners of the region above a reference that no point of a front dominates.

    A vector lies in it, or on its border, just if it is at least one of the corners in every
    objective (the local bounds of Klamroth et al. 2015, arXiv:1502.06111).

    Args:
        front: (n, objectives) float64, more is better; dominated points do no harm.
        reference: (objectives,) float64.

    Returns:
        (corners, objectives) float64, none of them above another.

    >>> local_bounds(np.array([[1.0, 2.0]]), np.zeros(2)).tolist()
    [[0.0, 2.0], [1.0, 0.0]]
    """
    count = len(reference)
    corners = np.array([reference], float)
    for point in front:
        below = (corners < point).all(axis=1)
        # a corner below the point gives way to its projections on the point, one per objective
        moved = corners[below, None, :].repeat(count, axis=1)
        moved[:, range(count), range(count)] = point
        corners = np.unique(np.vstack([corners[~below], moved.reshape(-1, count)]), axis=0)
        above = (corners[:, None, :] >= corners[None, :, :]).all(axis=2).sum(axis=1)
        corners = corners[above == 1]  # above none but itself: else another's region has its own
    return corners


def uncrowded_improvement(
    points: np.ndarray, front: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """Return the uncrowded hypervolume improvement (UHVI) of each point over a front.

    It is the hypervolume that the point adds, or, where it can add none, minus its Euclidean
    distance to where points begin to add some (Toure et al. 2019, section 3).

    Args:
        points: (n, objectives) float64, more is better.
        front: (others, objectives) float64, or empty.
        reference: (objectives,) float64.

    Returns:
        (n,) float64, more is better.

    >>> front, reference = np.array([[1.0, 1.0]]), np.zeros(2)
    >>> uncrowded_improvement(np.array([[2.0, 0.5], [0.5, 0.5]]), front, reference).tolist()
    [0.5, -0.5]
    """
    front = np.reshape(front, (-1, len(reference)))
    # the distance to the nearest corner of the region that the front leaves free
    lacking = np.maximum(local_bounds(front, reference) - points[:, None, :], 0.0)
    distance = np.linalg.norm(lacking, axis=2).min(axis=1)
    before = hypervolume(front, reference)
    return np.array(
        [
            -far if far > 0.0 else hypervolume(np.vstack([front, point]), reference) - before
            for point, far in zip(points, distance, strict=True)
        ]
    )


class ComoSection(ControllerSection):
    """Options of COMO-CMA-ES. All kernels once take kernels * (population + 1) candidates.

    >>> ComoSection(kernels=3).population is None
    True
    """

    kind: Literal["como"] = "como"
    kernels: Whole | None = option(
        "points to spread over the front; null: 5, or 1 for one objective", None, ge=1
    )
    population: Whole | None = option(
        "candidates for each update of a kernel; null: 4 + floor(3 ln d), and half as many again"
        " scored in parts",
        None,
        unit="candidates",
        ge=3,
    )
    sigma: Number = option("first step size", 0.2, unit="share of the box", gt=0, le=1)


@controller(ComoSection)
class Como(Controller):
    """COMO-CMA-ES on [0, 1]^d without a generation barrier.

    Kernels hand out a generation each, in turn. Whenever `population` outcomes of a kernel have
    come, it is told what they would add to the other kernels' means, and its new mean is asked
    for. So one worker runs the sequential algorithm, and more workers reach into the turns of
    further kernels. Candidates that miss constraints rank below those that do not; failures, last.
    A kernel that has converged begins elsewhere; what its mean scored stays in the front.

    The first kernel begins at the problem's start, the others at the genomes told before the
    first ask, those that add most hypervolume first, or else anywhere.

    Hypervolume is measured from -0.1 in each objective. The worst baseline has 0, and were that
    the reference, an end of the front which is just as bad in one objective would add nothing.

    >>> problem = Problem(dimension=2, seed=1, start=np.full(2, 0.5), objectives=2)
    >>> [proposal.genome.tolist() for proposal in Como(problem, ComoSection()).ask(1)]
    [[0.5, 0.5]]
    """

    seeks_front = True

    def __init__(self, problem: Problem, options: ComoSection):
        count = options.kernels or (5 if problem.objectives > 1 else 1)
        seeds = np.random.SeedSequence(problem.seed).generate_state(count).tolist()
        rng = np.random.default_rng(problem.seed)
        starts = rng.uniform(0.1, 0.9, (count, problem.dimension))
        starts[0] = problem.start
        usual = default_population(problem.dimension)
        if problem.parts > 1:  # recombination averages the noise
            usual += usual // 2
        self._population = options.population or usual
        each = CmaEsSection(population=self._population, sigma=options.sigma, restarts=0)
        self._kernels = [
            CmaEs(Problem(problem.dimension, seed, start), each)
            for seed, start in zip(seeds, starts, strict=True)
        ]
        self._reference = np.full(problem.objectives, _REFERENCE)
        self._means: list[tuple[float, ...] | None] = [None] * count  # what each mean scored
        self._settled: list[tuple[float, ...]] = []  # what those of earlier starts scored
        self._unscored = list(range(count))  # kernels whose means are to be asked for
        self._outcomes: list[list[Feedback]] = [[] for _ in range(count)]
        # kernel, and its own ordinal, or that of its update, which a mean is of
        self._pending: dict[int, tuple[int, int | None, int]] = {}
        self._updates = [0] * count
        # a single kernel is measured against no other's mean
        self._mean_parts = _MEAN_PARTS if problem.parts > 1 and count > 1 else 1
        self._mean_told: list[list[Feedback]] = [[] for _ in range(count)]  # of each present mean
        self._again: list[tuple[int, int]] = []  # kernel and candidate: means to be scored again
        self._means_asked = 0
        self._foreign: list[Feedback] = []
        self._sampled = [0] * count
        self._asked = 0

    def ask(self, n: int) -> list[Proposal]:
        if not self._asked:
            self._begin_at_foreign()
        return [self._propose() for _ in range(n)]

    def tell(self, feedback: Feedback) -> None:
        if feedback.ordinal is None:
            self._foreign.append(feedback)
            return
        number, inner, update = self._pending.pop(feedback.ordinal)
        if inner is None:
            if update == self._updates[number]:  # else there is a newer mean
                self._hear_mean(number, feedback)
            return
        self._outcomes[number].append(replace(feedback, ordinal=inner))
        if len(self._outcomes[number]) >= self._population:
            self._update(number)

    def _hear_mean(self, number: int, feedback: Feedback) -> None:
        """Take what a kernel's mean scored, on average over the parts on which it was scored."""
        told = self._mean_told[number]
        told.append(feedback)
        if len(told) == 1 and feedback.objectives is not None:
            self._again += [(number, feedback.candidate)] * (self._mean_parts - 1)
        scored = [t.objectives for t in told if t.objectives is not None]
        keeps = np.mean([t.violation for t in told]) <= 0.0
        self._means[number] = tuple(np.mean(scored, axis=0).tolist()) if scored and keeps else None

    def recommend(self) -> list[Recommendation]:
        return [
            Recommendation(kernel.mean, f"mean of kernel {number}")
            for number, kernel in enumerate(self._kernels)
        ]

    def _begin_at_foreign(self) -> None:
        scored = [t for t in self._foreign if t.genome is not None and t.objectives is not None]
        kept = [t for t in scored if t.violation <= 0.0]
        points = np.reshape([t.objectives for t in kept], (-1, len(self._reference)))
        order = np.argsort(-hypervolume_contributions(points, self._reference), kind="stable")
        missed = sorted((t for t in scored if t.violation > 0.0), key=lambda t: t.violation)
        for kernel, feedback in zip(
            self._kernels[1:], [kept[i] for i in order] + missed, strict=False
        ):
            kernel.tell(feedback)

    def _propose(self) -> Proposal:
        if self._unscored or self._again:
            inner = None
            part = 2 * self._means_asked + 1  # odd numbers, those of generations even
            self._means_asked += 1
            if self._unscored:
                number = self._unscored.pop(0)
                proposal = Proposal(self._kernels[number].mean, part=part)
            else:
                number, candidate = self._again.pop(0)
                proposal = Proposal(self._kernels[number].mean, part=part, again=candidate)
        else:
            turn = sum(self._sampled) // self._population
            number = turn % len(self._kernels)
            inner = self._sampled[number]
            (proposal,) = self._kernels[number].ask(1)
            proposal = proposal._replace(part=2 * turn)
            self._sampled[number] += 1
        self._pending[self._asked] = (number, inner, self._updates[number])
        self._asked += 1
        return proposal

    def _update(self, number: int) -> None:
        """Tell a kernel what its points would add to the means of the others."""
        kernel, outcomes = self._kernels[number], self._outcomes[number]
        self._updates[number] += 1
        self._mean_told[number] = []
        self._again = [entry for entry in self._again if entry[0] != number]
        runs, self._outcomes[number] = kernel.runs, []
        others = self._means[:number] + self._means[number + 1 :] + self._settled
        front = np.array([m for m in others if m is not None])
        points = np.array([t.objectives or self._reference for t in outcomes])
        gains = uncrowded_improvement(points, front, self._reference).tolist()
        for feedback, gain in zip(outcomes, gains, strict=True):
            kernel.tell(feedback if feedback.objectives is None else replace(feedback, value=gain))
        mean = self._means[number]
        if kernel.runs != runs and mean is not None:
            self._settled.append(mean)
            self._means[number] = None
        self._unscored.append(number)
