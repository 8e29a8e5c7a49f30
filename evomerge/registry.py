"""Presence is registration: a package's sibling modules are imported once, and what they
decorate is found by name. Options are declared in one place, the callable's signature.
"""

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from evomerge.errors import BadInput, Fault, nearest


class Registry:
    """The registered things of one package, found by importing its modules on first use."""

    def __init__(self, package: str, noun: str):
        self.package, self.noun = package, noun
        self._entries: dict[str, Any] = {}
        self._loaded = False

    def add(self, name: str, entry: Any) -> None:
        if name in self._entries:
            raise ValueError(f"two {self.noun}s are called {name!r}")
        self._entries[name] = entry

    def all(self) -> dict[str, Any]:
        """Return every entry by name, sorted, importing the package's modules first."""
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True
        return dict(sorted(self._entries.items()))

    def get(self, name: str, file: str = "evomerge", key: str = "name") -> Any:
        """Return the entry called `name`.

        Raises:
            BadInput: there is none; the fault names the nearest.
        """
        entries = self.all()
        if name not in entries:
            mend = nearest(name, entries)
            raise BadInput(Fault(file, key, f"there is no {self.noun} '{name}'", mend))
        return entries[name]


def option_parameters(function: Callable, reserved: Iterable[str]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of `function` that a user may set."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return {
        p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in set(reserved)
    }


def option_faults(
    function: Callable, options: dict, reserved: Iterable[str], *, file: str, key: str
) -> list[Fault]:
    """Check `options` against the signature of `function`; return what is wrong with them."""
    known = option_parameters(function, reserved)
    faults = []
    for name, value in options.items():
        if name not in known:
            mend = nearest(name, known)
            faults.append(Fault(file, f"{key}.{name}", f"unknown option '{name}'", mend))
        elif not fits(value, known[name].annotation):
            said = annotation_text(known[name].annotation)
            faults.append(Fault(file, f"{key}.{name}", f"{value!r} is not {said}", f"write {said}"))
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            said = annotation_text(parameter.annotation)
            faults.append(Fault(file, f"{key}.{name}", "is missing", f"write {said}"))
    return faults


def fits(value: Any, annotation: Any) -> bool:
    """Tell whether a YAML value can stand for `annotation` (a scalar type, union or Literal)."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in typing.get_args(annotation))
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in typing.get_args(annotation))
    if origin is typing.Annotated:
        return fits(value, typing.get_args(annotation)[0])
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and -1e300 < value < 1e300  # no infinity, no NaN, no endless integer
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is None or annotation is type(None):
        return value is None
    return isinstance(value, annotation)


def annotation_text(annotation: Any) -> str:
    """Say an annotation to a user, e.g. 'a number or null'."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(annotation_text(a) for a in typing.get_args(annotation))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return names.get(annotation, "null" if annotation in (None, type(None)) else str(annotation))
