"""Which files hold a model's weights, in a directory or in a repository of the hub."""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from evomerge.sources.safetensors_file import Tensor, read_header, read_json

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_SUFFIX, _INDEX = ".safetensors", ".safetensors.index.json"


class WeightFiles(Protocol):
    """The files beside a config.json, here or on the hub."""

    @property
    def names(self) -> Iterable[str]:
        """Their names, of plain files alone."""
        ...

    def headers(self, names: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return what some files hold, as `read_header` does."""
        ...

    def missing(self, tensors: Mapping[str, Tensor]) -> dict[Path, int]:
        """Return the files that tensors lie in and that are not here yet, with their bytes."""
        ...


class Folder:
    """The files of a local directory.

    >>> list(Folder(Path("nowhere")).names)
    []
    """

    def __init__(self, path: Path):
        """
        Args:
            path: the directory.
        """
        self._path = path

    @property
    def names(self) -> list[str]:
        """The names of its plain files; none of a directory that is not there."""
        if not self._path.is_dir():
            return []
        return [file.name for file in self._path.iterdir() if file.is_file()]

    def headers(self, names: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return what some of its files hold, as `read_header` does."""
        return [read_header(self._path / name) for name in names]

    def missing(self, tensors: Mapping[str, Tensor]) -> dict[Path, int]:
        """Return none: all are here."""
        return {}


def lacks_weights(path: Path, stem: str = "model") -> bool:
    """Tell whether a directory has not all the files that hold its model's weights.

    Args:
        path, stem: see `shards`.

    >>> lacks_weights(Path("nowhere"))
    True
    """
    names = Folder(path).names
    try:
        return not set(_chosen(path, names, stem)) <= set(names)
    except FileNotFoundError:
        return True
    except ValueError:  # of an index that makes no sense, whatever lies beside it
        return False


def shards(path: Path, files: WeightFiles, stem: str = "model") -> list[Path]:
    """Return the files that hold a model directory's weights, as transformers chooses them.

    It takes model.safetensors if it is there, whatever an index beside it says, and of an index
    all that its shards hold, the later shard's where two hold a tensor of one name.

    Args:
        path: the directory, where an index of shards lies.
        files: that lie beside it, or will.
        stem: what the files' names begin with.

    Raises:
        ValueError: the index of shards makes no sense, a shard is missing, or the two do not agree.
        FileNotFoundError: there is no index and no single file.
        OSError: a shard cannot be read.

    >>> shards(Path("nowhere"), Folder(Path("nowhere")))
    Traceback (most recent call last):
    FileNotFoundError: nowhere
    """
    there = set(files.names)
    names = _chosen(path, there, stem)
    if stem + _SUFFIX in there:
        return [path / (stem + _SUFFIX)]
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(f"{len(missing)} of {len(names)} shards are missing: {missing[0]}")
    _check_index(path / (stem + _INDEX), names, files)
    return [path / name for name in names]


def _chosen(path: Path, there: Container[str], stem: str) -> list[str]:
    """Return the names of the files that should hold the weights; see `shards`."""
    single, index = stem + _SUFFIX, path / (stem + _INDEX)
    if single in there:
        return [single]
    if index.exists():
        return sorted(set(_places(index).values()))
    if (path / single).exists():
        raise ValueError(f"{single} is no plain file")
    raise FileNotFoundError(path)


def _places(index: Path) -> dict[str, str]:
    """Return tensor -> shard as an index lists them."""
    listed = read_json(index)
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict):
        raise ValueError(f"{index.name} is not an index of shards")
    for name in places.values():
        if not _is_file_name(name):
            raise ValueError(f"{index.name} names {name!r:.80}, which is no file beside it")
    return places


def _check_index(index: Path, names: Sequence[str], files: WeightFiles) -> None:
    """Raise `ValueError` where an index and its shards do not agree."""
    held = dict(zip(names, files.headers(names), strict=True))
    for tensor, name in _places(index).items():
        if tensor not in held[name]:
            raise ValueError(f"{index.name} lists {tensor} in {name}, which does not hold it")
        # transformers takes the last shard that has it, mergekit the one listed
        last = max(shard for shard in names if tensor in held[shard])
        if last != name:
            raise ValueError(f"{name} and {last} both hold {tensor}")


def _is_file_name(name: Any) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= 255:  # the most that file systems take
        return False
    return "\0" not in name and Path(name).name == name
