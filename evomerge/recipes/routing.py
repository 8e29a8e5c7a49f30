"""Routing: a recipe that says which layers of which models a token passes, in what order.

The data flow of Akiba et al. (arXiv:2403.13187, section 3.2). A hop's scale multiplies the
residual stream before its layer. That is the same model as one whose branches are divided by the
product of the scales so far, so that a routed model is stored as an ordinary one.
"""

import hashlib
import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from evomerge.canonical import canonical_json
from evomerge.dtypes import DTYPES
from evomerge.errors import BadInput, Checks, Fault
from evomerge.recipes.parameters import VERSION

_KEYS = {"version", "kind", "models", "path", "frame", "dtype"}


class Hop(NamedTuple):
    """One layer on the path: of which model, and what is multiplied.

    `scale` multiplies the stream before the layer; `gains` what attention and MLP add to it.
    """

    model: int
    layer: int
    scale: float = 1.0
    gains: tuple[float, float] = (1.0, 1.0)


class Fold(NamedTuple):
    """A path's scales as what an ordinary model's parts are multiplied by.

    Attributes:
        embed: of the embeddings. Any number serves; the first hop's scale lets the first layer
            see the very stream that the scaled model has, when the norms' epsilon matters most.
        hops: (attention, mlp, read) each: of the branches, and the sign of the norms.
        norm: the sign of the final norm.
    """

    embed: float
    hops: tuple[tuple[float, float, float], ...]
    norm: float


@dataclass(frozen=True)
class Routing:
    """One model of kind `routing`: layers of `models` one after the other.

    `frame` is the index of the model that gives embeddings, final norm, head and tokenizer.
    """

    models: tuple[str, ...]
    path: tuple[Hop, ...]
    frame: int
    dtype: str
    kind: str = "routing"

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct models that are read, the frame first."""
        used = [self.models[hop.model] for hop in self.path]
        return tuple(dict.fromkeys([self.models[self.frame], *used]))

    def to_json(self) -> dict:
        """Return the recipe as JSON-able data; `recipe.from_json` reads it back."""
        return {
            "version": VERSION,
            "kind": self.kind,
            "models": list(self.models),
            "path": [_hop_to_json(hop) for hop in self.path],
            "frame": self.frame,
            "dtype": self.dtype,
        }

    def id(self, hashes: Mapping[str, str]) -> str:
        """Return the recipe's id, 64 hex digits: the same whatever models it does not read."""
        path = [[hashes[self.models[h.model]], *_hop_to_json(h)[1:]] for h in self.path]
        data = self.to_json() | {"path": path, "frame": hashes[self.models[self.frame]]}
        del data["models"]
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()

    def fold(self) -> Fold:
        """Return what an ordinary model's parts are multiplied by to be this one.

        With s the product of the scales up to a hop and k the first scale, the stream is kept
        k / s times as large as the scaled one. A hop that reads it through norms, which are blind
        to size but not to sign, adds the same branches times k / s, and so on to the final norm.
        """
        shares = self.shares()
        signs = [math.copysign(1.0, share) for share in shares]
        pairs = zip(shares, signs, self.path, strict=True)
        hops = tuple((s * hop.gains[0], s * hop.gains[1], sign) for s, sign, hop in pairs)
        return Fold(self.path[0].scale, hops, signs[-1])

    def shares(self) -> list[float]:
        """Return, for each hop, the first scale over the product of the scales up to it.

        Raises:
            ZeroDivisionError: a product is too small for a float.
        """
        products = itertools.accumulate((hop.scale for hop in self.path), operator.mul)
        return [self.path[0].scale / product for product in products]


def whole(model: str, layers: int, dtype: str) -> Routing:
    """Return the path of one model as it is."""
    return Routing((model,), tuple(Hop(0, layer) for layer in range(layers)), 0, dtype)


def _hop_to_json(hop: Hop) -> list:
    gains = [] if hop.gains == (1.0, 1.0) else [list(hop.gains)]
    return [hop.model, hop.layer, hop.scale, *gains]


def routing_from_json(data: Mapping[str, Any], file: str) -> Routing:
    """Read a routing back from its JSON; see `recipe.from_json`."""
    checks = Checks(data, _KEYS, file)
    need, faults = checks.need, checks.faults
    models, path, frame = data.get("models"), data.get("path"), data.get("frame")
    texts = isinstance(models, list) and all(isinstance(m, str) and m for m in models)
    need("version", data.get("version") == VERSION, f"write {VERSION}")
    need("models", texts and bool(models), "write a list of model directories or hub ids")
    need("dtype", data.get("dtype") in DTYPES, f"write one of {', '.join(DTYPES)}")
    need("path", isinstance(path, list) and bool(path), "write a list of hops")
    count = len(models) if isinstance(models, list) else 0
    need("frame", _index(frame, count), "write the index of one of the models")
    if faults:
        raise BadInput(*faults)
    hops = []
    for index, entry in enumerate(path):
        try:
            hops.append(_hop_from_json(entry, count))
        except ValueError as error:
            mend = "write [model index, layer index, scale], and perhaps [attention, mlp] gains"
            faults.append(Fault(file, f"path.{index}", str(error), mend))
    if faults:
        raise BadInput(*faults)
    recipe = Routing(tuple(models), tuple(hops), frame, data["dtype"])
    if not _bounded(recipe):
        wrong = "the scales' product leaves the range of numbers"
        raise BadInput(Fault(file, "path", wrong, "write scales nearer to 1"))
    return recipe


def _hop_from_json(entry: Any, models: int) -> Hop:
    if not isinstance(entry, list) or len(entry) not in (3, 4):
        raise ValueError(f"{entry!r} is no hop")
    model, layer, scale, *rest = entry
    if not _index(model, models):
        raise ValueError(f"there is no model {model!r}")
    if not _index(layer, 1 << 20):
        raise ValueError(f"there is no layer {layer!r}")
    if not _number(scale) or scale == 0:
        raise ValueError(f"scale {scale!r} is no finite number other than 0")
    gains = rest[0] if rest else [1.0, 1.0]
    if not isinstance(gains, list) or len(gains) != 2 or not all(map(_number, gains)):
        raise ValueError(f"gains {gains!r} are not two finite numbers")
    return Hop(model, layer, float(scale), (float(gains[0]), float(gains[1])))


def _index(value: Any, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _number(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and abs(value) <= 1e30


def _bounded(recipe: Routing) -> bool:
    try:
        return all(1e-30 < abs(share) < 1e30 for share in recipe.shares())
    except ZeroDivisionError:
        return False
