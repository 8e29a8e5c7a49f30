"""Gaussian processes over genes, fitted here and asked by BoTorch (arXiv:1910.06403).

The kernel and the priors are those of Hvarfner et al. 2024, arXiv:2402.02229, but that genes share
a length scale from which each may differ a little: with as many genes as candidates, lengths that
are free gene by gene fit chance.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Of the length that genes share, in a box of d of them: sqrt(d) times the mode of Hvarfner et al.
_LENGTH = math.exp(math.sqrt(2.0) - 3.0)
# Standard deviations, in logarithms, of that length, and of a gene's own from it.
_SHARED_SPREAD, _OWN_SPREAD = 1.0, 0.3
_SHORTEST = 0.025  # length, as in BoTorch
_NOISE, _LEAST_NOISE = -4.0, 1e-4  # log-normal prior of what noise is not told, as in BoTorch
_ITERATIONS = 50


class Process(NamedTuple):
    """What a Gaussian process was fitted to: its kernel's lengths, its noise and its mean.

    Attributes:
        lengths: (dimension,) float64, of the kernel exp(-|(x - x') / lengths|^2 / 2).
        noise: variance that is not told.
        mean: of the process.

    >>> Process(np.ones(2), 0.01, 0.0).noise
    0.01
    """

    lengths: np.ndarray
    noise: float
    mean: float


def fit_process(x: np.ndarray, y: np.ndarray, variances: np.ndarray, steps: np.ndarray) -> Process:
    """Return the process of the highest posterior density, given some of its values.

    In closed form, which takes a tenth of the time that BoTorch's own fit does (Rasmussen &
    Williams 2006, section 5.4.1).

    Args:
        x: (n, dimension) float64, points.
        y: (n,) float64, values, on a scale on which they differ by about 1.
        variances: (n,) float64, of the noise of each that is known.
        steps: (dimension,) float64; genes are expected to have lengths in proportion to these.

    >>> x = np.linspace(0, 1, 8)[:, None]
    >>> process = fit_process(x, np.sin(9 * x[:, 0]), np.zeros(8), np.ones(1))
    >>> 0.1 < process.lengths[0] < 0.4 and process.noise < 0.01
    True
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    dimension = x.shape[1]
    squares = x**2
    usual = math.log(_LENGTH) + 0.5 * math.log(dimension)

    def unpacked(logs: np.ndarray) -> tuple[np.ndarray, float]:
        own, shared, noise = logs[:dimension], logs[dimension], logs[dimension + 1]
        return np.maximum(steps * np.exp(shared + own), _SHORTEST), math.exp(noise)

    def solved(lengths: np.ndarray, noise: float) -> tuple[np.ndarray, ...]:
        """Return the kernel, the Cholesky factor and the inverse with noise, and the mean."""
        z = x / lengths
        norms = (z**2).sum(axis=1)
        kernel = np.exp(-0.5 * np.maximum(norms[:, None] + norms - 2.0 * z @ z.T, 0.0))
        factor = np.linalg.cholesky(kernel + np.diag(variances + noise))
        root = np.linalg.inv(factor)
        inverse = root.T @ root
        weights = inverse.sum(axis=0)
        return kernel, factor, inverse, weights @ y / weights.sum()

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the log density, and its gradient; the mean is always at its best."""
        lengths, noise = unpacked(logs)
        kernel, factor, inverse, mean = solved(lengths, noise)
        alpha = inverse @ (y - mean)
        # d loss / d K = (K^-1 - alpha alpha^T) / 2; d K / d log l = K * (x - x')^2 / l^2
        slope = 0.5 * (inverse - np.outer(alpha, alpha))
        weighted = slope * kernel
        apart = weighted.sum(axis=0) @ squares - (x * (weighted @ x)).sum(axis=0)
        by_length = 2.0 * apart / lengths**2
        own, shared = logs[:dimension] / _OWN_SPREAD, (logs[dimension] - usual) / _SHARED_SPREAD
        far = logs[dimension + 1] - _NOISE
        value = 0.5 * (y - mean) @ alpha + np.log(np.diag(factor)).sum()
        value += 0.5 * (own @ own + shared**2) + logs[dimension + 1] + 0.5 * far**2
        of_noise = noise * np.trace(slope) + 1.0 + far
        of_shared = by_length.sum() + shared / _SHARED_SPREAD
        return value, np.array([*(by_length + own / _OWN_SPREAD), of_shared, of_noise])

    first = np.array([*np.zeros(dimension), usual, _NOISE - 1.0])
    bounds = [(-3.0, 3.0)] * dimension + [(usual - 3.0, usual + 3.0), (math.log(_LEAST_NOISE), 2.0)]
    options = {"maxiter": _ITERATIONS}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    lengths, noise = unpacked(found.x)
    return Process(lengths, noise, float(solved(lengths, noise)[3]))


def gaussian_process(
    x: np.ndarray, y: np.ndarray, variances: np.ndarray, processes: Sequence[Process]
) -> Any:
    """Return BoTorch's model of values, with processes that were fitted to them.

    Args:
        x: (n, dimension) float64, points.
        y: (n, outputs) float64, values.
        variances: (n, outputs) float64, of the noise of each that is known.
        processes: one an output.

    Returns:
        A `botorch.models.SingleTaskGP`, without gradients but to the points that it is asked for.

    >>> x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    >>> model = gaussian_process(x, y, np.zeros((2, 1)), [Process(np.array([0.2]), 1e-4, 1.5)])
    >>> import torch
    >>> model.posterior(torch.tensor([[0.5]], dtype=torch.float64)).mean.round(decimals=3).tolist()
    [[1.5]]
    """
    import torch
    from botorch.models import SingleTaskGP

    noise = variances + [process.noise for process in processes]
    model = SingleTaskGP(
        torch.tensor(x), torch.tensor(y), torch.tensor(noise), outcome_transform=None
    )
    batch = (len(processes),) if len(processes) > 1 else ()
    lengths = torch.tensor(np.array([process.lengths for process in processes]))
    means = torch.tensor([process.mean for process in processes], dtype=torch.float64)
    model.covar_module.lengthscale = lengths.reshape(*batch, 1, -1)
    model.mean_module.constant = means.reshape(batch)
    return model.requires_grad_(False).eval()
