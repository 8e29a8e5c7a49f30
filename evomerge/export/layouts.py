"""A merge's weights and settings, written in the layout of its frame."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from evomerge.dtypes import CODES
from evomerge.export.shards import Entries, write_shards
from evomerge.kernels.checksum import Checksum
from evomerge.merging.merger import Merger
from evomerge.merging.source_weights import read_stored
from evomerge.recipes.recipe import Recipe
from evomerge.sources.diffusers_models import STEM
from evomerge.sources.home import Home
from evomerge.sources.opened import Source
from evomerge.sources.pipelines import INDEX, read_pipeline
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.sentence_modules import module_tensors

_NO_LIMIT = 1 << 62  # bytes of a file


class _Folder(NamedTuple):
    """Where some of a merge's tensors go.

    Attributes:
        name: of the folder within the model's, "" for that itself.
        stem: what the names of its files begin with.
        names: of the recipe's tensors -> those that they have there.
        carried: tensors of the frame that are written as they are, by the names there.
    """

    name: str
    stem: str
    names: Mapping[str, str]
    carried: Mapping[str, Tensor]


def write_weights(merger: Merger, recipe: Recipe, frame: Source, folder: Path, limit: int) -> str:
    """Write each tensor as it comes, so that one is in memory at a time; return the checksum.

    Args:
        merger: over the recipe's sources.
        recipe: any recipe.
        frame: the source whose layout, and whose tensors that are not merged, it gets.
        folder: where it is written.
        limit: largest size of one safetensors file.

    >>> import tempfile
    >>> from evomerge.recipes.parameters import single
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as place:
    ...     frame = open_source(str(tiny_llama(f"{place}/a", seed=0)))
    ...     merger, out = Merger({"a": frame}, {"a": ""}), Path(place) / "out"
    ...     out.mkdir()
    ...     _ = write_weights(merger, single("a", "float32"), frame, out, 10**9)
    ...     [file.name for file in out.iterdir()]
    ['model.safetensors']
    """
    digests: dict[str, np.ndarray] = {}
    dtypes, shapes = merger.dtypes(recipe), merger.shapes(recipe)
    for part in _folders(frame, list(shapes)):
        entries: Entries = {}
        for name, there in part.names.items():
            entries[there] = (CODES[dtypes[name]], shapes[name])
        for name, stored in part.carried.items():
            entries[name] = (stored.dtype, stored.shape)
        (folder / part.name).mkdir(exist_ok=True)
        if frame.form == "file":  # which is one, however large
            limit = _NO_LIMIT
        stream = _stream(merger, recipe, part, digests)
        write_shards(entries, stream, folder / part.name, limit, part.stem)
    checksum = Checksum()
    for name, shape in shapes.items():  # in their order, whatever they were written in
        checksum.add(name, getattr(torch, dtypes[name]), shape, digests[name])
    return checksum.hexdigest()


def _stream(
    merger: Merger, recipe: Recipe, part: _Folder, digests: dict[str, np.ndarray]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in merger.stream(recipe, part.names, digests):
        yield part.names[name], tensor
    for name, stored in part.carried.items():
        yield name, read_stored(stored)


def _folders(frame: Source, names: Sequence[str]) -> list[_Folder]:
    """Part a recipe's tensors by the folders that they go to."""
    match frame.form:
        case "pipeline":
            found = []
            for part, inner in frame.components.items():
                stem = STEM if inner.form == "diffusers" else "model"
                own = {n: n.removeprefix(f"{part}.") for n in names if n.startswith(f"{part}.")}
                found.append(_Folder(part, stem, own, inner.carried))
            return found
        case "sentence":
            return _with_modules(frame, names)
        case "diffusers":
            return [_Folder("", STEM, {n: n for n in names}, frame.carried)]
    # of one source's head, or of layers that a route made: under the names that it has itself
    own = {name: frame.saved_name(name) for name in names}
    return [_Folder("", "model", own, frame.carried)]


def _with_modules(frame: Source, names: Sequence[str]) -> list[_Folder]:
    """Part a sentence embedder's tensors into the model's and those of the modules behind it."""
    modules = module_tensors(frame.path)
    own: dict[str, dict[str, str]] = {folder: {} for folder in ("", *modules)}
    carried: dict[str, dict[str, Tensor]] = {folder: {} for folder in ("", *modules)}
    for name in names:
        folder, _, inner = name.partition(".")
        if folder in modules:
            own[folder][name] = inner
        else:
            own[""][name] = frame.saved_name(name)
    for name, tensor in frame.carried.items():
        folder, _, inner = name.partition(".")
        if folder in modules:
            carried[folder][inner] = tensor
        else:
            carried[""][name] = tensor
    return [
        _Folder(folder, "model", own[folder], carried[folder])
        for folder in own
        if own[folder] or carried[folder]
    ]


def write_rest(frame: Source, folder: Path) -> None:
    """Copy a pipeline's components that are not merged, and the settings of those that are.

    Raises:
        OSError: the disk does not take them.

    >>> write_rest(Source("a", Path("a"), {}, {}, {}), Path("out"))
    """
    if frame.form != "pipeline":
        return
    pipeline = read_pipeline(Home(frame.path), frame.parts)
    shutil.copyfile(frame.path / INDEX, folder / INDEX)
    for name, component in pipeline.components.items():
        (folder / name).mkdir(exist_ok=True)
        files = [*component.files]
        if name not in pipeline.parts:
            files += component.weights
            if len(component.weights) > 1:
                files.append(frame.path / name / f"{component.stem}.safetensors.index.json")
        for file in files:
            shutil.copyfile(file, folder / name / file.name)
