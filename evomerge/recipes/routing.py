"""Recipes of kind `routing`: which layers of which models a token passes, in what order.

The data flow of Akiba et al. (arXiv:2403.13187, section 3.2). A hop's scale multiplies the
residual stream before its layer. That is the same model as one whose branches are divided by the
product of the scales so far, so that a routed model is stored as an ordinary one.
"""

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from evomerge.canonical import json_hash
from evomerge.recipes.recipe import VERSION, Recipe


class Hop(NamedTuple):
    """One layer on the path.

    Attributes:
        model: index of the model whose layer it is.
        layer: its index in that model.
        scale: multiplies the stream before the layer.
        gains: multiply what attention and MLP add to the stream.

    >>> Hop(1, 7, 0.5)
    Hop(model=1, layer=7, scale=0.5, gains=(1.0, 1.0))
    """

    model: int
    layer: int
    scale: float = 1.0
    gains: tuple[float, float] = (1.0, 1.0)

    def to_json(self) -> list[Any]:
        """Return the hop as JSON-able data: gains are left out where they change nothing."""
        short: list[Any] = [self.model, self.layer, self.scale]
        return short if self.gains == (1.0, 1.0) else [*short, list(self.gains)]


class Fold(NamedTuple):
    """A path's scales as what an ordinary model's parts are multiplied by.

    Attributes:
        embed: of the embeddings. Any number serves; the first hop's scale lets the first layer
            see the very stream that the scaled model has, when the norms' epsilon matters most.
        hops: (attention, mlp, read) each: of the branches, and the sign of the norms.
        norm: the sign of the final norm.

    >>> whole("a", 2, "float32").fold()
    Fold(embed=1.0, hops=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)), norm=1.0)
    """

    embed: float
    hops: tuple[tuple[float, float, float], ...]
    norm: float


@dataclass(frozen=True)
class RoutingRecipe(Recipe):
    """One routed model: layers of `models` one after the other.

    Attributes:
        models, dtype: see `Recipe`.
        path: at least one hop.
        frame: index of the model that gives embeddings, final norm, head and tokenizer.

    >>> recipe = RoutingRecipe(("a", "b"), (Hop(0, 0), Hop(1, 1, 0.5), Hop(0, 1)), 0, "float32")
    >>> recipe.shares()
    [1.0, 2.0, 2.0]
    """

    kind: ClassVar[Literal["routing"]] = "routing"

    models: tuple[str, ...]
    path: tuple[Hop, ...]
    frame: int
    dtype: str

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct models that are read, the frame first."""
        used = [self.models[hop.model] for hop in self.path]
        return tuple(dict.fromkeys([self.models[self.frame], *used]))

    def to_json(self) -> dict[str, Any]:
        """See `Recipe.to_json`."""
        return {
            "version": VERSION,
            "kind": self.kind,
            "models": list(self.models),
            "path": [hop.to_json() for hop in self.path],
            "frame": self.frame,
            "dtype": self.dtype,
        }

    def id(self, hashes: Mapping[str, str]) -> str:
        """See `Recipe.id`: it is the same whatever models are listed but not read."""
        data = self.to_json()
        del data["models"]
        data["path"] = [[hashes[self.models[h.model]], *h.to_json()[1:]] for h in self.path]
        data["frame"] = hashes[self.models[self.frame]]
        return json_hash(data)

    def fold(self) -> Fold:
        """Return what an ordinary model's parts are multiplied by to be this one.

        With s the product of the scales up to a hop and k the first scale, the stream is kept
        k / s times as large as the scaled one. A hop that reads it through norms, which are blind
        to size but not to sign, adds the same branches times k / s, and so on to the final norm.
        """
        shares = self.shares()
        hops = []
        for share, hop in zip(shares, self.path, strict=True):
            attention, mlp = hop.gains
            hops.append((share * attention, share * mlp, math.copysign(1.0, share)))
        return Fold(self.path[0].scale, tuple(hops), math.copysign(1.0, shares[-1]))

    def shares(self) -> list[float]:
        """Return, for each hop, the first scale over the product of the scales up to it.

        Raises:
            ZeroDivisionError: a product is too small for a float.
        """
        products = itertools.accumulate((hop.scale for hop in self.path), operator.mul)
        return [self.path[0].scale / product for product in products]


def whole(model: str, layers: int, dtype: str) -> RoutingRecipe:
    """Return the path of one model as it is.

    >>> [hop.layer for hop in whole("a", 3, "float32").path]
    [0, 1, 2]
    """
    return RoutingRecipe((model,), tuple(Hop(0, layer) for layer in range(layers)), 0, dtype)
