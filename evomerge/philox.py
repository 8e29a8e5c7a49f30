"""Random numbers that hang on a key and an element's index alone: Philox4x32-7."""

import torch

GROUP = 128  # elements whose draws come from sixteen neighbouring blocks
ROUNDS = 7  # the fewest that pass BigCrush (Salmon et al., table 2)
_UINT32 = 0xFFFFFFFF


def philox(
    size: int, key: tuple[int, int], device: torch.device | str = "cpu", start: int = 0
) -> torch.Tensor:
    """Return `size` draws as int64 in [0, 2^16), two from each word of Philox4x32-7.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The sixteen blocks from
    16 g on serve the 128 elements from 128 g on: word w of block 8 s + 4 t + u is the pair of
    elements at 16 w + 8 s + 2 u + t among their 64, its low half the even element's. So blocks
    are made side by side, and their words lie in rows.

    Args:
        size: the number of draws.
        key: two 32-bit words.
        device: where the draws are made.
        start: the first element.
    """
    first, skipped = divmod(start, GROUP)
    groups = (skipped + size + GROUP - 1) // GROUP
    blocks = torch.arange(first * 16, (first + groups) * 16, dtype=torch.int64, device=device)
    zero = torch.zeros_like(blocks)
    words = philox_rounds([blocks & _UINT32, blocks >> 32, zero, zero], key)
    rows = [w.reshape(-1, 2, 2, 4).transpose(2, 3).reshape(-1, 16) for w in words]
    pairs = torch.stack(rows, dim=1).reshape(-1)
    draws = torch.stack([pairs & 0xFFFF, pairs >> 16], dim=1).reshape(-1)
    return draws[skipped : skipped + size]


def philox_rounds(
    counter: list[torch.Tensor], key: tuple[int, int], rounds: int = ROUNDS
) -> list[torch.Tensor]:
    """Apply the rounds of Philox4x32 to four int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps, which keeps all 64 bits right
        high0, low0 = (p0 >> 32) & _UINT32, p0 & _UINT32
        high1, low1 = (p1 >> 32) & _UINT32, p1 & _UINT32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _UINT32, (k1 + 0xBB67AE85) & _UINT32
    return [c0, c1, c2, c3]
