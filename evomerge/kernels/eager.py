"""The reference back end: plain torch, on any device and in any floating dtype.

Exact and in a fixed order: products and sums are separate operations in float32 (no contraction
to FMA), so that the same plan gives the same bits on the same kind of device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from evomerge.kernels.chances import keep_by_chance, keep_by_rank
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.magnitude_histogram import in_bin, ranked
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import (
    Kept,
    MergePlan,
    Operand,
    SegmentedSums,
    Sums,
    WeightedSums,
    check_finite,
)
from evomerge.kernels.philox import philox
from evomerge.kernels.signs import Signs
from evomerge.kernels.task_vector import accumulator, task_vector, variance

TILE = 1 << 18  # elements worked on at a time: a few float32 tiles of 1 MiB stay in the cache

DEVICE_TILE = 1 << 24  # the same on a GPU, where tiles of 64 MiB keep all of it busy


def weighted_sum(
    tensors: Sequence[Operand], coefficients: np.ndarray, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return sum_k c_k W_k.

    Args:
        tensors: K tensors of one shape, any floating dtype, or their signs.
        coefficients: (K,) float64; rounded to float32 one by one. Terms of coefficient 0
            are left out, so one-hot coefficients give that source back, bit for bit.
        dtype: of the result, rounded to once; that of the accumulation by default.

    Returns:
        The sum, accumulated in float32 (float64 if a tensor is) in the order given.

    >>> weighted_sum([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])], np.array([0.5, 2.0]))
    tensor([6.5000, 1.0000])
    """
    wide = accumulator(tensors)
    terms: list[tuple[Operand, float]] = []
    for tensor, c in zip(tensors, coefficients, strict=True):
        if c:
            terms.append((tensor if isinstance(tensor, Signs) else tensor.reshape(-1), float(c)))

    def tile(start: int, stop: int) -> torch.Tensor:
        total = torch.zeros(stop - start, dtype=wide, device=tensors[0].device)
        for tensor, c in terms:
            # A product and a sum of their own: alpha of add_ would contract them.
            if isinstance(tensor, Signs):
                total += tensor.part(start, stop, wide, c)
            else:
                total += tensor[start:stop].to(wide) * c
        return total

    return _tiled(tensors[0], dtype or wide, tile)


def _tiled(
    like: Operand, dtype: torch.dtype, tile: Callable[[int, int], torch.Tensor]
) -> torch.Tensor:
    """Fill a tensor of `like`'s shape from tiles of its flattened elements."""
    out = torch.empty(like.numel(), dtype=dtype, device=like.device)
    for start, stop in _steps(like):
        out[start:stop] = tile(start, stop)
    return out.view(like.shape)


def _steps(like: Operand) -> Iterator[tuple[int, int]]:
    """Yield where the tiles of a tensor begin and end."""
    step = TILE if like.device.type == "cpu" else DEVICE_TILE
    for start in range(0, like.numel(), step):
        yield start, min(start + step, like.numel())


def masked_sum(
    base: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    masked: Masked,
    kept: Sequence[Kept],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return base + scale * what is left of the thinned and weighted task vectors, joined.

    Args:
        base: W_0.
        tensors: n models' tensors of base's shape.
        masked: what is done with them.
        kept: see `MaskedSums.kept`.
        dtype: of the result, rounded to once; that of the accumulation by default.

    Returns:
        A tensor of base's shape, computed in float32 (float64 if a tensor is).

    >>> trimmed = Masked(np.ones(1), np.array([0.5]), "magnitude")
    >>> masked_sum(torch.zeros(2), [torch.tensor([0.1, 3.0])], trimmed, [Kept(low=3.0)])
    tensor([0., 3.])
    """
    wide = accumulator([base, *tensors])
    flat, models = base.reshape(-1), [tensor.reshape(-1) for tensor in tensors]
    if masked.thin == "variance":
        kept = [_found(flat, models, kept[0])]

    def thinned(start: int, stop: int) -> list[torch.Tensor]:
        taus = [task_vector(flat[start:stop], m[start:stop]).to(wide) for m in models]
        if masked.thin == "variance":
            varies = variance(taus) >= kept[0].low
            return [tau * varies for tau in taus]
        if masked.thin == "votes":
            agreed = _agreed(taus, masked)
            return [tau * agreed for tau in taus]
        return [_thinned(tau, masked, i, kept[i], start) for i, tau in enumerate(taus)]

    weights = [float(w) for w in masked.weight]
    if masked.energy:
        # SCE (arXiv:2408.07990), "calculate": w_i = E[tau_i^2] / sum_j E[tau_j^2] of what is kept
        energy = [0.0] * len(models)
        for start, stop in _steps(flat):
            for i, tau in enumerate(thinned(start, stop)):
                energy[i] += float((tau.double() ** 2).sum())  # of all: means have one divisor
        weights = [w * e / (sum(energy) or 1.0) for w, e in zip(weights, energy, strict=True)]

    def tile(start: int, stop: int) -> torch.Tensor:
        taus = thinned(start, stop)
        parts = [tau * w for tau, w in zip(taus, weights, strict=True)]
        return flat[start:stop].to(wide) + _joined(parts, weights, masked) * masked.scale

    return _tiled(base, dtype or wide, tile)


def _found(base: torch.Tensor, models: Sequence[torch.Tensor], kept: Kept) -> Kept:
    """Return the least variance that is kept, searched in its bin if need be."""
    if kept.place is None:
        return kept
    spread = variance([task_vector(base, model).float() for model in models])
    return Kept(low=ranked(in_bin(spread, kept.place.bin), kept.place.rank))


def _joined(
    parts: Sequence[torch.Tensor], weights: Sequence[float], masked: Masked
) -> torch.Tensor:
    """Return the thinned and weighted task vectors as one (TIES, arXiv:2306.01708, algorithm 1)."""
    if masked.join == "largest":
        return _largest(parts)
    whole = torch.zeros_like(parts[0])
    for part in parts:
        whole += part  # sum_i w_i tau_i, whose sign is elected
    if masked.join == "sum" and not masked.normalize:
        return whole
    elected = whole.sign() if masked.join == "elect" else None
    total, divisor = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        left = part != 0
        if elected is not None:
            left &= part.sign() == elected
        total += part * left
        divisor += left * abs(weight)
    # times the inverse, not a division: what the native kernel looks up
    return total * (1.0 / divisor.where(divisor > 0, 1.0)) if masked.normalize else total


def _largest(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    largest = parts[0]
    for part in parts[1:]:
        largest = torch.where(part.abs() >= largest.abs(), part, largest)
    return largest + 0.0  # no negative zero, as in a sum


def _thinned(tau: torch.Tensor, masked: Masked, i: int, kept: Kept, start: int) -> torch.Tensor:
    """Thin a tile of tau_i that begins at element `start`."""
    if masked.thin in ("magnitude", "band"):
        if kept.low == 0.0 and kept.high == float("inf"):
            return tau
        size = tau.abs()
        return tau * ((size >= kept.low) & (size <= kept.high))
    draws = philox(tau.numel(), kept.key, tau.device, start)
    if masked.thin == "random":
        threshold, inverse = keep_by_chance(masked.density[i], masked)
        return tau * (draws < threshold) * inverse
    assert kept.levels is not None, "a ranked mask needs ranks"
    level = kept.levels.reshape(-1)[start : start + tau.numel()].long()
    thresholds, inverses = keep_by_rank(masked.density[i], masked)
    drawn = draws < torch.from_numpy(thresholds).to(tau.device)[level]
    return tau * drawn * torch.from_numpy(inverses).to(tau.device)[level]


def _agreed(taus: Sequence[torch.Tensor], masked: Masked) -> torch.Tensor:
    """Return where `least` models or more find an element important (arXiv:2405.07813)."""
    assert masked.threshold is not None, "votes need thresholds"
    total, votes = torch.zeros_like(taus[0]), torch.zeros_like(taus[0])
    for tau in taus:
        total += tau
    for tau, threshold in zip(taus, masked.threshold, strict=True):
        # the TALL mask: |tau_i| > threshold_i |sum_j tau_j - tau_i|
        votes += tau.abs() > (total - tau).abs() * float(threshold)
    return votes >= float(masked.least)


class EagerKernels:
    """Merges a plan tensor by tensor; see `merge_plan.MergeKernels`.

    >>> from evomerge.kernels.merge_plan import Operands
    >>> operands = Operands({"w": (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))})
    >>> plan = MergePlan(operands, torch.float32, (WeightedSums(("w",), np.array([0.5, 0.5])),))
    >>> live = {"w": torch.empty(2)}
    >>> digests = EagerKernels().merge(plan, live)
    >>> live["w"]
    tensor([2., 3.])
    """

    nbytes = 0  # nothing is kept between merges

    def merge(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """See `merge_plan.MergeKernels.merge`."""
        digests = {}
        for group in plan.groups:
            for row, name in enumerate(group.names):
                merged = self._merged(plan, group, row)
                check_finite(name, merged)
                digests[name] = tile_digests(merged)
                targets[name].copy_(merged)
        return digests

    def _merged(self, plan: MergePlan, group: Sums, row: int) -> torch.Tensor:
        name = group.names[row]
        if isinstance(group, WeightedSums):
            return weighted_sum(plan.operands.tensors[name], group.of(row), plan.dtype)
        operands = plan.operands.dense(name)
        if isinstance(group, SegmentedSums):
            starts, coefficients = group.starts[row], group.coefficients[row]
            return self._segments(operands, starts, coefficients, plan.dtype)
        base, *models = operands
        return masked_sum(base, models, group.masked, group.kept[row], plan.dtype)

    def _segments(
        self,
        tensors: Sequence[torch.Tensor],
        starts: np.ndarray,
        coefficients: np.ndarray,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return a tensor whose runs of elements are each a weighted sum of its own."""
        flat = [tensor.reshape(-1) for tensor in tensors]
        merged = torch.empty_like(flat[0], dtype=dtype)
        stops = [*starts[1:], len(merged)]
        for start, stop, row in zip(starts, stops, coefficients, strict=True):
            parts = [tensor[start:stop] for tensor in flat]
            merged[start:stop] = weighted_sum(parts, row, dtype)
        return merged.view_as(tensors[0])
