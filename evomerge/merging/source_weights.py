"""The weights of opened sources, tensor by tensor: dense, or with low-rank updates as factors."""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import SourceChanged
from evomerge.kernels.merge_plan import Operand, Operands
from evomerge.kernels.signs import Signs
from evomerge.kernels.task_vector import gram_matrix
from evomerge.sources.alignment import aligned
from evomerge.sources.lora import LowRank
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source, open_source
from evomerge.sources.trust import NOBODY, Trust

# Sets of operands that are kept: a search over methods comes back to each. They hold addresses,
# some kilobytes, and no copy of a tensor.
_MOST_OPERANDS = 8


class SourceWeights:
    """Reads through the operating system's page cache, which the workers of a node share.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(folder, 0)))
    ...     weights = SourceWeights({"a": source}, torch.device("cpu"))
    ...     weights.tensor("a", "model.norm.weight").shape
    torch.Size([16])
    """

    def __init__(
        self, sources: Mapping[str, Source], device: torch.device, room: int | None = None
    ):
        """
        Args:
            sources: by name.
            device: to which tensors are copied.
            room: bytes of them that stay there from one merge to the next; None for all. The first
                that are read stay, and no later one takes their place: every merge reads all of
                them in one order, in which the tensor that was used last is the last to be needed.
        """
        self._sources, self._device, self._room = dict(sources), device, room
        self._files: dict[Path, Any] = {}  # as safetensors opens them; it has no types
        self._on_device: dict[tuple[Path, str, tuple[int, ...]], torch.Tensor] = {}
        self._kept_bytes, self._passes = 0, False
        self._merged: set[str] = set()  # names of sources that merges read
        self._sender = _Sender(device)
        self._operands: dict[tuple[tuple[str, tuple[str, ...]], ...], Operands] = {}

    def add(self, sources: Mapping[str, Source]) -> None:
        """Know more sources, by name."""
        self._sources |= sources

    def keeps(self, sources: Iterable[str]) -> bool:
        """Tell whether every tensor of sources stays on the device once it was read.

        Args:
            sources: that are merged; those that were asked for before count too.
        """
        self._merged |= set(sources)
        if self._room is None:
            return True
        return sum(self._sources[source].merged_bytes for source in self._merged) <= self._room

    def tensor(self, source: str, name: str) -> torch.Tensor:
        """Return one tensor of a source on the device.

        In its own dtype; where an adapter adds to it, W + scale * B A in float32, unrounded.
        """
        stored, factor = self._stored(source, name)
        tensor = self._read(stored)
        if factor is None:
            return tensor
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        left, right = self._factors(factor, dtype)
        return torch.addmm(tensor.to(dtype), left, right, alpha=factor.scale)

    def operand(self, source: str, name: str) -> Operand:
        """Return one tensor of a source as kernels add it up: its signs, where it is held so."""
        packed = self._sources[source].signs.get(name)
        if packed is None:
            return self.tensor(source, name)
        dtype: torch.dtype = getattr(torch, STORED_DTYPES[packed.dtype])
        return Signs(self._read(packed.codes), packed.bits, packed.scale, packed.shape, dtype)

    def operands(self, reads: Mapping[str, tuple[str, ...]], keep: bool) -> Operands:
        """Return tensors with what they are made of: the tensors of sources.

        Args:
            reads: tensor's name -> sources.
            keep: return the same object when it is asked for again.
        """
        key = tuple(reads.items())
        operands = self._operands.pop(key, None)
        if operands is None:
            tensors = {}
            for name, sources in reads.items():
                tensors[name] = tuple(self.operand(source, name) for source in sources)
            operands = Operands(tensors)
        if keep:
            self._operands[key] = operands  # at the end: the latest is the last to go
            if len(self._operands) > _MOST_OPERANDS:
                del self._operands[next(iter(self._operands))]
        return operands

    def adapted(self, sources: Sequence[str]) -> bool:
        """Tell whether one of the sources has an adapter."""
        return any(self._sources[source].adapter for source in sources)

    def joined(
        self, sources: Sequence[str], name: str, coefficients: np.ndarray
    ) -> tuple[list[Operand], np.ndarray]:
        """Return fewer operands and coefficients of the same sum over k of c_k W_k.

        What sources share, a base below its adapters, comes once. The updates stay factors:
        sum_k c_k s_k B_k A_k is one product of matrices, of the ranks' sum, in float32. Signs come
        last.

        Args:
            sources: K names.
            name: of the tensor.
            coefficients: (K,).
        """
        is_packed = np.array([name in self._sources[source].signs for source in sources])
        others = [s for s, packed in zip(sources, is_packed, strict=True) if not packed]
        stored, updates = self.terms(others, name, coefficients[~is_packed])
        tensors: list[Operand] = [self._read(tensor) for tensor, _ in stored]
        weights = [c for _, c in stored]
        if updates:
            dtype = torch.promote_types(tensors[0].dtype, torch.float32)
            left, right = self.joined_factors(updates, dtype)
            tensors.append(left @ right)
            weights.append(1.0)
        for source, packed, c in zip(sources, is_packed, coefficients, strict=True):
            if packed:
                tensors.append(self.operand(source, name))
                weights.append(float(c))
        return tensors, np.array(weights)

    def terms(
        self, sources: Sequence[str], name: str, coefficients: np.ndarray
    ) -> tuple[list[tuple[Tensor, float]], list[tuple[LowRank, float]]]:
        """Return what sum_k c_k W_k is made of: stored tensors and updates, with coefficients.

        What sources share comes once; updates of coefficient 0 are left out.

        Args:
            sources, name, coefficients: see `joined`.
        """
        shared: dict[tuple[str, str], tuple[Tensor, float]] = {}
        updates = []
        for source, c in zip(sources, map(float, coefficients), strict=True):
            stored, factor = self._stored(source, name)
            key = (_real(stored.file), stored.key)  # however its folder is written
            before = shared[key][1] if key in shared else 0.0
            shared[key] = (stored, c + before)
            if factor is not None and c:
                updates.append((factor, c))
        return list(shared.values()), updates

    def joined_factors(
        self, updates: Sequence[tuple[LowRank, float]], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors, (out, ranks' sum) and (ranks' sum, in), of a sum of updates.

        Args:
            updates: at least one, with coefficients c_k.
            dtype: of the factors.
        """
        # [c_1 s_1 B_1, c_2 s_2 B_2, ...] [A_1; A_2; ...]
        lefts, rights = [], []
        for factor, c in updates:
            left, right = self._factors(factor, dtype)
            lefts.append(left * (c * factor.scale))
            rights.append(right)
        return torch.cat(lefts, dim=1), torch.cat(rights)

    @contextlib.contextmanager
    def read_once(self) -> Iterator[None]:
        """Keep no tensor on the device that is read meanwhile."""
        passes, self._passes = self._passes, True
        try:
            yield
        finally:
            self._passes = passes

    def _stored(self, source: str, name: str) -> tuple[Tensor, LowRank | None]:
        """Return where a source's tensor lies, and what an adapter adds to it."""
        opened = self._sources[source]
        if opened.adapter is None:
            return opened.tensors[name], None
        stored = opened.adapter.replaced.get(name, opened.tensors[name])
        return stored, opened.adapter.factors.get(name)

    def factors(self, factor: LowRank, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of an update as the adapter has them: A (rank, in), B (out, rank)."""
        return self._read(factor.a).to(dtype), self._read(factor.b).to(dtype)

    def _factors(self, factor: LowRank, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of an update as the tensor has them: (out, rank), (rank, in)."""
        a, b = self.factors(factor, dtype)
        return (a.T, b.T) if factor.transposed else (b, a)

    def _read(self, stored: Tensor) -> torch.Tensor:
        key = (stored.file, stored.key, stored.shape)
        if key in self._on_device:
            return self._on_device[key]
        if stored.file not in self._files:
            try:
                self._files[stored.file] = safe_open(stored.file, framework="pt", device="cpu")
            except FileNotFoundError:
                raise SourceChanged(f"{stored.file} is gone; run the same again") from None
        file = self._files[stored.file]
        tensor: torch.Tensor
        if stored.rows is None:
            tensor = file.get_tensor(stored.key)
        else:
            tensor = file.get_slice(stored.key)[: stored.rows]
        if stored.filler is not None:
            missing = self._read(stored.filler)[stored.rows :]
            tensor = torch.cat([tensor, missing.to(tensor.device, tensor.dtype)])
        tensor = self._sender.send(tensor)
        has_room = self._room is None or self._kept_bytes + tensor.nbytes <= self._room
        if has_room and not self._passes:
            self._on_device[key] = tensor
            self._kept_bytes += tensor.nbytes
        return tensor


class _Sender:
    """Copies tensors to a device by way of page-locked memory, of which it has two pieces in turn.

    So that one is filled from the file while the other one travels.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._pieces = [torch.empty(0, dtype=torch.uint8)] * 2
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device, in order with the current stream's other work."""
        if self._device.type != "cuda":
            return tensor.to(self._device)
        turn = self._turn = 1 - self._turn
        sent = self._sent[turn]
        if sent is not None:
            sent.synchronize()
        if self._pieces[turn].numel() < tensor.nbytes:
            self._pieces[turn] = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True)
        staged = self._pieces[turn][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        staged.copy_(tensor)
        there = staged.to(self._device, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._sent[turn] = event
        return there


def read_stored(stored: Tensor) -> torch.Tensor:
    """Return a stored tensor as it is, in its own dtype.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = open_source(str(tiny_llama(folder, 0)))
    ...     read_stored(source.tensors["model.norm.weight"]).dtype
    torch.bfloat16
    """
    with safe_open(stored.file, framework="pt", device="cpu") as file:
        tensor: torch.Tensor = file.get_tensor(stored.key)
        return tensor


@functools.lru_cache(maxsize=1 << 12)  # files of sources
def _real(file: Path) -> str:
    return os.path.realpath(file)


def flattened(source: Source) -> np.ndarray:
    """Return a source's (parameters,) float32 weights in canonical order.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flattened(open_source(str(tiny_llama(folder, 0)))).dtype
    dtype('float32')
    """
    weights = SourceWeights({source.name: source}, torch.device("cpu"))
    parts = [weights.tensor(source.name, name).float().reshape(-1) for name in source.tensors]
    flat: np.ndarray = torch.cat(parts).numpy()
    return flat


def grams_of(
    places: Sequence[str],
    first: str,
    trust: Trust = NOBODY,
) -> np.ndarray:
    """Return the (tensors, models, models) float64 inner products of the models at places.

    Args:
        places: as `open_source` takes them.
        first: of the model that the others' vocabularies follow.
        trust: see `open_source`.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     place = str(tiny_llama(folder, 0))
    ...     grams_of([place], place).shape
    (20, 1, 1)
    """
    measure = open_source(first, trust)
    opened = {place: aligned(measure, open_source(place, trust)) for place in places}
    weights = SourceWeights(opened, torch.device("cpu"))
    names = opened[places[0]].tensors
    return np.stack([gram_matrix([weights.tensor(p, n) for p in places], None) for n in names])
