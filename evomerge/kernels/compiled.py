"""The back end compiled for a GPU: a fused pass over memory where eager torch makes many.

What torch.compile makes of it (Triton on a GPU; C++ on a processor, where `native` is quicker)
says the same as `eager.py`, operation by operation, and no product is contracted with a sum,
so the bits are the same. Random draws are a pass of their own, of a byte an element and model.
Compiling takes seconds and is kept in torch's own cache; a machine without a compiler says so once
and goes on in eager torch.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec

import numpy as np
import torch

from evomerge.kernels import eager
from evomerge.kernels.chances import keep_by_chance
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import Kept
from evomerge.kernels.philox import GROUP, GROUP_BLOCKS, philox_rounds

log = logging.getLogger("evomerge")

P = ParamSpec("P")

_ROUNDED = (torch.bfloat16, torch.float32)  # dtypes of task vectors that are rounded here

SMALLEST = 1 << 16  # elements below which a call costs more than its passes

_broken = False


def weighted_sum(
    tensors: Sequence[torch.Tensor], coefficients: np.ndarray, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return what `eager.weighted_sum` returns.

    >>> weighted_sum([torch.ones(2), torch.ones(2)], np.array([0.5, 1.0]), torch.float32)
    tensor([1.5000, 1.5000])
    """
    plain = any(t.dtype == torch.float64 for t in tensors) or not np.all(coefficients)
    if not plain and tensors[0].numel() >= SMALLEST:
        device = tensors[0].device
        scalars = [torch.tensor(float(c), dtype=torch.float32, device=device) for c in coefficients]
        flat = [tensor.reshape(-1) for tensor in tensors]
        merged = _call(_weighted, flat, scalars, dtype or torch.float32)
        if merged is not None:
            return merged.view_as(tensors[0])
    return eager.weighted_sum(tensors, coefficients, dtype)


def masked_sum(
    base: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    masked: Masked,
    kept: Sequence[Kept],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return what `eager.masked_sum` returns.

    >>> trimmed = Masked(np.ones(1), np.array([0.5]), "magnitude")
    >>> model = torch.tensor([0.1, 3.0])
    >>> masked_sum(torch.zeros(2), [model], trimmed, [Kept(low=3.0)], torch.float32)
    tensor([0., 3.])
    """
    wide = any(t.dtype == torch.float64 for t in tensors) or base.dtype not in _ROUNDED
    known = masked.thin in ("magnitude", "band", "random") and masked.join != "largest"
    if not wide and known and base.numel() >= SMALLEST:
        merged = _fused(base, tensors, masked, kept, dtype or torch.float32)
        if merged is not None:
            return merged.view_as(base)
    return eager.masked_sum(base, tensors, masked, kept, dtype)


def _fused(
    base: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    masked: Masked,
    kept: Sequence[Kept],
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """Return a masked sum, flattened; None where nothing compiles."""
    random = masked.thin == "random"
    chances = [keep_by_chance(density, masked) for density in masked.density]
    rows = [
        (float(weight), of_model.low, of_model.high, inverse)
        for weight, of_model, (_, inverse) in zip(masked.weight, kept, chances, strict=True)
    ]
    draws = []
    for of_model in kept if random else ():
        drawn = _drawn(base, of_model.key)
        if drawn is None:
            return None
        draws.append(drawn)
    return _call(
        _masked,
        base.reshape(-1),
        [tensor.reshape(-1) for tensor in tensors],
        torch.tensor(rows, dtype=torch.float32, device=base.device),
        torch.tensor([t for t, _ in chances], dtype=torch.int64, device=base.device),
        draws,
        torch.tensor(float(masked.scale), dtype=torch.float32, device=base.device),
        _Form(random, masked.join == "elect", masked.normalize),
        dtype,
    )


class _Form(NamedTuple):
    """What is compiled in; what changes from candidate to candidate comes as tensors."""

    random: bool
    elect: bool
    normalize: bool


def _weighted(
    tensors: list[torch.Tensor], scalars: list[torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, c in zip(tensors, scalars, strict=True):
        total = total + tensor.to(torch.float32) * c
    return total.to(dtype)


def _masked(
    base: torch.Tensor,
    tensors: list[torch.Tensor],
    scalars: torch.Tensor,
    below: torch.Tensor,
    drawn: list[tuple[torch.Tensor, torch.Tensor]],
    scale: torch.Tensor,
    form: _Form,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The eager kernel's steps; rows of `scalars` are weight, low, high, inverse of a model."""
    origin = base.to(torch.float32)
    parts = []
    for i, tensor in enumerate(tensors):
        weight, low, high, inverse = scalars[i, 0], scalars[i, 1], scalars[i, 2], scalars[i, 3]
        tau = tensor.to(torch.float32) - origin
        tau = _to_bfloat16(tau) if base.dtype == torch.bfloat16 else tau
        if form.random:
            tau = tau * (_draws(base, *drawn[i]) < below[i]) * inverse
        else:
            size = tau.abs()
            tau = tau * ((size >= low) & (size <= high))
        parts.append(tau * weight)
    whole = torch.zeros_like(origin)
    for part in parts:
        whole = whole + part
    if not form.elect and not form.normalize:
        return (origin + whole * scale).to(dtype)
    total, divisor = torch.zeros_like(origin), torch.zeros_like(origin)
    for i, part in enumerate(parts):
        left = part != 0
        if form.elect:
            left = left & (part.sign() == whole.sign())
        total = total + part * left
        divisor = divisor + left * scalars[i, 0].abs()
    if form.normalize:
        total = total * (1.0 / torch.where(divisor > 0, divisor, torch.ones_like(divisor)))
    return (origin + total * scale).to(dtype)


def _drawn(like: torch.Tensor, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return words with the high bytes of `philox`'s draws, and with the low ones of its groups.

    None where nothing compiles.
    """
    groups = (like.numel() + GROUP - 1) // GROUP
    blocks = GROUP_BLOCKS * groups, GROUP_BLOCKS * ((groups + GROUP - 1) // GROUP)
    words = torch.tensor(key, dtype=torch.int64, device=like.device)
    high, low = (_call(_words, n, words, stream) for stream, n in enumerate(blocks))
    return None if high is None or low is None else (high, low)


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
    """Return the bytes that `philox_bytes` has at some places; see there for their order."""
    at = index & (GROUP - 1)
    block = index // GROUP * GROUP_BLOCKS + ((at >> 2) & 1) * 4 + ((at >> 3) & 3)
    return (words[at >> 5, block] >> ((at & 3) * 8)) & 0xFF


def _to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest bfloat16, ties to even: a cast there and back is optimized out."""
    bits = x.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)


_COMPILED: dict[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] = {}


def _call(
    function: Callable[P, torch.Tensor], *arguments: P.args, **options: P.kwargs
) -> torch.Tensor | None:
    """Run a compiled function; None, said once, where there is nothing to compile with."""
    global _broken
    if _broken:
        return None
    if function not in _COMPILED:
        _COMPILED[function] = torch.compile(function, dynamic=True, fullgraph=True)
    try:
        return _COMPILED[function](*arguments, **options)
    except torch.OutOfMemoryError:
        raise  # the candidate's trouble, not the compiler's
    except Exception as error:  # a missing compiler shows in many ways
        _broken = True
        log.warning("merging in eager torch, which is slower: %s", str(error).strip()[:200])
        return None


class CompiledKernels(eager.EagerKernels):
    """Merges a plan tensor by tensor; what is not compiled is merged by eager torch.

    Small tensors, double precision, ranks, votes and variances are not.

    >>> kernels = CompiledKernels()
    >>> kernels.weighted_sum([torch.ones(2), torch.ones(2)], np.array([0.5, 1.0]), torch.float32)
    tensor([1.5000, 1.5000])
    """

    weighted_sum = staticmethod(weighted_sum)
    masked_sum = staticmethod(masked_sum)
