"""sentence-transformers' layout: a transformers model, and modules that make one vector of it.

`modules.json` lists the modules in their order, each with a class and a folder; the first, in the
directory itself, is the transformers model. Pooling and normalizing have settings alone; a dense
layer has weights in its folder's `model.safetensors`.
"""

from pathlib import Path

from evomerge.dtypes import STORED_DTYPES
from evomerge.errors import BadInput, Fault
from evomerge.sources.safetensors_file import Tensor, read_header, read_json

INDEX = "modules.json"
WEIGHTS = "model.safetensors"

_PACKAGE = "sentence_transformers."


def is_sentence_model(path: Path) -> bool:
    """Tell whether a model's directory is in that layout.

    >>> is_sentence_model(Path("nowhere"))
    False
    """
    return (path / INDEX).is_file()


def module_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the weights of the modules behind the model: folder -> name -> tensor.

    Raises:
        BadInput: the list makes no sense, names code of others, or the weights are pickles.

    >>> module_tensors(Path("nowhere"))
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere: modules.json lists no modules; ...
    """
    mend = "save the model again with sentence-transformers"
    listed = read_json(path / INDEX)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise BadInput(Fault("", f"{path}: {INDEX} lists no modules", mend))
    found: dict[str, dict[str, Tensor]] = {}
    for number, entry in enumerate(listed):
        folder, kind = entry.get("path"), entry.get("type")
        if not isinstance(kind, str) or not kind.startswith(_PACKAGE):
            wrong = f"{path}: {INDEX} names {kind!r:.80}, whose code is not run"
            raise BadInput(Fault("", wrong, "take a model of sentence-transformers' own modules"))
        if not isinstance(folder, str) or (folder and Path(folder).name != folder):
            raise BadInput(Fault("", f"{path}: {INDEX} has a module at {folder!r:.80}", mend))
        if (not folder) != (number == 0):
            wrong = f"{path}: {INDEX} has its model in a folder of its own"
            raise BadInput(Fault("", wrong, mend))
        if folder:
            found[folder] = _weights(path / folder, mend)
    return found


def _weights(folder: Path, mend: str) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    if not file.exists():
        if (folder / "pytorch_model.bin").exists():
            raise BadInput(Fault("", f"{folder}: holds pickled weights only", mend))
        return {}
    try:
        tensors = read_header(file)
    except (ValueError, OSError) as error:
        raise BadInput(Fault("", f"{folder}: {error}", mend)) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED_DTYPES:
            wrong = f"{file}: tensor {name} has dtype {tensor.dtype}, which is not merged"
            raise BadInput(Fault("", wrong, mend))
    return tensors
