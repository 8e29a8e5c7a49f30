"""Which of 2^16 random draws keep an element: of DARE's masks, and of DELLA's by rank."""

import numpy as np
import torch

from evomerge.kernels.masked import Masked

CHANCES = 1 << 16  # a random draw is one of these, see `philox.philox`

LEVELS = 256  # of magnitude in a row: a rank in one byte is within 1/510 of the exact one


def keep_by_chance(density: float, masked: Masked) -> tuple[int, float]:
    """Return below which of 2^16 draws an element is kept, and by what it is multiplied then.

    The factor is the inverse of the probability as the draws have it, where `masked` asks to
    rescale (DARE, arXiv:2311.03099: delta / (1 - p), with 1 - p the density).

    >>> keep_by_chance(0.25, Masked(np.ones(1), np.ones(1), "random", rescale=True))
    (16384, 4.0)
    """
    threshold = int(min(float(density), 1.0) * CHANCES)
    return threshold, CHANCES / threshold if masked.rescale and threshold else 1.0


def keep_by_rank(density: float, masked: Masked) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for the 256 levels of magnitude in a row, (256,) int64 and float32.

    From density - epsilon for the smallest to density + epsilon for the largest, clipped to
    [0, 1] (DELLA, arXiv:2406.11617, section 3).

    >>> thresholds, _ = keep_by_rank(0.5, Masked(np.ones(1), np.ones(1), "ranked", epsilon=0.25))
    >>> thresholds[[0, 255]]
    array([16384, 49152])
    """
    first, step = chances_of_rank(density, masked)
    chance = first + np.arange(LEVELS, dtype=np.float32) * step
    thresholds = np.clip(chance, 0.0, CHANCES).astype(np.int64)
    if not masked.rescale:
        return thresholds, np.ones(LEVELS, np.float32)
    return thresholds, np.float32(CHANCES) / np.maximum(thresholds, 1).astype(np.float32)


def chances_of_rank(density: float, masked: Masked) -> tuple[np.float32, np.float32]:
    """Return the threshold of the first level, before it is rounded down, and what a level adds.

    A density of 1 keeps everything.

    >>> chances_of_rank(1.0, Masked(np.ones(1), np.ones(1), "ranked", epsilon=0.25))
    (np.float32(65536.5), np.float32(0.0))
    """
    epsilon = masked.epsilon if density < 1.0 else 0.0
    first = (density - epsilon) * CHANCES + 0.5  # a half, so that rounding down is to the nearest
    return np.float32(first), np.float32(2.0 * epsilon * CHANCES / (LEVELS - 1))


def rank_levels(tau: torch.Tensor) -> torch.Tensor:
    """Return uint8 ranks of |tau| in its row (last dimension), from 0 for the smallest to 255.

    The nearest of 256 levels; equals are ranked in their order. A row of one element has 128.

    >>> rank_levels(torch.tensor([[0.3, -0.1, 0.2]]))
    tensor([[255,   0, 128]], dtype=torch.uint8)
    """
    n = tau.shape[-1] if tau.dim() else 1
    if n <= 1 or not tau.numel():
        return torch.full(tau.shape, LEVELS // 2, dtype=torch.uint8, device=tau.device)
    rows = tau.abs().reshape(-1, n)
    order = rows.argsort(dim=1, stable=True)
    steps = torch.arange(n, device=tau.device)
    # round(rank * 255 / (n - 1)), in whole numbers
    level = ((steps * (LEVELS - 1) + (n - 1) // 2) // (n - 1)).to(torch.uint8)
    levels = torch.empty(rows.shape, dtype=torch.uint8, device=tau.device)
    return levels.scatter_(1, order, level.expand_as(order).contiguous()).view_as(tau)
