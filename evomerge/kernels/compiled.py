"""The kernels compiled for a GPU: a fused pass over memory where eager torch makes many.

What torch.compile makes of it (Triton on a GPU; C++ on a processor, where `native` is quicker)
says the same as `eager.py`, operation by operation, and no product is contracted with a sum,
so the bits are the same. Random draws are a pass of their own, of a byte an element and model.
Compiling takes seconds and is kept in torch's own cache; a machine without a compiler says so once
and goes on in eager torch.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from evomerge.kernels import eager
from evomerge.kernels.masked import Masked
from evomerge.kernels.philox import GROUP, philox_rounds

log = logging.getLogger("evomerge")

_ROUNDED = (torch.bfloat16, torch.float32)  # dtypes of task vectors that are rounded here

SMALLEST = 1 << 16  # elements below which a call costs more than its passes

_broken = False


def weighted_sum(
    tensors: list[torch.Tensor], coefficients: np.ndarray, dtype: torch.dtype
) -> torch.Tensor:
    """Return what `eager.weighted_sum` returns."""
    plain = any(t.dtype == torch.float64 for t in tensors) or not np.all(coefficients)
    if plain or tensors[0].numel() < SMALLEST:
        return eager.weighted_sum(tensors, coefficients, dtype)
    device = tensors[0].device
    scalars = [torch.tensor(float(c), dtype=torch.float32, device=device) for c in coefficients]
    flat = [t.reshape(-1) for t in tensors]
    found = _call(_weighted, flat, scalars, dtype)
    if found is None:
        return eager.weighted_sum(tensors, coefficients, dtype)
    return found.view_as(tensors[0])


def masked_sum(
    base: torch.Tensor,
    tensors: list[torch.Tensor],
    how: Masked,
    kept: list[eager.Kept],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return what `eager.masked_sum` returns."""
    wide = any(t.dtype == torch.float64 for t in tensors) or base.dtype not in _ROUNDED
    ours = how.thin in ("magnitude", "band", "random") and how.join in ("sum", "elect")
    if wide or not ours or base.numel() < SMALLEST:
        return eager.masked_sum(base, tensors, how, kept, dtype)
    chances = [eager.keep_by_chance(density, how) for density in how.density]
    rows = [
        (float(weight), k.low, k.high, inverse)
        for weight, k, (_, inverse) in zip(how.weight, kept, chances, strict=True)
    ]
    below = [threshold for threshold, _ in chances]
    random = how.thin == "random"
    drawn = [_drawn(base, k.key) for k in kept] if random else []
    found = _call(
        _masked,
        base.reshape(-1),
        [t.reshape(-1) for t in tensors],
        torch.tensor(rows, dtype=torch.float32, device=base.device),
        torch.tensor(below, dtype=torch.int64, device=base.device),
        drawn,
        torch.tensor(float(how.scale), dtype=torch.float32, device=base.device),
        _How(random, how.join == "elect", how.normalize),
        dtype,
    )
    if found is None:
        return eager.masked_sum(base, tensors, how, kept, dtype)
    return found.view_as(base)


def _weighted(
    tensors: list[torch.Tensor], scalars: list[torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, c in zip(tensors, scalars, strict=True):
        total = total + tensor.to(torch.float32) * c
    return total.to(dtype)


class _How(NamedTuple):
    """What is compiled in."""

    random: bool
    elect: bool
    normalize: bool


def _masked(
    base: torch.Tensor,
    tensors: list[torch.Tensor],
    scalars: torch.Tensor,
    below: torch.Tensor,
    drawn: list[tuple[torch.Tensor, torch.Tensor]],
    scale: torch.Tensor,
    how: _How,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The eager kernel's steps; rows of `scalars` are weight, low, high, inverse of a model."""
    origin = base.to(torch.float32)
    parts = []
    for i, tensor in enumerate(tensors):
        weight, low, high, inverse = scalars[i, 0], scalars[i, 1], scalars[i, 2], scalars[i, 3]
        tau = tensor.to(torch.float32) - origin
        tau = _to_bfloat16(tau) if base.dtype == torch.bfloat16 else tau
        if how.random:
            tau = tau * (_draws(base, *drawn[i]) < below[i]) * inverse
        else:
            size = tau.abs()
            tau = tau * ((size >= low) & (size <= high))
        parts.append(tau * weight)
    whole = torch.zeros_like(origin)
    for part in parts:
        whole = whole + part
    if not how.elect and not how.normalize:
        return (origin + whole * scale).to(dtype)
    total, divisor = torch.zeros_like(origin), torch.zeros_like(origin)
    for i, part in enumerate(parts):
        left = part != 0
        if how.elect:
            left = left & (part.sign() == whole.sign())
        total = total + part * left
        divisor = divisor + left * scalars[i, 0].abs()
    if how.normalize:
        total = total * (1.0 / torch.where(divisor > 0, divisor, torch.ones_like(divisor)))
    return (origin + total * scale).to(dtype)


def _drawn(like: torch.Tensor, key: tuple[int, int]) -> tuple[torch.Tensor | None, ...]:
    """Return words with the high bytes of `philox`'s draws, and with the low ones of its groups.

    None where nothing compiles, as `_call` then says of what is to use them.
    """
    groups = (like.numel() + GROUP - 1) // GROUP
    blocks = GROUP // 16 * groups, GROUP // 16 * ((groups + GROUP - 1) // GROUP)
    words = torch.tensor(key, dtype=torch.int64, device=like.device)
    return tuple(_call(_words, n, words, stream) for stream, n in enumerate(blocks))


def _words(blocks: int, key: torch.Tensor, stream: int) -> torch.Tensor:
    """Return (4, blocks) int32: a word of every block in a row."""
    counter = torch.arange(blocks, dtype=torch.int64, device=key.device)
    zero = torch.zeros_like(counter)
    words = philox_rounds([counter & 0xFFFFFFFF, counter >> 32, zero + stream, zero], key)
    return torch.stack([word.to(torch.int32) for word in words])


def _draws(like: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    element = torch.arange(like.numel(), dtype=torch.int64, device=like.device)
    return _bytes(high, element) * 256 + _bytes(low, element // GROUP)


def _bytes(words: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the bytes that `philox_bytes` has at some places."""
    at = index & (GROUP - 1)
    block = index // GROUP * 8 + ((at >> 2) & 1) * 4 + ((at >> 3) & 3)
    return (words[at >> 5, block] >> ((at & 3) * 8)) & 0xFF


def _to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest bfloat16, ties to even: a cast there and back is optimized out."""
    bits = x.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)


_COMPILED: dict[Callable, Callable] = {}


def _call(function: Callable, *arguments: object) -> torch.Tensor | None:
    """Run a compiled function; None, said once, where there is nothing to compile with."""
    global _broken
    if _broken:
        return None
    if function not in _COMPILED:
        _COMPILED[function] = torch.compile(function, dynamic=True, fullgraph=True)
    try:
        return _COMPILED[function](*arguments)
    except torch.OutOfMemoryError:
        raise  # the candidate's trouble, not the compiler's
    except Exception as error:  # a missing compiler shows in many ways
        _broken = True
        log.warning("merging in eager torch, which is slower: %s", str(error).strip()[:200])
        return None
