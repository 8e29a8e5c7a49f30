"""Where a tensor stands in a model, read off its name: embeddings, layer n, final norm, head."""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")

_EMBED = re.compile(
    r"embed_tokens|embed_positions|wte|wpe|word_embeddings|embed_in\b|tok_embeddings"
)

_HEAD = re.compile(r"lm_head|embed_out|(?:^|\.)output\.weight|score\.weight")

PARTS = ("embed", "norm", "head")  # the tensors outside the layers; "norm" takes the rest


class Place(NamedTuple):
    """A tensor's part: `layer` is its index, or None for a part outside the layers."""

    part: str  # "embed" | "layer" | "norm" | "head"
    layer: int | None


@functools.lru_cache(maxsize=1 << 16)
def place(name: str) -> Place:
    """Return where the tensor `name` of a decoder checkpoint stands."""
    if match := _LAYER.search(name):
        return Place("layer", int(match.group(1)))
    if _EMBED.search(name):
        return Place("embed", None)
    return Place("head" if _HEAD.search(name) else "norm", None)


def before_layer(name: str) -> str:
    """Return what precedes the layer's index in a tensor name, e.g. `model.layers.`."""
    return name[: _LAYER.search(name).start(1)]


def within_layer(name: str) -> str:
    """Return what follows the layer's index in a tensor name."""
    return name[_LAYER.search(name).end() :]


def canonical_order(names: Iterable[str]) -> list[str]:
    """Sort tensor names as every flattening does: embeddings, layers, norm, head; then by name."""
    rank = {"embed": 0, "layer": 1, "norm": 2, "head": 3}

    def key(name: str) -> tuple:
        where = place(name)
        return rank[where.part], -1 if where.layer is None else where.layer, name

    return sorted(names, key=key)


def count_layers(names: Iterable[str]) -> int:
    """Return one more than the largest layer index among tensor `names`, 0 if there is none."""
    return 1 + max((p.layer for p in map(place, names) if p.layer is not None), default=-1)
