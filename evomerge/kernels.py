"""The two kernels that every merge method runs on: weighted sums and masked task vectors.

Eager float32 forms, exact and in a fixed order: products and sums are separate operations
(no contraction to FMA), so the same recipe gives the same bits on the same kind of device.
"""

import numpy as np
import torch

from evomerge.operators import Masked

_UINT32 = 0xFFFFFFFF


def weighted_sum(tensors: list[torch.Tensor], coefficients: np.ndarray) -> torch.Tensor:
    """Return sum_k c_k W_k.

    Args:
        tensors: K tensors of one shape, any floating dtype.
        coefficients: (K,) float64; rounded to float32 one by one. Terms of coefficient 0
            are left out, so one-hot coefficients give that source back, bit for bit.

    Returns:
        The sum in float32 (float64 if a tensor is), accumulated in the order given.
    """
    dtype = _accumulator(tensors)
    total = torch.zeros_like(tensors[0], dtype=dtype)
    for tensor, c in zip(tensors, coefficients, strict=True):
        if c != 0.0:
            total += tensor.to(dtype) * float(c)
    return total


def masked_sum(
    base: torch.Tensor,
    tensors: list[torch.Tensor],
    how: Masked,
    thresholds: list[float],
    keys: list[tuple[int, int]],
) -> torch.Tensor:
    """Return base + scale * consensus of the thinned and weighted task vectors.

    Args:
        base: W_0.
        tensors: n models' tensors of base's shape.
        how: see `Masked`.
        thresholds: for thin "magnitude", the least magnitude kept of each task vector.
        keys: for thin "random", the generator's key of each task vector.

    Returns:
        float32 (float64 if a tensor is), of base's shape.
    """
    dtype = _accumulator([base, *tensors])
    parts = []
    for i, tensor in enumerate(tensors):
        tau = task_vector(base, tensor).to(dtype)
        density = float(how.density[i])
        if how.thin == "random":
            tau *= random_mask(tau.numel(), density, keys[i], tau.device).view_as(tau)
            if how.rescale and density > 0.0:
                tau /= density
        else:
            tau *= tau.abs() >= thresholds[i]
        parts.append(tau * float(how.weight[i]))
    sign = torch.stack(parts).sum(0).sign() if how.elect else None
    total, divisor = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part, weight in zip(parts, how.weight, strict=True):
        kept = part.sign() == sign if how.elect else torch.ones_like(part, dtype=torch.bool)
        kept &= part != 0
        total += part * kept
        divisor += kept * abs(float(weight))
    if how.normalize:
        total /= torch.where(divisor > 0, divisor, torch.ones_like(divisor))
    return base.to(dtype) + total * how.scale


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


def gram_matrix(tensors: list[torch.Tensor], chunk: int = 1 << 22) -> np.ndarray:
    """Return the (K, K) inner products of K flattened tensors, float64 throughout."""
    flat = [t.reshape(-1) for t in tensors]
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat[0].numel(), chunk):
        rows = torch.stack([f[start : start + chunk].double() for f in flat])
        total += (rows @ rows.T).cpu().numpy()
    return total


class MagnitudeTable:
    """Finds the k-th largest magnitude of one task vector, for any k, without sorting it again.

    A histogram of the top 15 bits below the sign of the float32 magnitudes; for bfloat16
    task vectors these are all the bits, so the bin is the threshold. Elsewhere the elements
    of one bin are searched.
    """

    BINS = 1 << 15

    def __init__(self, tau: torch.Tensor):
        """
        Args:
            tau: a task vector of any floating dtype and shape; not kept.
        """
        self.size = tau.numel()
        self.exact = tau.dtype == torch.bfloat16
        counts = torch.bincount(_bins(tau), minlength=self.BINS)
        self.above = torch.flip(torch.cumsum(torch.flip(counts, [0]), 0), [0]).cpu().numpy()

    def threshold(self, tau: torch.Tensor, density: float) -> float:
        """Return the least magnitude kept at `density`.

        Args:
            tau: the same task vector again.
            density: share of the elements to keep; k = floor(density * size), as in
                mergekit. All elements that equal the k-th are kept.

        Returns:
            The k-th largest magnitude; infinity for k = 0 (nothing is kept).
        """
        k = int(density * self.size)
        if k >= self.size:
            return 0.0
        if k < 1:
            return float("inf")
        index = int(np.searchsorted(-self.above, -k, side="right")) - 1  # last bin with >= k above
        if self.exact:
            return _from_bin(index)
        inside = tau.reshape(-1)[_bins(tau) == index].abs()
        rank = k - (int(self.above[index + 1]) if index + 1 < self.BINS else 0)
        return float(torch.topk(inside, rank).values[-1])


def _bins(tau: torch.Tensor) -> torch.Tensor:
    bits = tau.reshape(-1).to(torch.float32).abs().view(torch.int32)
    return bits >> 16


def _from_bin(index: int) -> float:
    return float(np.array([index << 16], np.uint32).view(np.float32)[0])


def random_mask(
    size: int, density: float, key: tuple[int, int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return a bool mask of `size` elements: keep where the 32-bit draw < floor(density 2^32).

    The draws depend on `key` and the element's index alone, so masks are nested in density
    and the same on every device.
    """
    return philox(size, key, device) < int(density * 2.0**32)


def philox(size: int, key: tuple[int, int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return `size` draws of Philox4x32-10 as int64 in [0, 2^32).

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Element e is lane
    e mod 4 of the block whose counter is e div 4.

    Args:
        size: the number of draws.
        key: two 32-bit words.
        device: where the draws are made.
    """
    blocks = torch.arange((size + 3) // 4, dtype=torch.int64, device=device)
    zero = torch.zeros_like(blocks)
    counter = [blocks & _UINT32, blocks >> 32, zero, zero]
    return torch.stack(philox_rounds(counter, key), dim=1).reshape(-1)[:size]


def philox_rounds(counter: list[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Apply the ten rounds of Philox4x32 to four int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps, which keeps all 64 bits right
        high0, low0 = (p0 >> 32) & _UINT32, p0 & _UINT32
        high1, low1 = (p1 >> 32) & _UINT32, p1 & _UINT32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _UINT32, (k1 + 0xBB67AE85) & _UINT32
    return [c0, c1, c2, c3]
