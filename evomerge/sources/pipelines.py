"""diffusers' pipelines: a folder of components, of which one or more are merged.

`model_index.json` names the pipeline's class and, for each component, a library and a class:
`"unet": ["diffusers", "UNet2DConditionModel"]`. Each lies in a folder of that name. Only classes
of diffusers and transformers are taken; what would run other code is refused.
"""

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.errors import BadInput, Fault, Faults, nearest
from evomerge.sources.companions import whole_of
from evomerge.sources.diffusers_models import STEM, class_named
from evomerge.sources.home import Home
from evomerge.sources.safetensors_file import Tensor, read_json
from evomerge.sources.weight_files import PICKLES, Folder, WeightFiles, shards

INDEX = "model_index.json"

_DENOISERS = ("unet", "transformer", "prior")  # of whose components merges are asked for first

_LIBRARIES = ("diffusers", "transformers")

_KINDS = {".json", ".txt", ".model", ".jinja"}  # of a component's files beside its weights

_SAVE = "load the pipeline with diffusers and save it again with save_pretrained"


class Component(NamedTuple):
    """A component of a pipeline.

    Attributes:
        library: "diffusers" or "transformers".
        class_name: of the component.
        weights: its files of weights; none of a scheduler or a tokenizer.
        files: its other files that an export gets.
        held: where its weights are read.

    >>> Component("diffusers", "DDIMScheduler", (), ()).weights
    ()
    """

    library: str
    class_name: str
    weights: tuple[Path, ...]
    files: tuple[Path, ...]
    held: WeightFiles = Folder(Path())

    @property
    def stem(self) -> str:
        """What the names of its files of weights begin with."""
        return STEM if self.library == "diffusers" else "model"


class Pipeline(NamedTuple):
    """What a pipeline's folder holds.

    Attributes:
        class_name: of the pipeline.
        components: by their folders.
        parts: the components that are merged.

    >>> Pipeline("FluxPipeline", {}, ("transformer",)).rest
    {}
    """

    class_name: str
    components: dict[str, Component]
    parts: tuple[str, ...]

    @property
    def rest(self) -> dict[str, Component]:
        """The components that stay those of the frame."""
        return {name: c for name, c in self.components.items() if name not in self.parts}

    def hashes(self, path: Path) -> dict[str, str]:
        """Return the sha256 of the rest's files beside weights, by their places in a folder."""
        found = {}
        for component in self.rest.values():
            for file in component.files:
                place = file.relative_to(path).as_posix()
                found[place] = hashlib.sha256(file.read_bytes()).hexdigest()
        return found

    def carried(self) -> dict[str, Tensor]:
        """Return the tensors of the rest, by folder and name.

        Raises:
            ValueError: a file of theirs is not whole.
        """
        found: dict[str, Tensor] = {}
        for name, component in self.rest.items():
            for tensors in component.held.headers([file.name for file in component.weights]):
                found |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
        return found

    def missing(self, carried: Mapping[str, Tensor]) -> dict[Path, int]:
        """Return the files of the rest's weights that are not here yet, with their bytes.

        Args:
            carried: the rest's tensors, see `carried`.
        """
        found: dict[Path, int] = {}
        for name, component in self.rest.items():
            own = {key: t for key, t in carried.items() if key.startswith(f"{name}.")}
            found |= component.held.missing(own)
        return found


def is_pipeline(path: Path) -> bool:
    """Tell whether a folder is a pipeline's.

    >>> is_pipeline(Path("nowhere"))
    False
    """
    return (path / INDEX).is_file()


def read_pipeline(home: Home, parts: Sequence[str] = ()) -> Pipeline:
    """Return what a pipeline's folder holds, by its index and the names of its files.

    Args:
        home: the folder.
        parts: components that are merged; by default the denoiser, as the index calls it.

    Raises:
        BadInput: with every fault of the folder.

    >>> read_pipeline(Home(Path("nowhere")))
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere: model_index.json is no index of a pipeline; ...
    """
    path = home.path
    index = read_json(path / INDEX)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        wrong = f"{path}: {INDEX} is no index of a pipeline"
        raise BadInput(Fault("", wrong, "save it with diffusers' save_pretrained"))
    class_named(index["_class_name"], "DiffusionPipeline")
    faults, components = Faults(), {}
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and entry != [None, None]:
            with faults.gather():
                components[name] = _component(home.within(name), entry)
    faults.check()
    with_weights = [name for name, component in components.items() if component.weights]
    chosen = tuple(parts) or tuple(name for name in _DENOISERS if name in with_weights)
    for part in chosen:
        if part not in with_weights:
            wrong = f"{path}: has no part '{part}' with weights"
            faults.add("", wrong, nearest(part, with_weights))
    if not chosen:
        wrong = f"{path}: has none of {', '.join(_DENOISERS)}"
        faults.add("", wrong, f"name the parts to merge: {', '.join(with_weights)}")
    faults.check()
    return Pipeline(index["_class_name"], components, chosen)


def _component(home: Home, entry: list[Any]) -> Component:
    """Return a component by its folder and what the index says of it."""
    folder, (library, class_name) = home.path, entry
    if library not in _LIBRARIES or not isinstance(class_name, str):
        wrong = f"{folder}: is of {library!r:.60}, whose code is not run"
        raise BadInput(Fault("", wrong, f"take a pipeline of {' and '.join(_LIBRARIES)} alone"))
    if folder.name in ("..", ".") or folder.parent / folder.name != folder or not folder.is_dir():
        raise BadInput(Fault("", f"{folder}: is named in {INDEX}, and is no folder", _SAVE))
    whole = whole_of(folder.parent)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    others = tuple(f for f in files if f.suffix in _KINDS and not f.name.endswith(".index.json"))
    stem = STEM if library == "diffusers" else "model"
    held = home.files(stem)
    weights: tuple[Path, ...] = ()
    try:
        weights = tuple(shards(folder, held, stem))
    except FileNotFoundError:
        names = sorted(held.names)
        pickled = [name for name in names if any(fnmatch(name, kind) for kind in PICKLES)]
        half = [name for name in names if fnmatch(name, f"{stem}.*.safetensors")]
        if pickled or half:
            what = f"a variant of its weights, {half[0]}" if half else f"pickles, {pickled[0]}"
            raise BadInput(Fault("", f"{folder}: holds only {what}", _SAVE)) from None
    except ValueError as error:
        raise BadInput(Fault("", f"{folder}: {error}", "download or save it again")) from None
    for file in (*others, *weights):
        target = file.resolve()
        if not target.is_relative_to(whole):
            wrong = f"{file}: is a link to {target}, out of the model's directory"
            raise BadInput(Fault("", wrong, "put the file itself there"))
    return Component(library, class_name, weights, others, held)
