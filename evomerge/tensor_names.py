"""Where a tensor stands in a model, read off its name: embeddings, layer n, final norm, head."""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

# As transformers names them: Llama and its kin `layers`, GPT-NeoX `layers`, GPT-2 `h`, others.
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")

_EMBED = re.compile(
    r"embed_tokens|embed_positions|wte|wpe|word_embeddings|embed_in\b|tok_embeddings"
    r"|(?:^|\.)(?:shared|embeddings)\.weight"  # T5 and BART, Mamba
)

_HEAD = re.compile(r"lm_head|embed_out|(?:^|\.)output\.weight|score\.weight|cls\.predictions\.")

PARTS = ("embed", "norm", "head")  # the tensors outside the layers; "norm" takes the rest

_RANK = {"embed": 0, "layer": 1, "norm": 2, "head": 3}


class Place(NamedTuple):
    """Where a tensor stands.

    Attributes:
        part: "embed", "layer", "norm" or "head".
        layer: its index, or None for a part outside the layers.

    >>> Place("layer", 3).layer
    3
    """

    part: str
    layer: int | None


@functools.lru_cache(maxsize=1 << 16)
def place(name: str) -> Place:
    """Return where the tensor `name` of a decoder's checkpoint stands.

    >>> place("model.layers.3.mlp.up_proj.weight"), place("lm_head.weight")
    (Place(part='layer', layer=3), Place(part='head', layer=None))
    """
    if match := _LAYER.search(name):
        return Place("layer", int(match.group(1)))
    if _EMBED.search(name):
        return Place("embed", None)
    return Place("head" if _HEAD.search(name) else "norm", None)


def before_layer(name: str) -> str:
    """Return what precedes the layer's index in the name of a layer's tensor.

    >>> before_layer("model.layers.3.mlp.up_proj.weight")
    'model.layers.'
    """
    return name[: _layer_in(name).start(1)]


def within_layer(name: str) -> str:
    """Return what follows the layer's index in the name of a layer's tensor.

    >>> within_layer("model.layers.3.mlp.up_proj.weight")
    'mlp.up_proj.weight'
    """
    return name[_layer_in(name).end() :]


def _layer_in(name: str) -> re.Match[str]:
    match = _LAYER.search(name)
    if match is None:
        raise ValueError(f"{name} is no tensor of a layer")
    return match


def canonical_order(names: Iterable[str]) -> list[str]:
    """Sort tensor names as every flattening does: embeddings, layers, norm, head; then by name.

    >>> canonical_order(["norm.weight", "layers.10.a.weight", "layers.9.b.weight", "wte.weight"])
    ['wte.weight', 'layers.9.b.weight', 'layers.10.a.weight', 'norm.weight']
    """

    def key(name: str) -> tuple[int, int, str]:
        where = place(name)
        return _RANK[where.part], -1 if where.layer is None else where.layer, name

    return sorted(names, key=key)


def count_layers(names: Iterable[str]) -> int:
    """Return one more than the largest layer index among tensor `names`, 0 if there is none.

    >>> count_layers(["wte.weight", "layers.0.a.weight", "layers.3.a.weight"])
    4
    """
    layers = (place(name).layer for name in names)
    return 1 + max((layer for layer in layers if layer is not None), default=-1)
