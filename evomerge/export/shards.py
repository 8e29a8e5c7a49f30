"""Safetensors files of a model, written tensor by tensor, so that one is in memory at a time."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from evomerge.dtypes import SIZE
from evomerge.sources.safetensors_file import header_bytes

SHARD_BYTES = 5_000_000_000  # of one safetensors file at most, as transformers 4 and mergekit do

Entries = dict[str, tuple[str, tuple[int, ...]]]  # name -> (safetensors dtype, shape)


def write_shards(
    entries: Entries,
    tensors: Iterable[tuple[str, torch.Tensor]],
    folder: Path,
    limit: int = SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Write a model's tensors into a directory, with an index where there are several files.

    Args:
        entries: of all tensors, in their order.
        tensors: name and tensor of each, in that order and of that dtype and shape.
        folder: a directory.
        limit: bytes of a file, but for one with a single larger tensor.
        stem: what the files' names begin with.

    Raises:
        OSError: the disk does not take them.

    >>> import tempfile
    >>> from safetensors.torch import load_file
    >>> with tempfile.TemporaryDirectory() as out:
    ...     write_shards({"w": ("F32", (2,))}, [("w", torch.ones(2))], Path(out))
    ...     load_file(Path(out) / "model.safetensors")
    {'w': tensor([1., 1.])}
    """
    shards = _sharded(entries, limit)
    stream, total = iter(tensors), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}.safetensors"
        if len(shards) > 1:
            file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        with open(folder / file, "wb") as out:
            out.write(header_bytes(shard))
            for _, tensor in itertools.islice(stream, len(shard)):
                total += tensor.nbytes
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                out.write(flat.numpy().data)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _sharded(entries: Mapping[str, tuple[str, tuple[int, ...]]], limit: int) -> list[Entries]:
    """Part tensors, in their order, into shards of at most `limit` bytes, or of one tensor each."""
    shards: list[Entries] = [{}]
    filled = 0
    for name, (code, shape) in entries.items():
        taken = math.prod(shape) * SIZE[code]
        if shards[-1] and filled + taken > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = (code, shape)
        filled += taken
    return shards
