"""The two kernels that every merge method runs on: weighted sums and masked task vectors.

Eager float32 forms, exact and in a fixed order: products and sums are separate operations
(no contraction to FMA), so the same recipe gives the same bits on the same kind of device.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from evomerge.operators import Masked
from evomerge.philox import philox

TILE = 1 << 18  # elements worked on at a time: a few float32 tiles stay in the cache


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
    """What thinning one task vector needs beside it: magnitudes' bounds, or a generator's key."""

    low: float = 0.0
    high: float = float("inf")
    key: tuple[int, int] = (0, 0)


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
    chances = [None] * len(models)
    if how.thin == "ranked":
        chances = [
            rank_chances(task_vector(base, t), float(how.density[i]), how.epsilon).reshape(-1)
            for i, t in enumerate(tensors)
        ]

    def thinned(start: int, stop: int) -> list[torch.Tensor]:
        taus = [task_vector(flat[start:stop], m[start:stop]).to(wide) for m in models]
        if how.thin in ("variance", "votes"):
            mask = _agreed(taus, how, kept)
            return [tau * mask for tau in taus]
        return [
            _thinned(tau, how, i, kept[i], start, None if c is None else c[start:stop])
            for i, (tau, c) in enumerate(zip(taus, chances, strict=True))
        ]

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
    return total / divisor.where(divisor > 0, 1.0) if how.normalize else total


def _thinned(
    tau: torch.Tensor,
    how: Masked,
    i: int,
    kept: Kept,
    start: int,
    chance: torch.Tensor | None,
) -> torch.Tensor:
    """Thin a tile of tau_i that begins at element `start`."""
    density = float(how.density[i])
    if how.thin in ("magnitude", "band"):
        if kept.low == 0.0 and kept.high == float("inf"):
            return tau
        size = tau.abs()
        return tau * ((size >= kept.low) & (size <= kept.high))
    if density >= 1.0:
        return tau
    draws = philox(tau.numel(), kept.key, tau.device, start)
    if how.thin == "random":
        thinned = tau * (draws < int(density * 2.0**32))
        return thinned / density if how.rescale and density > 0.0 else thinned
    mask = draws < (chance * 2.0**32).long()
    return tau * mask / chance.clamp(min=2.0**-32).to(tau.dtype) if how.rescale else tau * mask


def rank_chances(tau: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Return float64 probabilities rising with the rank of |tau| in its row (last dimension).

    density - epsilon for the smallest, density + epsilon for the largest, clipped to [0, 1];
    equals are ranked in their order. A row of one element has `density` (DELLA,
    arXiv:2406.11617, section 3).
    """
    rows = tau.abs().reshape(-1, tau.shape[-1] if tau.dim() else 1)
    n = rows.shape[1]
    order = rows.argsort(dim=1, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(n, device=tau.device).expand_as(order).contiguous())
    step = 2.0 * epsilon / (n - 1) if n > 1 else 0.0
    start = density - epsilon if n > 1 else density
    return (start + step * rank.double()).clamp(0.0, 1.0).view_as(tau)


def _agreed(taus: list[torch.Tensor], how: Masked, kept: list[Kept]) -> torch.Tensor:
    """Return the mask that all models share."""
    if how.thin == "variance":
        return variance(taus) >= kept[0].low
    total = torch.stack(taus).sum(0)
    votes = torch.zeros_like(total)
    for tau, threshold in zip(taus, how.threshold, strict=True):
        votes += tau.abs() > (total - tau).abs() * float(threshold)
    return votes >= float(how.least)


def variance(taus: list[torch.Tensor]) -> torch.Tensor:
    """Return the variance of n tensors across them (divided by n), float32 or float64."""
    return torch.stack(taus).var(0, unbiased=False)


def _largest(parts: list[torch.Tensor]) -> torch.Tensor:
    found = parts[0]
    for part in parts[1:]:
        found = torch.where(part.abs() >= found.abs(), part, found)
    return found


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
