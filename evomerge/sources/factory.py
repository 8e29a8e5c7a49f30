"""Models that are no Hugging Face directory: a Python function makes the module.

Such a source is written `FILE.py:function@WEIGHTS` (or `package.module:function@WEIGHTS`), where
WEIGHTS is a safetensors file, or a whole number: the seed of the module's own random weights.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.environment import cache_folder
from evomerge.errors import one_line

_NAME = re.compile(r"(?P<where>[^@]+):(?P<function>[A-Za-z_]\w*)@(?P<weights>.+)")


class Factory(NamedTuple):
    """A source's parts: where the function is, its name, and a file of weights or a seed."""

    where: str
    function: str
    weights: str

    @property
    def is_seed(self) -> bool:
        return self.weights.isascii() and self.weights.isdigit()

    @property
    def place(self) -> str:
        """The same with paths from the root."""
        where = str(Path(self.where).resolve()) if self.where.endswith(".py") else self.where
        weights = self.weights if self.is_seed else str(Path(self.weights).resolve())
        return f"{where}:{self.function}@{weights}"

    @property
    def file(self) -> Path:
        """Where the function is written."""
        if self.where.endswith(".py"):
            return Path(self.where)
        spec = importlib.util.find_spec(self.where)
        if spec is None or not spec.origin:
            raise ValueError(f"there is no module '{self.where}'")
        return Path(spec.origin)

    @property
    def definition(self) -> str:
        """Changes when the function's file does."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()[:16]


def parse_factory(name: str) -> Factory | None:
    """Return a source's parts, if it is made by a function; a directory never is."""
    found = _NAME.fullmatch(name)
    return Factory(**found.groupdict()) if found and not os.path.isdir(name) else None


def build(factory: Factory) -> Any:
    """Return a new torch module, its weights whatever the function gives it.

    Raises:
        ValueError: there is no such function, or it fails.
    """
    try:
        module = getattr(_imported(factory.where), factory.function)()
        state_of(module)
    except (Exception, SystemExit) as error:  # the user's code: whatever it raises means the same
        raise ValueError(
            f"{factory.where}:{factory.function} gave no torch module: {one_line(error)}"
        ) from error
    return module


def state_of(module: Any) -> dict[str, Any]:
    """Return a module's state_dict.

    Raises:
        ValueError: two names share one tensor, or a value is none.
    """
    seen: dict[int, str] = {}
    for name, tensor in module.state_dict().items():
        if not hasattr(tensor, "data_ptr"):
            raise ValueError(f"its state '{name}' is no tensor")
        other = seen.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if other != name:
            raise ValueError(f"'{name}' and '{other}' are one tensor; register it once")
    return module.state_dict()


@functools.lru_cache
def _imported(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(f"evomerge_factory_{Path(where).stem}", where)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights_file(factory: Factory) -> Path:
    """Return the file of a source's weights; those of a seed are made once, into the cache.

    Raises:
        ValueError: see `build`.
    """
    if not factory.is_seed:
        return Path(factory.weights)
    key = f"{factory.place} {factory.definition}".encode()
    file = cache_folder("factories") / hashlib.sha256(key).hexdigest()[:32] / "model.safetensors"
    if not file.exists():
        import torch
        from safetensors.torch import save_file

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(factory.weights))
            state = build(factory).state_dict()
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{os.getpid()}.tmp")
        save_file({n: t.contiguous().clone() for n, t in state.items()}, beside)
        beside.replace(file)
    return file
