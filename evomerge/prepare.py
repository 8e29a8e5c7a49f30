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

from evomerge.checkpoints import DTYPES, header_bytes, read_header
from evomerge.errors import EvomergeError
from evomerge.kernels import task_vector
from evomerge.machine import cache_folder
from evomerge.magnitudes import kth_largest
from evomerge.operators import Operator
from evomerge.recipe import canonical_json
from evomerge.sources import Source

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
    key = [_VERSION, operator.name, told, hashes[base], [hashes[m] for m in models]]
    digest = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    folder = cache_folder("prepared") / digest
    files = [folder / f"{i}.safetensors" for i in range(len(models))]
    if not folder.exists():
        vectors = TaskVectors(sources[base], models, tensor, base)
        made = operator.prepare(vectors, **told)
        try:
            _make_once(folder, files, sources[base], made, operator.name)
        except OSError as error:
            raise EvomergeError(
                f"the prepared sources cannot be written to {folder}: {error.strerror}"
            ) from error
    order = list(sources[base].tensors)
    found = []
    for i, file in enumerate(files):
        tensors = read_header(file)
        name = f"{operator.name}/{digest}/{i}"
        found.append(Source(name, folder, {}, {n: tensors[n] for n in order}, {}))
    return found


def _make_once(
    folder: Path,
    files: Sequence[Path],
    base: Source,
    made: Iterable[tuple[str, list[torch.Tensor]]],
    method: str,
) -> None:
    """Write the directions beside and rename; others of this machine wait for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        started = time.monotonic()
        log.info("preparing %s: %d sources, once", method, len(files))
        beside = folder.with_suffix(f".{os.getpid()}.tmp")
        try:
            beside.mkdir()
            _write([beside / file.name for file in files], base, made)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        log.info("prepared %s in %.1f s", method, time.monotonic() - started)


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
                stored = direction.to(getattr(torch, DTYPES[like.dtype])).contiguous().cpu()
                stream.write(stored.reshape(-1).view(torch.uint8).numpy().data)
