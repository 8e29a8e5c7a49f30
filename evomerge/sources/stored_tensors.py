"""The tensors that a model's directory holds, by the headers of its files."""

from fnmatch import fnmatch
from pathlib import Path

from evomerge.errors import Faults
from evomerge.sources.locate import what_it_is_instead
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.weight_files import PICKLES, WeightFiles, shards


def read_tensors(
    path: Path, files: WeightFiles, faults: Faults, stem: str = "model"
) -> dict[str, Tensor]:
    """Return the tensors of all shards by name, none if there is a fault.

    Args:
        path: the directory.
        files: that lie beside it, or will.
        faults: gets what is wrong.
        stem: see `shards`.

    >>> from evomerge.sources.weight_files import Folder
    >>> faults = Faults()
    >>> read_tensors(Path("nowhere"), Folder(Path("nowhere")), faults), faults.found[0].wrong
    ({}, 'nowhere: holds no weights')
    """
    tensors: dict[str, Tensor] = {}
    try:
        for held in files.headers([shard.name for shard in shards(path, files, stem)]):
            tensors.update(held)
    except ValueError as error:
        faults.add("", f"{path}: {error}", "download or save the model again")
    except FileNotFoundError:
        if what_it_is_instead(path) is not None:  # which is told where config.json is missing
            return {}
        pickled = sorted(n for n in files.names if any(fnmatch(n, kind) for kind in PICKLES))
        wrong = f"holds pickled weights only ({pickled[0]})" if pickled else "holds no weights"
        mend = "save it with save_pretrained, which writes safetensors"
        faults.add("", f"{path}: {wrong}", mend)
    except OSError as error:
        faults.add("", f"{path}: cannot be read ({error.strerror})", "check its permissions")
    else:
        if not tensors:
            faults.add("", f"{path}: holds no tensors", "save the model again")
    return tensors
