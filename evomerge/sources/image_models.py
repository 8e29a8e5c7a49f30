"""Sources that are image models: diffusers' models and pipelines, and files that are models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.errors import BadInput, Fault, Faults
from evomerge.sources.companions import link_faults
from evomerge.sources.diffusers_models import STEM, is_diffusers, read_diffusers
from evomerge.sources.home import Home
from evomerge.sources.opened import Source
from evomerge.sources.pipelines import read_pipeline
from evomerge.sources.safetensors_file import Tensor, read_json
from evomerge.sources.single_file import read_single_file
from evomerge.sources.stored_tensors import read_tensors
from evomerge.tensor_names import canonical_order


def is_component(path: Path) -> bool:
    """Tell whether a directory is that of a diffusers model.

    >>> is_component(Path("nowhere"))
    False
    """
    config = read_json(path / "config.json")
    return isinstance(config, dict) and is_diffusers(config)


def open_component(name: str, home: Home, parts: tuple[str, ...]) -> Source:
    """Open a model of diffusers.

    Args:
        name: as the user wrote it.
        home: the directory.
        parts: that its name asks for; there are none.

    Raises:
        BadInput: it does not fill a model of diffusers.

    >>> open_component("unet:trunk", Home(Path("unet")), ("trunk",))
    Traceback (most recent call last):
    evomerge.errors.BadInput: 'unet:trunk' has no parts; leave out sources.parts
    """
    if parts:
        raise BadInput(Fault("", f"'{name}' has no parts", "leave out sources.parts"))
    faults, path, files = Faults(), home.path, home.files(STEM)
    config = read_json(path / "config.json")
    faults.extend(link_faults(path))
    stored = read_tensors(path, files, faults, STEM)
    faults.check()
    read = read_diffusers(path, config, stored)
    return Source(
        name,
        path,
        read.config,
        {n: read.tensors[n] for n in canonical_order(read.tensors)},
        {},
        class_name=read.class_name,
        carried=read.carried,
        notes=read.notes,
        to_fetch=files.missing(stored),
        form="diffusers",
    )


def open_pipeline(
    name: str, home: Home, parts: tuple[str, ...], open_part: Callable[[Home], Source]
) -> Source:
    """Open a pipeline of diffusers: the components that are merged, each as a model.

    Args:
        name: as the user wrote it.
        home: the folder.
        parts: that its name asks for.
        open_part: opens a component, by its folder.

    Raises:
        BadInput: with every fault of the folder.

    >>> open_pipeline("nowhere", Home(Path("nowhere")), (), lambda home: 1 / 0)
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere: model_index.json is no index of a pipeline; ...
    """
    path, pipeline, faults = home.path, read_pipeline(home, parts), Faults()
    opened: dict[str, Source] = {}
    carried: dict[str, Tensor] = {}
    for part in pipeline.parts:
        with faults.gather():
            opened[part] = open_part(home.within(part))
    try:
        carried = pipeline.carried()
    except (ValueError, OSError) as error:
        faults.add("", f"{path}: {error}", "download or save it again")
    faults.check()
    tensors: dict[str, Tensor] = {}
    to_fetch = pipeline.missing(carried)
    config: dict[str, Any] = {"carried_files": pipeline.hashes(path)}
    notes: list[str] = []
    for part, source in opened.items():
        tensors |= {f"{part}.{key}": tensor for key, tensor in source.tensors.items()}
        carried |= {f"{part}.{key}": tensor for key, tensor in source.carried.items()}
        config |= {f"{part}.{key}": value for key, value in source.config.items()}
        notes += source.notes
        to_fetch |= source.to_fetch
    rest = [part for part, component in pipeline.rest.items() if component.weights]
    if rest:
        merged = " and ".join(pipeline.parts)
        notes.append(f"'{path}': {merged} is merged; {', '.join(rest)} are the first model's")
    return Source(
        name,
        path,
        config,
        {n: tensors[n] for n in canonical_order(tensors)},
        {},
        class_name=" and ".join(source.class_name for source in opened.values()),
        carried=carried,
        notes=tuple(notes),
        to_fetch=to_fetch,
        form="pipeline",
        parts=pipeline.parts,
        components=opened,
    )


def open_file(name: str, file: Path, parts: tuple[str, ...]) -> Source:
    """Open a file that is a whole model.

    Args:
        name: as the user wrote it.
        file: the file.
        parts: that its name asks for.

    Raises:
        BadInput: see `read_single_file`.

    >>> open_file("nowhere", Path("nowhere.safetensors"), ())
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere.safetensors: ...
    """
    read = read_single_file(file, parts)
    notes = []
    if rest := sorted({key.partition(".")[0] for key in read.carried}):
        of_part = f"{' and '.join(read.parts)} is merged" if read.parts else "numbers are merged"
        notes.append(f"'{file}': {of_part}; {', '.join(rest[:4])} are the first model's")
    return Source(
        name,
        file,
        {},
        {n: read.tensors[n] for n in canonical_order(read.tensors)},
        {},
        carried=read.carried,
        notes=tuple(notes),
        form="file",
        parts=read.parts,
    )
