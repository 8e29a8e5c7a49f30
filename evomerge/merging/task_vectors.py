"""Prepared sources: task vectors transformed once, which every recipe then only weighs.

A method's `prepare` gives one direction D_i a model, and a recipe of it is W_0 + sum c_i D_i. The
directions are kept as safetensors in `$XDG_CACHE_HOME/evomerge/prepared`, by the method, its
options and the sources' hashes, in the base's dtype or as packed signs, and are mapped like any
source.
"""

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from evomerge.cache.eviction import make_room
from evomerge.cache.holding import hold
from evomerge.canonical import canonical_json
from evomerge.environment import cache_folder
from evomerge.errors import EvomergeError, one_line
from evomerge.kernels.magnitude_histogram import kth_largest
from evomerge.kernels.signs import Signs
from evomerge.kernels.task_vector import task_vector
from evomerge.merging.direction_files import DirectionFile, read_directions
from evomerge.merging.methods import MergeMethod
from evomerge.merging.observations import LinearInputs, Observations
from evomerge.merging.replayed_inputs import Replay
from evomerge.merging.validation import check_evidence_of
from evomerge.node.once import one_at_a_time
from evomerge.node.phases import Steps, phase
from evomerge.sources.source import Source

log = logging.getLogger("evomerge")

_VERSION = 2  # of the methods' arithmetic and of the files


class TaskVectors:
    """The task vectors of one base, tensor by tensor; see `methods.TaskVectorsView`.

    >>> tensors = {"base": torch.tensor([1.0]), "a": torch.tensor([3.0])}
    >>> base = Source("base", Path("base"), {}, {}, {})
    >>> TaskVectors(base, ["a"], lambda source, name: tensors[source]).of("norm.weight")
    [tensor([2.])]
    """

    def __init__(
        self,
        base: Source,
        models: Sequence[str],
        tensor: Callable[[str, str], torch.Tensor],
        base_name: str | None = None,
        known: Observations | None = None,
    ):
        """
        Args:
            base: whose tensors they are.
            models: names of sources.
            tensor: gives a source's tensor by both names.
            base_name: as `tensor` has it; the base's own by default.
            known: of the models beside their weights.
        """
        self.names, self.count = list(base.tensors), len(models)
        self.size = sum(stored.elements for stored in base.tensors.values())
        self._models, self._tensor = list(models), tensor
        self._base = base.name if base_name is None else base_name
        self._known = known

    def base(self, name: str) -> torch.Tensor:
        """Return W_0 in float32."""
        return self._tensor(self._base, name).float()

    def of(self, name: str) -> list[torch.Tensor]:
        """Return every model's tau of one tensor, in float32."""
        return [self.one(i, name) for i in range(self.count)]

    def one(self, i: int, name: str) -> torch.Tensor:
        """Return one model's tau of one tensor, in float32."""
        tau = task_vector(self._tensor(self._base, name), self._tensor(self._models[i], name))
        return tau.float()

    def kth_largest(self, make: Callable[[str], torch.Tensor], k: int) -> float:
        """Return the k-th largest magnitude of what `make` gives for all tensors together."""
        return kth_largest(lambda: map(make, self.names), k)

    def inputs(self, name: str) -> LinearInputs | None:
        """Return what each model's linear layer took in; None of other tensors."""
        assert self._known is not None, "`prepared` gives it to methods that read it"
        return self._known.inputs(name)

    def curvature(self, name: str) -> list[torch.Tensor] | None:
        """Return each model's diagonal curvature at a tensor; None if it is unknown."""
        assert self._known is not None, "`prepared` gives it to methods that read it"
        return self._known.curvature(name)

    def replay(self, merged: Mapping[str, torch.Tensor]) -> Replay:
        """Begin to read texts layer by layer, behind what is merged before the layers."""
        assert self._known is not None, "`prepared` gives it to methods that read it"
        return Replay(self._known, self.count, merged)


def prepared(
    method: MergeMethod,
    options: Mapping[str, object],
    base: str,
    models: Sequence[str],
    sources: Mapping[str, Source],
    hashes: Mapping[str, str],
    tensor: Callable[[str, str], torch.Tensor],
) -> list[Source]:
    """Return the directions of `models` as sources, computing them if they are not kept yet.

    Args:
        method: one with `prepare`.
        options: of the recipe.
        base, models: names of sources.
        sources, hashes: by name.
        tensor: gives a source's tensor by both names.

    Raises:
        BadInput: the method reads what is not known of a model.
        EvomergeError: the disk does not take them.

    >>> from evomerge.testing import merge_arrays  # which merges by way of this
    >>> import numpy as np
    >>> merge_arrays("wudi", np.zeros((1, 2)), [np.ones((1, 2))])
    array([[1., 1.]], dtype=float32)
    """
    own = {name: options.get(name, default) for name, default in method.prepares.items()}
    frame = sources[base]
    device = tensor(base, next(iter(frame.tensors))).device
    key = [_VERSION, method.name, own, hashes[base], [hashes[model] for model in models]]
    key.append(device.type)  # which may round otherwise
    known = None
    if method.reads:
        check_evidence_of(method, sources, models)
        known = Observations(
            frame, models, [sources[model] for model in models], hashes, tensor, base
        )
    digest = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    folder = cache_folder("prepared") / digest
    vectors = TaskVectors(frame, models, tensor, base, known)
    hold(folder)  # its files are opened when they are first read
    try:
        directions = _read(folder, frame, len(models), method.name)
        while directions is None:  # again, if somebody else takes them away in between
            _make_once(folder, frame, method, vectors, own)
            directions = _read(folder, frame, len(models), method.name)
    except OSError as error:
        wrong = f"the prepared sources cannot be written to {folder}: {one_line(error)}"
        raise EvomergeError(wrong) from error
    return directions


def _read(folder: Path, base: Source, count: int, method: str) -> list[Source] | None:
    """Return the directions that are kept, None if they are not or not whole."""
    directions = []
    for i in range(count):
        try:
            held = read_directions(folder / f"{i}.safetensors", base.tensors)
        except (OSError, ValueError):
            return None
        name = f"{method}/{folder.name}/{i}"
        directions.append(Source(name, folder, {}, held.tensors, {}, signs=held.signs))
    return directions


def _make_once(
    folder: Path,
    base: Source,
    method: MergeMethod,
    vectors: TaskVectors,
    options: Mapping[str, object],
) -> None:
    """Write the directions beside and rename; others of this machine wait for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    assert method.prepare is not None, "only prepared methods have directions"
    doing = f"preparing {method.name} of {vectors.count} sources"
    with one_at_a_time(folder.with_suffix(".lock"), doing):
        if _read(folder, base, vectors.count, method.name):
            return
        started, threads = time.monotonic(), torch.get_num_threads()
        phase(doing)
        beside = folder.with_suffix(".tmp")
        make_room(vectors.count * method.direction_bytes(base.tensors.values()))
        for left in (folder, beside):  # by one who was killed, or by a disk
            shutil.rmtree(left, ignore_errors=True)
        try:
            torch.set_num_threads(1)  # a decomposition's last bits depend on their number
            beside.mkdir()
            files = [beside / f"{i}.safetensors" for i in range(vectors.count)]
            steps = Steps(doing, "tensors", len(base.tensors))
            _write(files, base, method.prepare(vectors, **options), steps)
            beside.rename(folder)
        finally:
            torch.set_num_threads(threads)
            shutil.rmtree(beside, ignore_errors=True)
        log.info("prepared %s in %.1f s", method.name, time.monotonic() - started)


def _write(
    files: Sequence[Path],
    base: Source,
    made: Iterable[tuple[str, Sequence[torch.Tensor | Signs]]],
    steps: Steps,
) -> None:
    with contextlib.ExitStack() as stack:
        outs = [stack.enter_context(DirectionFile(file, base.tensors)) for file in files]
        for number, (name, (given, directions)) in enumerate(zip(base.tensors, made, strict=True)):
            steps.done(number)
            assert name == given, f"{given} comes where {name} should"
            for out, direction in zip(outs, directions, strict=True):
                out.add(name, direction)
