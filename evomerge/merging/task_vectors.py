"""Prepared sources: task vectors transformed once, which every recipe then only weighs.

A method's `prepare` gives one direction D_i a model, and a recipe of it is W_0 + sum c_i D_i. The
directions are kept as safetensors in `$XDG_CACHE_HOME/evomerge/prepared`, by the method, its
options and the sources' hashes, in the base's dtype, and are mapped like any source.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge.canonical import canonical_json
from evomerge.dtypes import STORED_DTYPES
from evomerge.environment import cache_folder
from evomerge.errors import EvomergeError
from evomerge.kernels.eager import task_vector
from evomerge.kernels.magnitude_histogram import kth_largest
from evomerge.merging.methods import Operator
from evomerge.sources.safetensors_file import header_bytes, read_header
from evomerge.sources.source import Source

log = logging.getLogger("evomerge")

_VERSION = 1  # of the methods' arithmetic and of the files


class TaskVectors:
    """The task vectors of one base, tensor by tensor; the view that a `prepare` gets.

    Attributes:
        names: of the tensors, in canonical order.
        count: models.
        size: elements of one whole task vector.
    """

    def __init__(
        self,
        base: Source,
        models: Sequence[str],
        tensor: Callable[[str, str], torch.Tensor],
        base_name: str,
    ):
        self.names, self.count = list(base.tensors), len(models)
        self.size = sum(t.elements for t in base.tensors.values())
        self._models, self._base, self._tensor = list(models), base_name, tensor

    def base(self, name: str) -> torch.Tensor:
        """Return W_0 in float32."""
        return self._tensor(self._base, name).float()

    def of(self, name: str) -> list[torch.Tensor]:
        """Return every model's tau of one tensor, in float32."""
        return [self.one(i, name) for i in range(self.count)]

    def one(self, i: int, name: str) -> torch.Tensor:
        tau = task_vector(self._tensor(self._base, name), self._tensor(self._models[i], name))
        return tau.float()

    def kth_largest(self, make: Callable[[str], torch.Tensor], k: int) -> float:
        """Return the k-th largest magnitude of what `make` gives for all tensors together."""
        return kth_largest(lambda: map(make, self.names), k)


def prepared(
    operator: Operator,
    options: Mapping[str, Any],
    base: str,
    models: Sequence[str],
    sources: Mapping[str, Source],
    hashes: Mapping[str, str],
    tensor: Callable[[str, str], torch.Tensor],
) -> list[Source]:
    """Return the directions of `models` as sources, computing them if they are not kept yet.

    Args:
        operator: a method with `prepare`.
        options: of the recipe.
        base, models: names of sources.
        sources, hashes: by name.
        tensor: gives a source's tensor by both names.

    Raises:
        EvomergeError: the disk does not take them.
    """
    told = {name: options.get(name, default) for name, default in operator.prepares.items()}
    first = tensor(base, next(iter(sources[base].tensors)))
    key = [_VERSION, operator.name, told, hashes[base], [hashes[m] for m in models]]
    key.append(first.device.type)  # which may round otherwise
    digest = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    folder = cache_folder("prepared") / digest
    try:
        found = _read(folder, sources[base], len(models), operator.name)
        if found is None:
            vectors = TaskVectors(sources[base], models, tensor, base)
            _make_once(folder, sources[base], len(models), operator, vectors, told)
            found = _read(folder, sources[base], len(models), operator.name)
    except OSError as error:
        raise EvomergeError(
            f"the prepared sources cannot be written to {folder}: {error.strerror}"
        ) from error
    return found


def _read(folder: Path, base: Source, count: int, method: str) -> list[Source] | None:
    """Return the directions that are kept, None if they are not or not whole."""
    found = []
    for i in range(count):
        try:
            tensors = read_header(folder / f"{i}.safetensors")
            ordered = {name: tensors[name] for name in base.tensors}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        found.append(Source(f"{method}/{folder.name}/{i}", folder, {}, ordered, {}))
    return found


def _make_once(
    folder: Path,
    base: Source,
    count: int,
    operator: Operator,
    vectors: TaskVectors,
    told: Mapping[str, Any],
) -> None:
    """Write the directions beside and rename; others of this machine wait for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _read(folder, base, count, operator.name):
            return
        started, threads = time.monotonic(), torch.get_num_threads()
        log.info("preparing %s: %d sources, once", operator.name, count)
        beside = folder.with_suffix(".tmp")
        for left in (folder, beside):  # by one who was killed, or by a disk
            shutil.rmtree(left, ignore_errors=True)
        try:
            torch.set_num_threads(1)  # a decomposition's last bits hang on their number
            beside.mkdir()
            files = [beside / f"{i}.safetensors" for i in range(count)]
            _write(files, base, operator.prepare(vectors, **told))
            beside.rename(folder)
        finally:
            torch.set_num_threads(threads)
            shutil.rmtree(beside, ignore_errors=True)
        log.info("prepared %s in %.1f s", operator.name, time.monotonic() - started)


def _write(
    files: Sequence[Path], base: Source, made: Iterable[tuple[str, list[torch.Tensor]]]
) -> None:
    header = header_bytes({name: (t.dtype, t.shape) for name, t in base.tensors.items()})
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(open(file, "wb")) for file in files]
        for stream in streams:
            stream.write(header)
        for (name, like), (given, directions) in zip(base.tensors.items(), made, strict=True):
            assert name == given, f"{given} comes where {name} should"
            for stream, direction in zip(streams, directions, strict=True):
                stored = direction.to(getattr(torch, STORED_DTYPES[like.dtype])).contiguous().cpu()
                stream.write(stored.reshape(-1).view(torch.uint8).numpy().data)
        for stream in streams:  # a rename may outlive a power cut that the data does not
            stream.flush()
            os.fsync(stream.fileno())
