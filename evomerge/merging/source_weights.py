"""The weights of opened sources, tensor by tensor: dense, or with low-rank updates as factors."""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from evomerge.errors import CandidateFailure
from evomerge.kernels.eager import gram_matrix
from evomerge.sources.lora import LowRank
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source, open_source


class Weights:
    """Reads through the operating system's page cache, which the workers of a node share."""

    def __init__(self, sources: Mapping[str, Source], device: torch.device, keep: bool = True):
        """
        Args:
            sources: by name.
            device: to which tensors are copied.
            keep: copy each of them there once, which takes all sources' room on a GPU.
        """
        self._sources, self._device, self._keep = sources, device, keep
        self._files: dict = {}
        self._there: dict[tuple, torch.Tensor] = {}

    def tensor(self, source: str, name: str) -> torch.Tensor:
        """Return one tensor of a source on the device.

        In its own dtype; where an adapter adds to it, W + scale * B A in float32, unrounded.
        """
        stored, factor = self._found(source, name)
        tensor = self._read(stored)
        if factor is None:
            return tensor
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        return torch.addmm(tensor.to(dtype), *self._factors(factor, dtype), alpha=factor.scale)

    def adapted(self, sources: Sequence[str]) -> bool:
        """Tell whether one of the sources has an adapter."""
        return any(self._sources[s].adapter for s in sources)

    def joined(
        self, sources: Sequence[str], name: str, coefficients: np.ndarray
    ) -> tuple[list[torch.Tensor], np.ndarray]:
        """Return fewer tensors and coefficients of the same sum over k of c_k W_k.

        What sources share, a base below its adapters, comes once. The updates stay factors:
        sum_k c_k s_k B_k A_k is one product of matrices, of the ranks' sum, in float32.

        Args:
            sources: K names.
            name: of the tensor.
            coefficients: (K,).
        """
        shared: dict[tuple, tuple[Tensor, float]] = {}
        updates = []
        for source, c in zip(sources, map(float, coefficients), strict=True):
            stored, factor = self._found(source, name)
            where = (_real(stored.file), stored.key)  # however its folder is written
            shared[where] = (stored, c + shared.get(where, (stored, 0.0))[1])
            updates += [(factor, c)] if factor and c else []
        tensors = [self._read(stored) for stored, _ in shared.values()]
        weights = [c for _, c in shared.values()]
        if updates:
            dtype = torch.promote_types(tensors[0].dtype, torch.float32)
            pairs = [(*self._factors(factor, dtype), c * factor.scale) for factor, c in updates]
            left = torch.cat([left * c for left, _, c in pairs], dim=1)
            tensors.append(left @ torch.cat([right for _, right, _ in pairs]))
            weights.append(1.0)
        return tensors, np.array(weights)

    @contextlib.contextmanager
    def read_once(self) -> Iterator[None]:
        """Keep no tensor on the device that is read meanwhile."""
        keep, self._keep = self._keep, False
        try:
            yield
        finally:
            self._keep = keep

    def _found(self, source: str, name: str) -> tuple[Tensor, LowRank | None]:
        opened = self._sources[source]
        if opened.adapter is None:
            return opened.tensors[name], None
        stored = opened.adapter.replaced.get(name, opened.tensors[name])
        return stored, opened.adapter.factors.get(name)

    def _factors(self, factor: LowRank, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of an update as the tensor has them: (out, rank), (rank, in)."""
        a, b = self._read(factor.a).to(dtype), self._read(factor.b).to(dtype)
        return (a.T, b.T) if factor.transposed else (b, a)

    def _read(self, stored: Tensor) -> torch.Tensor:
        where = (stored.file, stored.key)
        if where in self._there:
            return self._there[where]
        if stored.file not in self._files:
            self._files[stored.file] = safe_open(stored.file, framework="pt", device="cpu")
        tensor = self._files[stored.file].get_tensor(stored.key).to(self._device)
        if self._keep:
            self._there[where] = tensor
        return tensor


@functools.lru_cache(maxsize=1 << 12)
def _real(file: Path) -> str:
    return os.path.realpath(file)


def flattened(source: Source) -> np.ndarray:
    """Return a source's (parameters,) float32 weights in canonical order."""
    weights = Weights({source.name: source}, torch.device("cpu"))
    parts = [weights.tensor(source.name, name).float().reshape(-1) for name in source.tensors]
    return torch.cat(parts).numpy()


def finite(
    stream: Iterable[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass (name, tensor) on.

    Raises:
        CandidateFailure: at the first tensor that is not finite.
    """
    for name, tensor in stream:
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise CandidateFailure(f"merged tensor {name} is not finite")
        yield name, tensor


def grams_of(places: Sequence[str]) -> np.ndarray:
    """Return the (tensors, models, models) float64 inner products of the models at places."""
    opened = {place: open_source(place, trust_remote_code=True) for place in places}
    weights = Weights(opened, torch.device("cpu"))
    names = opened[places[0]].tensors
    return np.stack([gram_matrix([weights.tensor(p, n) for p in places], None) for n in names])
