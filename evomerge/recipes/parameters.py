"""Recipe: the frozen, JSON-able, complete description of one merged model. Outcome: what
became of it.

A recipe's id is the sha256 of its canonical JSON with each model replaced by the hash of
its content, so the same merge has the same id wherever its sources lie.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.canonical import _positive_zeros, canonical_json
from evomerge.tensor_names import Place

VERSION = 1


@dataclass(frozen=True)
class Group:
    """The coefficients of the tensors in `layers` whose name contains `modules`.

    `layers` is (first, last + 1), "embed", "norm", "head", or None for every tensor;
    `modules` is a substring, or None for every name. `values` maps a parameter of the
    method to a float, or to a tuple with one float per model. `method` is that of the group,
    where it is not the recipe's.
    """

    layers: tuple[int, int] | str | None
    modules: str | None
    values: Mapping[str, float | tuple[float, ...]]
    method: str | None = None

    def holds(self, name: str, where: Place) -> bool:
        if self.modules is not None and self.modules not in name:
            return False
        if self.layers is None:
            return True
        if isinstance(self.layers, str):
            return where.part == self.layers
        return where.layer is not None and self.layers[0] <= where.layer < self.layers[1]


@dataclass(frozen=True)
class Recipe:
    """One merged model of kind `parameters`: a method and its coefficients by group.

    `models` and `base` name sources (a directory, or a hub id with or without @revision). A
    tensor takes the values of the first group that holds it. `seed` is there only if the
    method draws.
    """

    method: str
    models: tuple[str, ...]
    groups: tuple[Group, ...]
    base: str | None = None
    dtype: str = "bfloat16"
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "parameters"

    def to_json(self) -> dict:
        """Return the recipe as JSON-able data; `from_json` reads it back, equal."""
        data = {
            "version": VERSION,
            "kind": self.kind,
            "method": self.method,
            "models": list(self.models),
            "base": self.base,
            "dtype": self.dtype,
            "options": dict(self.options),
            "groups": [_group_to_json(g) for g in self.groups],
        }
        return data | ({} if self.seed is None else {"seed": self.seed})

    @property
    def methods(self) -> tuple[str, ...]:
        """The distinct methods of its groups, in their order."""
        return tuple(dict.fromkeys(group.method or self.method for group in self.groups))

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct sources it reads, the base first."""
        named = ((self.base,) if self.base else ()) + self.models
        return tuple(dict.fromkeys(named))

    def id(self, hashes: Mapping[str, str]) -> str:
        """Return the recipe's id, 64 hex digits.

        Args:
            hashes: the content hash of each of `sources`.
        """
        data = self.to_json()
        data["models"] = [hashes[m] for m in self.models]
        data["base"] = hashes[self.base] if self.base else None
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _group_to_json(group: Group) -> dict:
    layers = list(group.layers) if isinstance(group.layers, tuple) else group.layers
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in group.values.items()}
    own = {} if group.method is None else {"method": group.method}
    return {"layers": layers, "modules": group.modules, **own, **_positive_zeros(values)}


def single(model: str, dtype: str) -> Recipe:
    """Return the recipe of one source as it is: the baseline that a merge has to beat."""
    return uniform((model,), dtype)


def uniform(models: tuple[str, ...], dtype: str) -> Recipe:
    """Return the recipe of the uniform average of `models` (a model soup, arXiv:2203.05482)."""
    weight = (1.0 / len(models),) * len(models)
    return Recipe("linear", models, (Group(None, None, {"weight": weight}),), dtype=dtype)
