"""What told candidates let one expect of others, and which to score next, by BoTorch.

The next candidate is the one that promises most over those told and in flight, their noise counted:
log-NEI for one objective (Ament et al. 2023, arXiv:2310.20708), log-NEHVI for several (Daulton et
al. 2021, arXiv:2105.08195).
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from evomerge.search.pareto import hypervolume_contributions
from evomerge.search.processes import Process, fit_process, gaussian_process

_BASELINE = 16  # told candidates over which there is to be an improvement: the best
_SAMPLES = 64  # of the posterior; half as many of several objectives, where each has a front
_TRIED, _POLISHED, _ITERATIONS = 64, 2, 4  # points: at random, the best of them improved so often
_NEAR = (-2.5, -0.5)  # decades of the steps from the best candidates to two thirds of them
_REFERENCE = -0.1  # of the hypervolume, in each objective, as in `como`
_MISSED = (0.25, 2.0)  # a violation, in units of the median, is taken for at least and at most
_RECOMMENDED = 8


class Told(NamedTuple):
    """What became of a candidate.

    Attributes:
        genome: (dimension,) float64 in [0, 1].
        objectives: more is better; None for a failure.
        errors: standard errors of the objectives.
        violation: of constraints, 0 if all are kept.
        is_estimate: whether it was scored on a part of the items.

    >>> Told(np.array([0.5]), (1.0,), (0.0,), 0.0, False).violation
    0.0
    """

    genome: np.ndarray
    objectives: tuple[float, ...] | None
    errors: tuple[float, ...]
    violation: float
    is_estimate: bool


class Surrogate:
    """What is believed after so many tells.

    Attributes:
        processes: one an objective, and last, where anything failed or violated, that of failing.

    >>> points = np.random.default_rng(1).random((12, 2))
    >>> told = [Told(x, (-((x - 0.3) ** 2).sum(),), (0.0,), 0.0, False) for x in points]
    >>> surrogate = Surrogate(told, np.ones(2), np.zeros(2, int))
    >>> bool(np.abs(surrogate.optimum() - 0.3).max() < 0.05)
    True
    """

    def __init__(
        self,
        told: Sequence[Told],
        steps: np.ndarray,
        levels: np.ndarray,
        fitted: Sequence[Process] = (),
    ):
        """
        Args:
            told: of which at least two were scored.
            steps: (dimension,) float64, of the problem.
            levels: (dimension,) int, of the problem.
            fitted: processes to take; fitted to these tells where there are too few.
        """
        self._steps, self._levels = steps, levels
        scored = [t for t in told if t.objectives is not None]
        self._points = np.array([t.genome for t in scored])
        self._keeps = np.array([t.violation <= 0.0 for t in scored])
        values = np.array([t.objectives for t in scored])
        scale = values.std(axis=0)
        self._scale = np.where(scale > 1e-12, scale, 1.0)
        variances = np.array([t.errors for t in scored]) ** 2
        estimates = np.array([t.is_estimate for t in scored])
        if estimates.any():
            # a few items that are all right, or all wrong, have no standard error by chance
            usual = variances[estimates].mean(axis=0)
            variances[estimates] = 0.5 * (variances[estimates] + usual)
        values, variances = values / self._scale, variances / self._scale**2
        several = values.shape[1]
        self.processes = list(fitted[:several]) or [
            fit_process(self._points, values[:, i], variances[:, i], steps) for i in range(several)
        ]
        self._objectives = gaussian_process(self._points, values, variances, self.processes)
        self._means = self._posterior(self._points)
        self._failing: Any = None
        failing = self._failing_of(told)
        if failing.max() > 0.0:
            points, nothing = np.array([t.genome for t in told]), np.zeros((len(told), 1))
            failing /= failing.std() or 1.0
            last = list(fitted[several:]) or [fit_process(points, failing, nothing[:, 0], steps)]
            self.processes += last
            self._failing = gaussian_process(points, failing[:, None], nothing, last)

    @staticmethod
    def _failing_of(told: Sequence[Told]) -> np.ndarray:
        """Return (n,) float64, -1 where all is well, else above 0: the more, the worse."""
        violations = np.array([t.violation for t in told])
        usual = np.median(violations[violations > 0.0]) if violations.any() else 1.0
        worst = np.where([t.objectives is None for t in told], 1.0, violations / usual)
        return np.where(worst > 0.0, np.clip(worst, *_MISSED), -1.0)

    def _posterior(self, points: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self._objectives.posterior(torch.tensor(points)).mean.numpy()

    def _order(self) -> np.ndarray:
        """Return the indices of those that keep constraints, or else of all, best means first."""
        eligible = np.flatnonzero(self._keeps if self._keeps.any() else ~self._keeps)
        return eligible[np.argsort(beaten_by(self._means[eligible]), kind="stable")]

    def most_promising(self, pending: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the point to score next, (dimension,) float64.

        Args:
            pending: (n, dimension) float64, points in flight.
            rng: is drawn from.
        """
        import torch
        from botorch.generation.gen import gen_candidates_scipy

        promise = self._promise(pending, int(rng.integers(2**31)))
        tried = torch.tensor(self._tried(rng))[:, None, :]  # one point a batch
        with torch.no_grad():
            values = torch.nan_to_num(promise(tried), nan=-math.inf)
        best = tried[values.topk(_POLISHED).indices]
        point = best[0, 0].numpy()
        if self._levels.all():
            return point
        fixed = {int(gene): best[:, 0, gene] for gene in np.flatnonzero(self._levels)}
        with contextlib.suppress(RuntimeError):  # a matrix that is singular to rounding
            polished, values = gen_candidates_scipy(
                best,
                promise,
                lower_bounds=0.0,
                upper_bounds=1.0,
                fixed_features=fixed or None,
                options={"maxiter": _ITERATIONS},
            )
            point = polished[values.argmax(), 0].numpy()
        return np.clip(point, 0.0, 1.0)

    def _promise(self, pending: np.ndarray, seed: int) -> Any:
        """Return the logarithm of what a point is expected to add, as a function of (b, 1, d)."""
        import torch
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.acquisition.multi_objective import logei
        from botorch.sampling import SobolQMCNormalSampler

        order = self._order()[:_BASELINE]
        several = self._means.shape[1] > 1
        samples = torch.Size([_SAMPLES // 2 if several else _SAMPLES])
        options: dict[str, Any] = {
            "model": self._objectives,
            "X_baseline": torch.tensor(self._points[order]),
            "X_pending": torch.tensor(pending) if len(pending) else None,
            "sampler": SobolQMCNormalSampler(samples, seed=seed),
            "prune_baseline": False,
        }
        improvement: Any
        if several:
            means = self._means[order]
            front = means[beaten_by(means) == 0]
            # where no point is above the reference yet, the worst of the front takes its place
            reference = np.minimum(_REFERENCE / self._scale, front.min(axis=0) - 0.1)
            options["ref_point"] = torch.tensor(reference)
            improvement = logei.qLogNoisyExpectedHypervolumeImprovement(**options)
        else:
            improvement = qLogNoisyExpectedImprovement(**options)
        if self._failing is None:
            return improvement
        if not self._keeps.any():
            return self._log_keeping
        return lambda points: improvement(points) + self._log_keeping(points)

    def _log_keeping(self, points: Any) -> Any:
        """Return the log probability that a point fails in nothing; of (b, 1, d), (b,)."""
        import torch

        posterior = self._failing.posterior(points)
        return torch.special.log_ndtr(-posterior.mean / posterior.variance.sqrt())[..., 0, 0]

    def _tried(self, rng: np.random.Generator) -> np.ndarray:
        """Return (n, dimension) points, a third of them anywhere, the others near the best."""
        dimension = len(self._steps)
        anywhere = rng.random((_TRIED, dimension))
        centres = self._points[self._order()[:4]]
        centres = centres[rng.integers(len(centres), size=_TRIED)]
        sizes = 10.0 ** rng.uniform(*_NEAR, (_TRIED, 1)) * self._steps
        near = np.clip(centres + sizes * rng.standard_normal(centres.shape), 0.0, 1.0)
        # a small step seldom leaves a level
        jumps = (self._levels > 0) & (rng.random(near.shape) < 0.2)
        near = np.where(jumps, anywhere, near)
        return snapped(np.vstack([anywhere[: _TRIED // 3], near[_TRIED // 3 :]]), self._levels)

    def best_told(self) -> list[np.ndarray]:
        """Return the genomes on the front of the means, those that add most to it first."""
        order = self._order()
        means = self._means[order]
        if means.shape[1] > 1:
            front = beaten_by(means) == 0
            order, means = order[front], means[front]
            reference = np.minimum(_REFERENCE / self._scale, means.min(axis=0) - 0.1)
            added = hypervolume_contributions(means, reference)
            order = order[np.argsort(-added, kind="stable")]
        return list(self._points[order[: _RECOMMENDED - 1]])

    def optimum(self) -> np.ndarray:
        """Return the point of the highest mean of all objectives, near which there is data.

        Of a standard deviation less than the mean: far from all data, processes promise too much.
        """
        import torch
        from scipy.optimize import minimize  # type: ignore[import-untyped]

        order = self._order()
        start = self._points[order[np.argmax(self._means[order].mean(axis=1))]]

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.tensor(point[None, None, :], requires_grad=True)
            posterior = self._objectives.posterior(at)
            value = (posterior.mean - posterior.variance.sqrt()).mean()
            if self._failing is not None:
                value = value + self._log_keeping(at).sum()
            (slope,) = torch.autograd.grad(-value, at)
            return -float(value), slope[0, 0].numpy()

        box = [(0.0, 1.0) if n == 0 else (g, g) for g, n in zip(start, self._levels, strict=True)]
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=box)
        return np.clip(found.x, 0.0, 1.0)


def snapped(points: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return points with every gene that has levels at the middle of its level.

    Args:
        points: (..., dimension) float64 in [0, 1].
        levels: (dimension,) int, 0 for a gene that has none.

    >>> snapped(np.array([0.3, 0.3, 1.0]), np.array([0, 2, 4])).tolist()
    [0.3, 0.25, 0.875]
    """
    count = np.maximum(levels, 1)
    return np.where(levels > 0, (np.minimum(points * count // 1, count - 1) + 0.5) / count, points)


def beaten_by(vectors: np.ndarray) -> np.ndarray:
    """Return how many others are better than each in all objectives, (n,) int.

    Args:
        vectors: (n, objectives) float64, more is better.

    >>> beaten_by(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])).tolist()
    [0, 0, 1]
    """
    return (vectors[None, :, :] > vectors[:, None, :]).all(axis=2).sum(axis=1)
