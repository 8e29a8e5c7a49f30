"""A checksum of a model's weights that every kernel can make on its way, on any device."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
import xxhash

from evomerge.kernels.philox import philox_rounds

TILE_BYTES = 1 << 16  # a tile of each operand of a merge fits a processor's second cache

_TILES = 1 << 8  # digested at a time: 16 MiB of words, widened to 32


@functools.cache
def digest_keys() -> np.ndarray:
    """Return the (16384,) uint32 odd numbers by which a tile's words are multiplied.

    >>> digest_keys()[:2]
    array([1601156873,  227098469], dtype=uint32)
    """
    blocks = torch.arange(TILE_BYTES // 16, dtype=torch.int64)
    zero = torch.zeros_like(blocks)
    words = torch.stack(philox_rounds([blocks, zero, zero, zero], (0, 0)), dim=1).reshape(-1)
    return (words | 1).numpy().astype(np.uint32)


def tile_digests(tensor: torch.Tensor) -> np.ndarray:
    """Return one uint64 a tile of 64 KiB: sum of word_j * key_j over its 32-bit words, mod 2^64.

    A multilinear hash (Carter and Wegman 1979): one word that changes always shows.

    Args:
        tensor: of any dtype, on any device; digested where it is.

    >>> tile_digests(torch.tensor([1, 2], dtype=torch.int32))
    array([2055353811], dtype=uint64)
    """
    keys = torch.from_numpy(digest_keys().astype(np.int64)).to(tensor.device)
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = data.numel() // TILE_BYTES * TILE_BYTES
    last = data[whole:]
    last = torch.nn.functional.pad(last, (0, -last.numel() % 4)).view(torch.int32)
    tiles = data[:whole]
    if tiles.storage_offset() % 4:  # as 32-bit words only from a multiple of four bytes on
        tiles = tiles.clone()
    words = tiles.view(torch.int32).view(-1, len(keys))
    digests = [_sums(some, keys) for some in words.split(_TILES)]
    if last.numel():
        digests.append(_sums(last[None], keys[: last.numel()]))
    if not digests:
        return np.empty(0, np.uint64)
    return torch.cat(digests).cpu().numpy().view(np.uint64)


def _sums(words: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return ((words.long() & 0xFFFFFFFF) * keys).sum(1)


class Checksum:
    """XXH3-128 over the names, dtypes, shapes and tiles' digests of a sequence of tensors.

    >>> checksum = Checksum()
    >>> checksum.update("norm.weight", torch.ones(3))
    >>> checksum.hexdigest()
    '08126563d0dfabb6b51845616fb14f0f'
    """

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()

    def update(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor."""
        self.add(name, tensor.dtype, tensor.shape, tile_digests(tensor))

    def add(self, name: str, dtype: torch.dtype, shape: Sequence[int], digests: np.ndarray) -> None:
        """Add a tensor whose tiles were digested by whoever made it."""
        self._hash.update(f"{name} {dtype} {tuple(shape)}\n".encode())
        self._hash.update(digests.astype("<u8", copy=False).tobytes())

    def hexdigest(self) -> str:
        """Return 32 hex digits."""
        return self._hash.hexdigest()
