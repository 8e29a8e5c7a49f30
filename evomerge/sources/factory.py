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
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from evomerge.cache.eviction import make_room
from evomerge.cache.holding import hold
from evomerge.canonical import file_hash
from evomerge.environment import cache_folder
from evomerge.errors import one_line
from evomerge.whole_files import written_beside

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"(?P<where>[^@]+):(?P<function>[A-Za-z_]\w*)@(?P<weights>.+)")


class Factory(NamedTuple):
    """A source's parts.

    Attributes:
        where: the function's file or module.
        function: its name.
        weights: a safetensors file, or a seed.

    >>> Factory("digits.py", "mlp", "7").is_seed
    True
    """

    where: str
    function: str
    weights: str

    @property
    def is_seed(self) -> bool:
        """Whether the weights are those that the function draws by a seed."""
        return self.weights.isascii() and self.weights.isdigit()

    @property
    def place(self) -> str:
        """The same with paths from the root."""
        where = str(Path(self.where).resolve()) if self.where.endswith(".py") else self.where
        weights = self.weights if self.is_seed else str(Path(self.weights).resolve())
        return f"{where}:{self.function}@{weights}"

    @property
    def file(self) -> Path:
        """Where the function is written.

        Raises:
            ValueError: there is no such module.
        """
        if self.where.endswith(".py"):
            return Path(self.where)
        spec = importlib.util.find_spec(self.where)
        if spec is None or not spec.origin:
            raise ValueError(f"there is no module '{self.where}'")
        return Path(spec.origin)

    @property
    def definition(self) -> str:
        """16 hex digits that change when the function's file does."""
        return file_hash(self.file)


def parse_factory(name: str) -> Factory | None:
    """Return a source's parts, if it is made by a function; a directory never is.

    >>> parse_factory("digits.py:mlp@7")
    Factory(where='digits.py', function='mlp', weights='7')
    >>> parse_factory("models/a") is None
    True
    """
    match = _NAME.fullmatch(name)
    if match is None or os.path.isdir(name):
        return None
    return Factory(match["where"], match["function"], match["weights"])


def build(factory: Factory) -> "torch.nn.Module":
    """Return a new torch module, its weights whatever the function gives it.

    Raises:
        ValueError: there is no such function, or it fails.

    >>> build(Factory("torch.nn", "Identity", "0"))
    Identity()
    """
    try:
        module: torch.nn.Module = getattr(_imported(factory.where), factory.function)()
        state_of(module)
    except (Exception, SystemExit) as error:  # the user's code: whatever it raises means the same
        made_by = f"{factory.where}:{factory.function}"
        raise ValueError(f"{made_by} gave no torch module: {one_line(error)}") from error
    return module


def state_of(module: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """Return a module's state_dict.

    Raises:
        ValueError: two names share one tensor, or a value is none.

    >>> import torch
    >>> list(state_of(torch.nn.Linear(2, 3)))
    ['weight', 'bias']
    """
    import torch

    state: dict[str, torch.Tensor] = module.state_dict()
    seen: dict[int, str] = {}  # by where the numbers lie
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"its state '{name}' is no tensor")
        if tensor.numel() == 0:
            continue
        other = seen.setdefault(tensor.data_ptr(), name)
        if other != name:
            raise ValueError(f"'{name}' and '{other}' are one tensor; register it once")
    return state


@functools.lru_cache
def _imported(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = hashlib.sha256(str(Path(where).resolve()).encode()).hexdigest()[:8]
    name = f"evomerge_factory_{Path(where).stem}_{path}"  # two files may have one name
    spec = importlib.util.spec_from_file_location(name, where)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pickle and dataclasses look for it
    spec.loader.exec_module(module)
    return module


def weights_file(factory: Factory) -> Path:
    """Return the file of a source's weights; those of a seed are made once, into the cache.

    Raises:
        ValueError: see `build`.

    >>> weights_file(Factory("digits.py", "mlp", "digits.safetensors")).name
    'digits.safetensors'
    """
    if not factory.is_seed:
        return Path(factory.weights)
    key = f"{factory.place} {factory.definition}".encode()
    file = cache_folder("factories") / hashlib.sha256(key).hexdigest()[:32] / "model.safetensors"
    hold(file)
    if not file.exists():
        make_room()
        import torch
        from safetensors.torch import save_file

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(factory.weights))
            state = build(factory).state_dict()
        with written_beside(file) as temporary:
            save_file({n: t.contiguous().clone() for n, t in state.items()}, temporary)
    return file
