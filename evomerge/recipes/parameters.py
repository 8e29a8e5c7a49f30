"""Recipes of kind `parameters`: a merge method, and its coefficients by groups of tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from evomerge.canonical import json_hash, positive_zeros
from evomerge.recipes.block_names import holds
from evomerge.recipes.recipe import VERSION, Recipe
from evomerge.tensor_names import Place


@dataclass(frozen=True)
class Group:
    """The coefficients of the tensors in `layers` whose name contains `modules`.

    Attributes:
        layers: (first, last + 1), "embed", "norm", "head", or None for every tensor.
        modules: a substring of tensor names or a block (see `block_names`); None for every name.
        values: parameter of the method -> a float, or a tuple with one float a model.
        method: that of the group, where it is not the recipe's.

    >>> from evomerge.tensor_names import place
    >>> group = Group((0, 4), "mlp", {"weight": (0.5, 0.5)})
    >>> name = "model.layers.3.mlp.up_proj.weight"
    >>> group.holds(name, place(name))
    True
    """

    layers: tuple[int, int] | str | None
    modules: str | None
    values: Mapping[str, float | tuple[float, ...]]
    method: str | None = None

    def holds(self, name: str, where: Place) -> bool:
        """Tell whether the tensor `name`, which stands at `where`, is one of the group's."""
        if self.modules is not None and not holds(self.modules, name):
            return False
        if self.layers is None:
            return True
        if isinstance(self.layers, str):
            return where.part == self.layers
        return where.layer is not None and self.layers[0] <= where.layer < self.layers[1]

    def to_json(self) -> dict[str, Any]:
        """Return the group as JSON-able data."""
        layers = list(self.layers) if isinstance(self.layers, tuple) else self.layers
        data: dict[str, Any] = {"layers": layers, "modules": self.modules}
        if self.method is not None:
            data["method"] = self.method
        return data | positive_zeros(self.values)


@dataclass(frozen=True)
class ParametersRecipe(Recipe):
    """One merged model: a method and its coefficients by group.

    A tensor takes the values of the first group that holds it.

    Attributes:
        method: the name of a merge method.
        models, dtype: see `Recipe`.
        groups: at least one.
        base: the common ancestor, for methods that need one.
        seed: of the method's random masks; None if it draws none.
        options: of the method, which knows their types.

    >>> group = Group(None, None, {"weight": (0.4, 0.7), "density": (0.5, 0.5)})
    >>> ParametersRecipe("ties", ("a", "b"), (group,), base="base").sources
    ('base', 'a', 'b')
    """

    kind: ClassVar[Literal["parameters"]] = "parameters"

    method: str
    models: tuple[str, ...]
    groups: tuple[Group, ...]
    base: str | None = None
    dtype: str = "bfloat16"
    seed: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """See `Recipe.to_json`."""
        data = {
            "version": VERSION,
            "kind": self.kind,
            "method": self.method,
            "models": list(self.models),
            "base": self.base,
            "dtype": self.dtype,
            "options": dict(self.options),
            "groups": [group.to_json() for group in self.groups],
        }
        if self.seed is not None:
            data["seed"] = self.seed
        return data

    @property
    def methods(self) -> tuple[str, ...]:
        """The distinct methods of its groups, in their order."""
        return tuple(dict.fromkeys(group.method or self.method for group in self.groups))

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct sources that it reads, the base first."""
        base = () if self.base is None else (self.base,)
        return tuple(dict.fromkeys(base + self.models))

    def id(self, hashes: Mapping[str, str]) -> str:
        """See `Recipe.id`."""
        data = self.to_json()
        data["models"] = [hashes[model] for model in self.models]
        data["base"] = None if self.base is None else hashes[self.base]
        return json_hash(data)


def single(model: str, dtype: str) -> ParametersRecipe:
    """Return the recipe of one source as it is: the baseline that a merge has to beat.

    >>> single("a", "float32").groups[0].values
    {'weight': (1.0,)}
    """
    return uniform((model,), dtype)


def uniform(models: tuple[str, ...], dtype: str) -> ParametersRecipe:
    """Return the recipe of the uniform average of `models` (a model soup, arXiv:2203.05482).

    >>> uniform(("a", "b"), "float32").groups[0].values
    {'weight': (0.5, 0.5)}
    """
    weight = (1.0 / len(models),) * len(models)
    return ParametersRecipe("linear", models, (Group(None, None, {"weight": weight}),), dtype=dtype)
