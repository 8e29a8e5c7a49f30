"""Random numbers that hang on a key and an element's index alone: Philox4x32-10."""

import torch

GROUP = 128  # elements whose draws come from sixteen neighbouring blocks
_UINT32 = 0xFFFFFFFF


def philox(
    size: int, key: tuple[int, int], device: torch.device | str = "cpu", start: int = 0
) -> torch.Tensor:
    """Return `size` draws as int64 in [0, 2^16), two from each word of Philox4x32-10.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Element e is half
    (j div 16) of the eight that block 16 (e div 128) + j mod 16 gives, j = e mod 128: an order
    in which sixteen blocks are made side by side and their draws lie in rows.

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
    counter = [blocks & _UINT32, blocks >> 32, zero, zero]
    halves = [h for word in philox_rounds(counter, key) for h in (word & 0xFFFF, word >> 16)]
    rows = torch.stack([h.reshape(-1, 16) for h in halves], dim=1)
    return rows.reshape(-1)[skipped : skipped + size]


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
