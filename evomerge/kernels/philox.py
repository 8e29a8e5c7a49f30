"""Random numbers that depend on a key and an element's index alone: Philox4x32-7.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405.
"""

from collections.abc import Sequence

import torch

GROUP = 128  # elements that share the low byte of their draws

GROUP_BLOCKS = GROUP // 16  # a block gives sixteen bytes

ROUNDS = 7  # the fewest that pass BigCrush (Salmon et al., table 2)

_UINT32 = 0xFFFFFFFF

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57  # Random123's PHILOX_M4x32_0 and _1

_WEYL = 0x9E3779B9, 0xBB67AE85  # Random123's PHILOX_W32_0 and _1: golden ratio, sqrt(3) - 1


def philox(
    size: int, key: tuple[int, int], device: torch.device | str = "cpu", start: int = 0
) -> torch.Tensor:
    """Return `size` draws as int64, each uniform in [0, 2^16).

    An element has a high byte of its own; the low one it shares with the 127 others of its group,
    from a multiple of 128 on, which halves the work. So each falls below a threshold as often as
    it should, but those of a group a little more often together (correlations up to 1 / 256).

    Args:
        size: the number of draws.
        key: two 32-bit words.
        device: where the draws are made.
        start: the first element.

    >>> philox(3, (1, 2))
    tensor([16141,  6669,  2061])
    >>> philox(1, (1, 2), start=2)
    tensor([2061])
    """
    first, last = start // GROUP, (start + size - 1) // GROUP
    low = philox_bytes(last - first + 1, key, device, first, stream=1).repeat_interleave(GROUP)
    skipped = start - first * GROUP
    high = philox_bytes(size, key, device, start)
    return high * 256 + low[skipped : skipped + size]


def philox_bytes(
    size: int,
    key: tuple[int, int],
    device: torch.device | str = "cpu",
    start: int = 0,
    stream: int = 0,
) -> torch.Tensor:
    """Return `size` bytes as int64, sixteen from each block of Philox4x32-7.

    The eight blocks from 8 g on, whose third word is the stream, give the 128 bytes from 128 g on:
    word w of block 4 t + u has those from 32 w + 8 u + 4 t on, its lowest first. So blocks are
    made side by side, and their words lie in rows.

    >>> philox_bytes(2, (1, 2))
    tensor([63, 26])
    """
    first, skipped = divmod(start, GROUP)
    groups = (skipped + size + GROUP - 1) // GROUP
    blocks = torch.arange(
        first * GROUP_BLOCKS, (first + groups) * GROUP_BLOCKS, dtype=torch.int64, device=device
    )
    zero = torch.zeros_like(blocks)
    words = philox_rounds([blocks & _UINT32, blocks >> 32, zero + stream, zero], key)
    rows = torch.stack([w.reshape(-1, 2, 4).transpose(1, 2) for w in words], dim=1).reshape(-1, 1)
    shifts = torch.arange(0, 32, 8, device=device)
    return ((rows >> shifts) & 0xFF).reshape(-1)[skipped : skipped + size]


def philox_rounds(
    counter: Sequence[torch.Tensor],
    key: tuple[int, int] | torch.Tensor,
    rounds: int = ROUNDS,
) -> list[torch.Tensor]:
    """Apply the rounds of Philox4x32 to four int64 tensors that hold 32-bit words.

    >>> [int(w) for w in philox_rounds([torch.tensor(0)] * 4, (0, 0))]
    [1601156873, 227098468, 1326587777, 1332939336]
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # int64 wraps, which keeps all 64 bits of an unsigned product right
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (p0 >> 32) & _UINT32, p0 & _UINT32
        high1, low1 = (p1 >> 32) & _UINT32, p1 & _UINT32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _UINT32, (k1 + _WEYL[1]) & _UINT32
    return [c0, c1, c2, c3]
