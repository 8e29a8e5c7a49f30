"""COMO-CMA-ES (Toure et al. 2019, arXiv:1904.08823): several CMA-ES share out a Pareto front.

Each kernel is a CMA-ES that seeks what adds hypervolume to the means of the other kernels. The
authors' program, comocma, tells all kernels together, a generation at a time, and is made for
two objectives; here each is told as its outcomes come, and there may be any number.
"""

import math
from dataclasses import replace

import numpy as np

from evomerge.search.controllers import Proposal, Told, controller
from evomerge.search.controllers.cmaes import CmaEs
from evomerge.search.pareto import hypervolume, hypervolume_contributions

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
    """
    front = np.reshape(front, (-1, len(reference)))
    lacking = np.maximum(local_bounds(front, reference) - points[:, None, :], 0.0)
    distance = np.linalg.norm(lacking, axis=2).min(axis=1)
    before = hypervolume(front, reference)
    return np.array(
        [
            -far if far > 0.0 else hypervolume(np.vstack([front, point]), reference) - before
            for point, far in zip(points, distance, strict=True)
        ]
    )


@controller("como")
class Como:
    """COMO-CMA-ES on [0, 1]^d without a generation barrier.

    Kernels hand out a generation each, in turn. Whenever `population` outcomes of a kernel have
    come, it is told what they would add to the other kernels' means, and its new mean is asked
    for. So one worker runs the sequential algorithm, and more workers reach into the turns of
    further kernels. Candidates that miss constraints rank below those that do not; failures, last.
    A kernel that has converged begins elsewhere; what its mean scored stays in the front.

    Hypervolume is measured from -0.1 in each objective. The worst baseline has 0, and were that
    the reference, an end of the front which is just as bad in one objective would add nothing.
    """

    def __init__(
        self,
        *,
        dimension: int,
        seed: int,
        start: np.ndarray,
        objectives: int = 1,
        kernels: int | None = None,
        population: int | None = None,
        sigma: float = 0.2,
    ):
        """
        Args:
            dimension: genes.
            seed: of everything drawn here.
            start: (dimension,) the first kernel's mean. The others begin at the genomes told
                before the first ask, those that add most hypervolume first, or else anywhere.
            objectives: how many there are.
            kernels: points to spread over the front; 5 if not given, or 1 for one objective.
            population: candidates per update of a kernel, at least 3; 4 + floor(3 ln d) if not
                given. All kernels once take kernels * (population + 1) candidates.
            sigma: first step size, as a share of the box, in (0, 1].

        Raises:
            ValueError: an option is out of range.
        """
        if kernels is not None and kernels < 1:
            raise ValueError(f"kernels: {kernels} is below 1; write e.g. 5, or leave it out")
        count = kernels or (5 if objectives > 1 else 1)
        seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
        starts = np.random.default_rng(seed).uniform(0.1, 0.9, (count, dimension))
        starts[0] = start
        options = {"dimension": dimension, "population": population, "sigma": sigma, "restarts": 0}
        self._kernels = [
            CmaEs(seed=s, start=x, **options) for s, x in zip(seeds, starts, strict=True)
        ]
        self._population = population or 4 + int(3 * math.log(max(dimension, 1)))
        self._reference = np.full(objectives, _REFERENCE)
        self._means: list[tuple[float, ...] | None] = [None] * count  # what each mean scored
        self._settled: list[tuple[float, ...]] = []  # what those of earlier starts scored
        self._unscored = list(range(count))  # kernels whose means are to be asked for
        self._outcomes: list[list[Told]] = [[] for _ in range(count)]
        self._pending: dict[int, tuple[int, int | None]] = {}  # kernel, and its own ordinal
        self._foreign: list[Told] = []
        self._sampled = [0] * count
        self._asked = 0

    def ask(self, n: int) -> list[Proposal]:
        if not self._asked:
            self._begin_at_foreign()
        return [self._propose() for _ in range(n)]

    def tell(self, told: Told) -> None:
        if told.ordinal is None:
            self._foreign.append(told)
            return
        number, inner = self._pending.pop(told.ordinal)
        if inner is None:
            self._means[number] = told.objectives if told.violation <= 0.0 else None
            return
        self._outcomes[number].append(replace(told, ordinal=inner))
        if len(self._outcomes[number]) >= self._population:
            self._update(number)

    def _begin_at_foreign(self) -> None:
        scored = [t for t in self._foreign if t.genome is not None and t.objectives is not None]
        kept = [t for t in scored if t.violation <= 0.0]
        points = np.reshape([t.objectives for t in kept], (-1, len(self._reference)))
        order = np.argsort(-hypervolume_contributions(points, self._reference), kind="stable")
        missed = sorted((t for t in scored if t.violation > 0.0), key=lambda t: t.violation)
        for kernel, told in zip(self._kernels[1:], [kept[i] for i in order] + missed, strict=False):
            kernel.tell(told)

    def _propose(self) -> Proposal:
        if self._unscored:
            number, inner = self._unscored.pop(0), None
            proposal = Proposal(self._kernels[number].mean)
        else:
            number = sum(self._sampled) // self._population % len(self._kernels)
            inner = self._sampled[number]
            (proposal,) = self._kernels[number].ask(1)
            self._sampled[number] += 1
        self._pending[self._asked] = (number, inner)
        self._asked += 1
        return proposal

    def _update(self, number: int) -> None:
        """Tell a kernel what its points would add to the means of the others."""
        kernel, outcomes = self._kernels[number], self._outcomes[number]
        runs, self._outcomes[number] = kernel.runs, []
        others = self._means[:number] + self._means[number + 1 :] + self._settled
        front = np.array([m for m in others if m is not None])
        points = np.array([t.objectives or self._reference for t in outcomes])
        gains = uncrowded_improvement(points, front, self._reference).tolist()
        for told, gain in zip(outcomes, gains, strict=True):
            kernel.tell(told if told.objectives is None else replace(told, value=gain))
        if kernel.runs != runs and self._means[number] is not None:
            self._settled.append(self._means[number])
            self._means[number] = None
        self._unscored.append(number)
