"""Recipes of kind `explicit`: weights that are bred and mutated, kept as how they came to be.

What a small model evolves into from random weights is no combination of its seeds, so a recipe
is its lineage: who was crossed with whom, where and by how much, and the seed of the noise. The
weights of those that live are a cache, which the lineage can always rebuild.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from evomerge.canonical import json_hash
from evomerge.recipes.parameters import single
from evomerge.recipes.recipe import VERSION, Recipe


class Birth(NamedTuple):
    """One crossing and its mutation.

    Left of the parameter `split` the child is f_mix(A, B), from there on f_(1 - mix)(A, B), f
    being slerp or lerp; then noise of N(0, sigma^2) is added.

    Attributes:
        parents: A and B: recipes' ids in an archive; in a recipe that stands alone, numbers: of
            the models, then of the births before.
        mix: the share of B left of the split, from 0 to 1.
        split: the number of a parameter.
        sigma: the standard deviation of the noise.
        seed: of the noise.

    >>> Birth((0, 1), 0.3, 50, 0.01, 7).parents
    (0, 1)
    """

    parents: tuple[str | int, str | int]
    mix: float
    split: int
    sigma: float
    seed: int


@dataclass(frozen=True)
class ExplicitRecipe(Recipe):
    """One bred model: that of the last birth, in float32.

    Attributes:
        models, dtype: see `Recipe`.
        births: at least one.
        parameter_index_hash: of the index that splits refer to.
        interpolation: "slerp" or "lerp".

    >>> births = (Birth((0, 1), 0.3, 50, 0.01, 7), Birth((2, 0), 0.6, 9, 0.0, 0))
    >>> recipe = ExplicitRecipe(("a", "b"), births, "hash of the index")
    >>> recipe.to_json()["births"][1]
    [[2, 0], 0.6, 9, 0.0, 0]
    """

    kind: ClassVar[Literal["explicit"]] = "explicit"

    models: tuple[str, ...]
    births: tuple[Birth, ...]
    parameter_index_hash: str
    interpolation: str = "slerp"
    dtype: str = "float32"

    def to_json(self) -> dict[str, Any]:
        """See `Recipe.to_json`."""
        return {
            "version": VERSION,
            "kind": self.kind,
            "models": list(self.models),
            "dtype": self.dtype,
            "parameter_index_hash": self.parameter_index_hash,
            "interpolation": self.interpolation,
            "births": [[list(birth.parents), *birth[1:]] for birth in self.births],
        }

    def id(self, hashes: Mapping[str, str]) -> str:
        """Return the recipe's id: a hash of the last birth and of its parents' ids."""
        ids: list[str] = []  # of the births
        for birth in self.births:
            parents = [self._parent_id(parent, ids, hashes) for parent in birth.parents]
            data = [self.parameter_index_hash, self.interpolation, parents, *birth[1:]]
            ids.append(json_hash(data))
        return ids[-1]

    def _parent_id(self, parent: str | int, ids: Sequence[str], hashes: Mapping[str, str]) -> str:
        if isinstance(parent, str):
            return parent
        if parent < len(self.models):
            return single(self.models[parent], self.dtype).id(hashes)
        return ids[parent - len(self.models)]
