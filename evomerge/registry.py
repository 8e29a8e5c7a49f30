"""Presence is registration: a package's modules are imported once, and what they register is found
by name. So a new merge method, controller or space is one new file.

It may also be in another package, a plug-in, which names its module in an entry point of a group of
ours (`evomerge.methods`, `evomerge.controllers`, ...). Only what is installed counts.
"""

import functools
import importlib
import logging
import pkgutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from evomerge.errors import BadInput, EvomergeError, Fault, nearest, one_line

log = logging.getLogger("evomerge")

T = TypeVar("T")

_GROUPS = "evomerge."  # how the groups' names begin


class Plugin(NamedTuple):
    """An installed package that adds to ours.

    >>> str(Plugin("evomerge-example", "0.1"))
    'evomerge-example 0.1'
    """

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


class _Loading:
    """Whose module is imported now; None where it is ours."""

    plugin: Plugin | None = None


def _defined_as(entry: object) -> object:
    """Return under which name an entry was defined in which module; of other things, themselves."""
    name = getattr(entry, "__qualname__", None)
    return entry if name is None else (getattr(entry, "__module__", None), name)


class Registry(Generic[T]):
    """The registered things of one package, found by importing its modules on first use.

    Plug-ins' are imported after our own, and come with their packages' names.

    >>> from evomerge.search.controllers import CONTROLLERS
    >>> CONTROLLERS.get("cma")
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no controller 'cma'; did you mean 'cmaes'?
    """

    def __init__(self, package: str, noun: str, group: str = ""):
        """
        Args:
            package: whose modules register things.
            noun: what they are called in faults.
            group: of plug-ins' entry points; by default it is called as the package.
        """
        self.package, self.noun = package, noun
        self.group = group or _GROUPS + package.rpartition(".")[2]
        self._entries: dict[str, T] = {}
        self._plugins: dict[str, Plugin] = {}
        self._loaded = False

    def add(self, name: str, entry: T) -> None:
        """Register an entry under a name that is not taken.

        A class or function that is defined again, as when a notebook's cell is run once more, takes
        the place of its earlier self.

        Raises:
            EvomergeError: a plug-in's name is taken.
        """
        plugin, before = _Loading.plugin, self._entries.get(name)
        if before is not None and _defined_as(before) != _defined_as(entry):
            if plugin is None and name not in self._plugins:
                raise ValueError(f"two {self.noun}s are called {name!r}")
            owners = [f"the package {p}" if p else "evomerge" for p in (plugin, self.plugin(name))]
            wrong = f"two {self.noun}s are called '{name}', of {' and of '.join(owners)}"
            raise EvomergeError(f"{wrong}; uninstall one, or have it renamed")
        self._entries[name] = entry
        if plugin is not None:
            self._plugins[name] = plugin

    def all(self) -> dict[str, T]:
        """Return every entry by name, sorted, importing the package's modules first."""
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            for entry_point in _installed().get(self.group, ()):
                self._load(entry_point)
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

    def plugin(self, name: str) -> Plugin | None:
        """Return whose an entry is; None if it is ours."""
        return self._plugins.get(name)

    def _load(self, entry_point: metadata.EntryPoint) -> None:
        """Import a plug-in's module; one that fails is left out, and said so."""
        plugin, before = _plugin_of(entry_point), dict(self._entries)
        _Loading.plugin = plugin
        try:
            entry_point.load()
        except EvomergeError:
            raise
        except Exception as error:  # a stranger's code: whatever it raises means the same
            self._entries = before
            log.warning(
                "the plug-in %s is left out: %s cannot be imported: %s",
                plugin,
                entry_point.value,
                one_line(error),
            )
        finally:
            _Loading.plugin = None


def plugins() -> dict[str, str]:
    """Return the version of every installed plug-in by its package's name.

    >>> isinstance(plugins(), dict)
    True
    """
    found = [_plugin_of(e) for group in _installed().values() for e in group]
    return {plugin.package: plugin.version for plugin in sorted(found)}


def _plugin_of(entry_point: metadata.EntryPoint) -> Plugin:
    distribution = entry_point.dist
    if distribution is None:
        return Plugin(entry_point.value, "of no package")
    return Plugin(distribution.name, distribution.version)


@functools.cache
def _installed() -> Mapping[str, Sequence[metadata.EntryPoint]]:
    """Return the entry points of our groups, in the order of their packages' names.

    What lies in the folder that a command is started in, which may come from anyone, is not
    installed, though Python finds it.
    """
    here = Path.cwd().resolve()
    groups: dict[str, list[metadata.EntryPoint]] = {}
    seen: set[str] = set()
    for distribution in metadata.distributions():
        if _GROUPS not in (distribution.read_text("entry_points.txt") or ""):
            continue  # nearly all: to read more of each takes long
        if distribution.name in seen or Path(str(distribution.locate_file(""))).resolve() == here:
            continue
        seen.add(distribution.name)  # the first that Python finds is the one that is imported
        for entry_point in distribution.entry_points:
            if entry_point.group.startswith(_GROUPS):
                groups.setdefault(entry_point.group, []).append(entry_point)
    for found in groups.values():
        found.sort(key=lambda e: (_plugin_of(e), e.name))
    return groups
