"""Explicit individuals: weights that are bred and mutated, kept as how they came to be.

What a small model evolves into from random weights is no combination of its seeds, so a recipe
is its lineage: who was crossed with whom, where and by how much, and the seed of the noise. The
weights of those that live are a cache, which the lineage can always rebuild.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from evomerge.canonical import canonical_json
from evomerge.errors import BadInput, Checks, Fault
from evomerge.recipes.parameters import VERSION, single

_KEYS = {"version", "kind", "models", "dtype", "layout", "interpolation", "births"}


class Birth(NamedTuple):
    """One crossing and its mutation.

    Parents are recipes' ids in an archive; in a recipe that stands alone, numbers: of the models,
    then of the births before. Left of the parameter `split` the child is f_mix(A, B), from there
    on f_(1 - mix)(A, B); then N(0, sigma^2) is added, drawn by `seed`.
    """

    parents: tuple[str | int, str | int]
    mix: float
    split: int
    sigma: float
    seed: int


@dataclass(frozen=True)
class Explicit:
    """One model of kind `explicit`: that of the last birth, in float32."""

    models: tuple[str, ...]
    births: tuple[Birth, ...]
    layout: str
    interpolation: str = "slerp"  # or "lerp"
    dtype: str = "float32"
    kind: str = "explicit"

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct models."""
        return tuple(dict.fromkeys(self.models))

    def to_json(self) -> dict:
        """Return the recipe as JSON-able data; `recipe.from_json` reads it back."""
        births = [list(b._replace(parents=list(b.parents))) for b in self.births]
        return {
            "version": VERSION,
            "kind": self.kind,
            "models": list(self.models),
            "dtype": self.dtype,
            "layout": self.layout,
            "interpolation": self.interpolation,
            "births": births,
        }

    def id(self, hashes: Mapping[str, str]) -> str:
        """Return the recipe's id: a hash of the last birth and of its parents' ids."""
        known: list[str] = [single(m, self.dtype).id(hashes) for m in self.models]
        for birth in self.births:
            parents = [p if isinstance(p, str) else known[p] for p in birth.parents]
            data = [self.layout, self.interpolation, parents, *birth[1:]]
            known.append(hashlib.sha256(canonical_json(data).encode()).hexdigest())
        return known[-1]


def explicit_from_json(data: Mapping[str, Any], file: str) -> Explicit:
    """Read a recipe back from its JSON; see `recipe.from_json`."""
    checks = Checks(data, _KEYS, file)
    need, faults = checks.need, checks.faults
    models, births = data.get("models"), data.get("births")
    texts = isinstance(models, list) and all(isinstance(m, str) and m for m in models)
    need("version", data.get("version") == VERSION, f"write {VERSION}")
    need("models", texts and bool(models), "write a list of models")
    need("dtype", data.get("dtype") == "float32", "write float32")
    need("layout", isinstance(data.get("layout"), str), "write the layout's hash")
    ways = ("slerp", "lerp")
    need("interpolation", data.get("interpolation") in ways, "write slerp or lerp")
    need("births", isinstance(births, list) and bool(births), "write a list")
    if faults:
        raise BadInput(*faults)
    read = []
    for index, entry in enumerate(births):
        try:
            read.append(_birth(entry, len(models) + index))
        except (TypeError, ValueError) as error:
            mend = "write [[parent, parent], mix, split, sigma, seed]"
            wrong = f"is no birth ({str(error)[:80]})"
            faults.append(Fault(file, f"births.{index}", wrong, mend))
    if faults:
        raise BadInput(*faults)
    return Explicit(tuple(models), tuple(read), data["layout"], data["interpolation"])


def _birth(entry: Any, before: int) -> Birth:
    (first, second), mix, split, sigma, seed = entry
    for parent in (first, second):
        alone = type(parent) is int and 0 <= parent < before
        if not alone and not (isinstance(parent, str) and len(parent) == 64):
            raise ValueError(f"parent {parent!r} is none of those before")
    numbers = all(type(x) in (int, float) and x >= 0.0 for x in (mix, sigma))
    inside = numbers and mix <= 1.0 and sigma < 1e30
    if not inside or not all(type(x) is int and 0 <= x < 2**63 for x in (split, seed)):
        raise ValueError("a number is out of range")
    return Birth((first, second), float(mix), split, float(sigma), seed)
