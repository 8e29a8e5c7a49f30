"""Presence is registration: a package's modules are imported once, and what they register is found
by name. So a new merge method, controller or space is one new file.
"""

import importlib
import pkgutil
from typing import Generic, TypeVar

from evomerge.errors import BadInput, Fault, nearest

T = TypeVar("T")


def _defined_as(entry: object) -> object:
    """Return under which name an entry was defined in which module; of other things, themselves."""
    name = getattr(entry, "__qualname__", None)
    return entry if name is None else (getattr(entry, "__module__", None), name)


class Registry(Generic[T]):
    """The registered things of one package, found by importing its modules on first use.

    >>> from evomerge.search.controllers import CONTROLLERS
    >>> CONTROLLERS.get("cma")
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no controller 'cma'; did you mean 'cmaes'?
    """

    def __init__(self, package: str, noun: str):
        """
        Args:
            package: whose modules register things.
            noun: what they are called in faults.
        """
        self.package, self.noun = package, noun
        self._entries: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str, entry: T) -> None:
        """Register an entry under a name that is not taken.

        A class or function that is defined again, as when a notebook's cell is run once more, takes
        the place of its earlier self.
        """
        before = self._entries.get(name)
        if before is not None and _defined_as(before) != _defined_as(entry):
            raise ValueError(f"two {self.noun}s are called {name!r}")
        self._entries[name] = entry

    def all(self) -> dict[str, T]:
        """Return every entry by name, sorted, importing the package's modules first."""
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True
        return dict(sorted(self._entries.items()))

    def get(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            BadInput: there is none; the fault names the nearest.
        """
        entries = self.all()
        if name not in entries:
            raise BadInput(Fault("", f"there is no {self.noun} '{name}'", nearest(name, entries)))
        return entries[name]
