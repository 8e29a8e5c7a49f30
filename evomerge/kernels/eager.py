"""The two kernels that every merge method runs on: weighted sums and masked task vectors.

Eager float32 forms, exact and in a fixed order: products and sums are separate operations
(no contraction to FMA), so the same recipe gives the same bits on the same kind of device.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from evomerge.kernels.masked import Masked
from evomerge.kernels.philox import philox

TILE = 1 << 18  # elements worked on at a time: a few float32 tiles stay in the cache

CHANCES = 1 << 16  # a random draw is one of these

LEVELS = 256  # of magnitude in a row, for probabilities that hang on it


def weighted_sum(
    tensors: list[torch.Tensor], coefficients: np.ndarray, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return sum_k c_k W_k.

    Args:
        tensors: K tensors of one shape, any floating dtype.
        coefficients: (K,) float64; rounded to float32 one by one. Terms of coefficient 0
            are left out, so one-hot coefficients give that source back, bit for bit.
        dtype: of the result, rounded to once; that of the accumulation by default.

    Returns:
        The sum, accumulated in float32 (float64 if a tensor is) in the order given.
    """
    wide = _accumulator(tensors)
    terms = [(t.reshape(-1), float(c)) for t, c in zip(tensors, coefficients, strict=True) if c]

    def tile(start: int, stop: int) -> torch.Tensor:
        total = torch.zeros(stop - start, dtype=wide, device=tensors[0].device)
        for tensor, c in terms:
            # A product and a sum of their own: alpha of add_ would contract them.
            total += tensor[start:stop].to(wide) * c
        return total

    return _tiled(tensors[0], dtype or wide, tile)


def _tiled(
    like: torch.Tensor, dtype: torch.dtype, tile: Callable[[int, int], torch.Tensor]
) -> torch.Tensor:
    """Fill a tensor of `like`'s shape from tiles of its flattened elements."""
    out = torch.empty(like.numel(), dtype=dtype, device=like.device)
    step = TILE if like.device.type == "cpu" else max(like.numel(), 1)
    for start in range(0, like.numel(), step):
        stop = min(start + step, like.numel())
        out[start:stop] = tile(start, stop)
    return out.view_as(like)


class Kept(NamedTuple):
    """What thinning one task vector needs beside it.

    Attributes:
        low, high: the magnitudes kept; of a variance, the least.
        key: of the random generator.
        levels: uint8, of the base's size: every element's rank (see `rank_levels`).
    """

    low: float = 0.0
    high: float = float("inf")
    key: tuple[int, int] | None = None
    levels: torch.Tensor | None = None


def masked_sum(
    base: torch.Tensor,
    tensors: list[torch.Tensor],
    how: Masked,
    kept: list[Kept],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return base + scale * what is left of the thinned and weighted task vectors, joined.

    Args:
        base: W_0.
        tensors: n models' tensors of base's shape.
        how: see `Masked`.
        kept: for each model.
        dtype: of the result, rounded to once; that of the accumulation by default.

    Returns:
        A tensor of base's shape, computed in float32 (float64 if a tensor is).
    """
    wide = _accumulator([base, *tensors])
    flat, models = base.reshape(-1), [t.reshape(-1) for t in tensors]

    def thinned(start: int, stop: int) -> list[torch.Tensor]:
        taus = [task_vector(flat[start:stop], m[start:stop]).to(wide) for m in models]
        if how.thin in ("variance", "votes"):
            mask = _agreed(taus, how, kept)
            return [tau * mask for tau in taus]
        return [_thinned(tau, how, i, kept[i], start) for i, tau in enumerate(taus)]

    weights = [float(w) for w in how.weight]
    if how.energy:
        energy = [float((tau.double() ** 2).mean()) for tau in thinned(0, flat.numel())]
        weights = [w * e / (sum(energy) or 1.0) for w, e in zip(weights, energy, strict=True)]

    def tile(start: int, stop: int) -> torch.Tensor:
        taus = thinned(start, stop)
        parts = [tau * w for tau, w in zip(taus, weights, strict=True)]
        return flat[start:stop].to(wide) + _joined(parts, weights, how) * how.scale

    return _tiled(base, dtype or wide, tile)


def _joined(parts: list[torch.Tensor], weights: list[float], how: Masked) -> torch.Tensor:
    if how.join == "largest":
        return _largest(parts)
    whole = torch.zeros_like(parts[0])
    for part in parts:
        whole += part
    if how.join == "sum" and not how.normalize:
        return whole
    sign = whole.sign() if how.join == "elect" else None
    total, divisor = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        left = part != 0
        if sign is not None:
            left &= part.sign() == sign
        total += part * left
        divisor += left * abs(weight)
    return total * (1.0 / divisor.where(divisor > 0, 1.0)) if how.normalize else total


def _thinned(tau: torch.Tensor, how: Masked, i: int, kept: Kept, start: int) -> torch.Tensor:
    """Thin a tile of tau_i that begins at element `start`."""
    if how.thin in ("magnitude", "band"):
        if kept.low == 0.0 and kept.high == float("inf"):
            return tau
        size = tau.abs()
        return tau * ((size >= kept.low) & (size <= kept.high))
    draws = philox(tau.numel(), kept.key, tau.device, start)
    if how.thin == "random":
        threshold, inverse = keep_by_chance(how.density[i], how)
        return tau * (draws < threshold) * inverse
    level = kept.levels.reshape(-1)[start : start + tau.numel()].long()
    thresholds, inverses = (
        torch.from_numpy(x).to(tau.device)[level] for x in keep_by_rank(how.density[i], how)
    )
    return tau * (draws < thresholds) * inverses


def keep_by_chance(density: float, how: Masked) -> tuple[int, float]:
    """Return below which of 2^16 draws an element is kept, and by what it is multiplied then.

    The inverse of the probability as the draws have it, where `how` asks to rescale.
    """
    threshold = int(min(float(density), 1.0) * CHANCES)
    return threshold, CHANCES / threshold if how.rescale and threshold else 1.0


def keep_by_rank(density: float, how: Masked) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for the 256 levels of magnitude in a row, (256,) int64 and float32.

    From density - epsilon for the smallest to density + epsilon for the largest, clipped to
    [0, 1] (DELLA, arXiv:2406.11617, section 3).
    """
    first, step = chances_of_rank(density, how)
    chance = first + np.arange(LEVELS, dtype=np.float32) * step
    thresholds = np.clip(chance, 0.0, CHANCES).astype(np.int64)
    inverses = np.float32(CHANCES) / np.maximum(thresholds, 1).astype(np.float32)
    return thresholds, inverses if how.rescale else np.ones_like(inverses)


def chances_of_rank(density: float, how: Masked) -> tuple[np.float32, np.float32]:
    """Return the threshold of the first level, before it is rounded down, and what a level adds.

    A density of 1 keeps everything.
    """
    epsilon = how.epsilon if density < 1.0 else 0.0
    first = (density - epsilon) * CHANCES + 0.5
    return np.float32(first), np.float32(2.0 * epsilon * CHANCES / (LEVELS - 1))


def rank_levels(tau: torch.Tensor) -> torch.Tensor:
    """Return uint8 ranks of |tau| in its row (last dimension), from 0 for the smallest to 255.

    The nearest of 256 levels; equals are ranked in their order. A row of one element has 128.
    """
    n = tau.shape[-1] if tau.dim() else 1
    if n <= 1 or not tau.numel():
        return torch.full(tau.shape, LEVELS // 2, dtype=torch.uint8, device=tau.device)
    rows = tau.abs().reshape(-1, n)
    order = rows.argsort(dim=1, stable=True)
    steps = torch.arange(n, device=tau.device)
    level = ((steps * (LEVELS - 1) + (n - 1) // 2) // (n - 1)).to(torch.uint8)
    levels = torch.empty(rows.shape, dtype=torch.uint8, device=tau.device)
    return levels.scatter_(1, order, level.expand_as(order).contiguous()).view_as(tau)


def _agreed(taus: list[torch.Tensor], how: Masked, kept: list[Kept]) -> torch.Tensor:
    """Return the mask that all models share."""
    if how.thin == "variance":
        return variance(taus) >= kept[0].low
    total, votes = torch.zeros_like(taus[0]), torch.zeros_like(taus[0])
    for tau in taus:
        total += tau
    for tau, threshold in zip(taus, how.threshold, strict=True):
        votes += tau.abs() > (total - tau).abs() * float(threshold)
    return votes >= float(how.least)


def variance(taus: list[torch.Tensor]) -> torch.Tensor:
    """Return the variance of n tensors across them (divided by n), float32 or float64.

    0 where all are equal: they are taken from the first.
    """
    apart = [tau - taus[0] for tau in taus]
    mean = sum(apart[1:], start=apart[0]) / len(taus)
    return sum((a - mean) ** 2 for a in apart) / len(taus)


def _largest(parts: list[torch.Tensor]) -> torch.Tensor:
    found = parts[0]
    for part in parts[1:]:
        found = torch.where(part.abs() >= found.abs(), part, found)
    return found + 0.0  # no negative zero, as in a sum


def task_vector(base: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return tensor - base in base's dtype, rounded once.

    The rounding is none where the two are within a factor of two of each other (Sterbenz),
    which holds for nearly every weight of a fine-tune.
    """
    dtype = _accumulator([base, tensor])
    return (tensor.to(dtype) - base.to(dtype)).to(base.dtype)


def _accumulator(tensors: list[torch.Tensor]) -> torch.dtype:
    wide = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def gram_matrix(
    tensors: list[torch.Tensor], origin: torch.Tensor | None = None, chunk: int = 1 << 22
) -> np.ndarray:
    """Return the (K, K) inner products of K flattened tensors less `origin`, in float64."""
    flat = [t.reshape(-1) for t in tensors]
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat[0].numel(), chunk):
        rows = torch.stack([f[start : start + chunk].double() for f in flat])
        if origin is not None:
            rows -= origin.reshape(-1)[start : start + chunk].double()
        total += (rows @ rows.T).cpu().numpy()
    return total
