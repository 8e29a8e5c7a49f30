"""The units of a decoder that may stand in any order: neurons of MLPs, heads, the stream's entries.

Which tensors have an entry for each of them, family by family. A unit's number means nothing: two
models trained apart have learnt their own, and the same model can be written in very many orders.
Torch-free.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evomerge.errors import BadInput, Fault, nearest
from evomerge.sources.architectures import effective
from evomerge.sources.source import Source
from evomerge.tensor_names import place, within_layer


class Slot(NamedTuple):
    """Where units stand along an axis of a tensor.

    Attributes:
        tensor: its name.
        axis: of the tensor.
        start: of the first unit.
        block: entries that a unit has one after another, as a head has rows.
        stride: from one unit's first entry to the next one's.

    >>> Slot("q_proj.weight", 0, 0, block=2, stride=2).positions(np.array([1, 0]))
    array([2, 3, 0, 1])
    """

    tensor: str
    axis: int
    start: int = 0
    block: int = 1
    stride: int = 1

    def positions(self, order: np.ndarray) -> np.ndarray:
        """Return the (units * block,) entries of units in an order, (units,) whole numbers."""
        firsts = self.start + self.stride * np.asarray(order)
        return (firsts[:, None] + np.arange(self.block)).reshape(-1)


@dataclass(frozen=True)
class Units:
    """Units that may change places with one another, if they do so in every slot.

    Attributes:
        name: for people, e.g. "layer 3 mlp".
        kind: "mlp", "attention", "stream" or "hidden".
        count: how many there are.
        slots: where they stand.
        inner: parts of a unit that may change places within it, as the queries' heads that share
            one head of keys and values; 1 for none.
        inner_slots: where these stand, those of the first unit first.

    >>> Units("layer 0 mlp", "mlp", 2, (Slot("up.weight", 0), Slot("down.weight", 1))).inner
    1
    """

    name: str
    kind: str
    count: int
    slots: tuple[Slot, ...]
    inner: int = 1
    inner_slots: tuple[Slot, ...] = ()


class Names(NamedTuple):
    """What a family calls the matrices of a layer.

    Attributes:
        query, key, value: of attention; where they are one matrix its name stands three times.
        out: that writes what attention found to the stream.
        up: of the MLP, from the stream to its neurons; where two are one matrix its name stands
            twice.
        down: back to the stream.
        transposed: whether matrices are stored (in, out), as GPT-2 does.
        interleaved: whether the one matrix of attention has query, key and value head by head.

    >>> NAMES["gpt2"].up
    ('mlp.c_fc',)
    """

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    out: str = "self_attn.o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    transposed: bool = False
    interleaved: bool = False


_LLAMA = Names()

# Each is read off the family's modeling file in transformers 5; the tests reorder a random model
# of each and compare what it says.
NAMES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "olmo2"), _LLAMA),
    "phi": Names(out="self_attn.dense", up=("mlp.fc1",), down="mlp.fc2"),
    "phi3": Names(
        *("self_attn.qkv_proj",) * 3,
        up=("mlp.gate_up_proj", "mlp.gate_up_proj"),
    ),
    "gpt2": Names(
        *("attn.c_attn",) * 3,
        out="attn.c_proj",
        up=("mlp.c_fc",),
        down="mlp.c_proj",
        transposed=True,
    ),
    "gpt_neox": Names(
        *("attention.query_key_value",) * 3,
        out="attention.dense",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        interleaved=True,
    ),
}


class Layer(NamedTuple):
    """Where the units of one layer stand: slots of weights' axes that number units.

    Attributes:
        prefix: of the layer's tensors, e.g. "model.layers.3.".
        query: by heads of queries.
        key, value: by heads of keys and values.
        out: by heads of queries, of what attention writes with.
        up: by neurons.
        down: by neurons.
        heads: of queries.
        groups: heads of keys and values.
        width: neurons of the MLP.

    >>> from evomerge.sources.safetensors_file import Tensor
    >>> Layer._fields[:2]
    ('prefix', 'query')
    """

    prefix: str
    query: Slot
    key: Slot
    value: Slot
    out: Slot
    up: tuple[Slot, ...]
    down: Slot
    heads: int
    groups: int
    width: int


def layers_of(source: Source) -> list[Layer]:
    """Return where the units of each layer of a decoder stand.

    Raises:
        BadInput: its family is not known here, or its tensors are not what its config says.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     layers = layers_of(open_source(str(tiny_llama(folder, seed=0))))
    >>> layers[1].key
    Slot(tensor='model.layers.1.self_attn.k_proj.weight', axis=0, start=0, block=8, stride=8)
    """
    kind = str(source.config.get("model_type"))
    if kind not in NAMES:
        wrong = f"'{source.name}': the units of models of type '{kind}' are not known here"
        raise BadInput(Fault("", wrong, nearest(kind, NAMES) or f"take one of {', '.join(NAMES)}"))
    config = effective(source.config)
    prefixes: dict[int, str] = {}  # by the layer's number
    for name in source.tensors:
        if (layer := place(name).layer) is not None:
            prefixes.setdefault(layer, name.removesuffix(within_layer(name)))
    layers = [_layer(source, NAMES[kind], config, prefixes[n]) for n in sorted(prefixes)]
    known = {slot.tensor.rpartition(".")[0] for layer in layers for slot in _all_slots(layer)}
    for name, tensor in source.tensors.items():
        inside = place(name).layer is not None
        if inside and name.rpartition(".")[0] not in known and len(tensor.shape) > 1:
            wrong = f"'{source.name}' has {name}, whose units are not known here"
            raise BadInput(Fault("", wrong, "take a model without it"))
    return layers


def _all_slots(layer: Layer) -> Iterator[Slot]:
    yield from (layer.query, layer.key, layer.value, layer.out, *layer.up, layer.down)


def _layer(source: Source, names: Names, config: Mapping[str, Any], prefix: str) -> Layer:
    heads = int(config.get("num_attention_heads") or config["n_head"])
    hidden = int(config.get("hidden_size") or config["n_embd"])
    groups = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or hidden // heads)
    outputs = 1 if names.transposed else 0

    def slot(module: str, axis: int, start: int, block: int, stride: int) -> Slot:
        return Slot(f"{prefix}{module}.weight", axis, start, block, stride)

    starts, stride = (0, 0, 0), size
    if names.query == names.key and names.interleaved:
        starts, stride = (0, size, 2 * size), 3 * size
    elif names.query == names.key:
        starts = (0, heads * size, (heads + groups) * size)
    query, key, value = (
        slot(module, outputs, start, size, stride)
        for module, start in zip((names.query, names.key, names.value), starts, strict=True)
    )
    down = slot(names.down, 1 - outputs, 0, 1, 1)
    width = source.tensors[down.tensor].shape[down.axis] if down.tensor in source.tensors else 0
    up = tuple(
        slot(module, outputs, names.up[:index].count(module) * width, 1, 1)
        for index, module in enumerate(names.up)
    )
    out = slot(names.out, 1 - outputs, 0, size, size)
    layer = Layer(prefix, query, key, value, out, up, down, heads, groups, width)
    _check(source, layer)
    return layer


def _check(source: Source, layer: Layer) -> None:
    """Raise BadInput unless the slots of each matrix fill its axis."""
    filled: dict[tuple[str, int], int] = {}
    counts = [layer.heads, layer.groups, layer.groups, layer.heads]
    counts += [layer.width] * (len(layer.up) + 1)
    for slot, count in zip(_all_slots(layer), counts, strict=True):
        key = (slot.tensor, slot.axis)
        filled[key] = filled.get(key, 0) + slot.block * count
    for (name, axis), entries in filled.items():
        stored = source.tensors.get(name)
        if stored is None or len(stored.shape) != 2 or stored.shape[axis] != entries:
            found = "missing" if stored is None else f"{stored.shape}"
            wrong = f"'{source.name}': {name} is {found}, and has {entries} entries by config.json"
            raise BadInput(Fault("", wrong, "take a model whose heads and MLPs are all alike"))


def decoder_units(source: Source, stream: bool = False) -> list[Units]:
    """Return the units of a decoder: its MLPs' neurons and its attention's heads, layer by layer.

    Heads of queries that share one head of keys and values move with it, and among themselves.

    Args:
        source: opened.
        stream: the entries of the residual stream, too, which all layers share.

    Raises:
        BadInput: see `layers_of`.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     units = decoder_units(open_source(str(tiny_llama(folder, seed=0))), stream=True)
    >>> [(unit.name, unit.count, unit.inner) for unit in units[1:]]
    [('layer 0 mlp', 32, 1), ('layer 1 attention', 1, 2), ('layer 1 mlp', 32, 1), ('stream', 16, 1)]
    """
    layers = layers_of(source)
    found = []
    for number, layer in enumerate(layers):
        found.append(_heads(source, layer, f"layer {number} attention"))
        slots = [*layer.up, *_biases(source, layer.up), layer.down]
        found.append(Units(f"layer {number} mlp", "mlp", layer.width, tuple(slots)))
    if stream:
        found.append(_stream(source, layers))
    return found


def _biases(source: Source, slots: tuple[Slot, ...]) -> Iterator[Slot]:
    """Yield the slots of the biases that are added to what matrices put out."""
    for slot in slots:
        name = slot.tensor.removesuffix("weight") + "bias"
        if name in source.tensors:
            yield slot._replace(tensor=name, axis=0)


def _heads(source: Source, layer: Layer, name: str) -> Units:
    by_head = [layer.query, *_biases(source, (layer.query,)), layer.out]
    by_group = [layer.key, layer.value, *_biases(source, (layer.key, layer.value))]
    # OLMo 2 norms all queries at once, with a weight for each entry of each head.
    for own, slot in ((by_head, layer.query), (by_group, layer.key)):
        norm = f"{layer.prefix}self_attn.{'q' if own is by_head else 'k'}_norm.weight"
        if norm in source.tensors and source.tensors[norm].shape[0] > slot.block:
            own.append(slot._replace(tensor=norm, axis=0))
    inner = layer.heads // layer.groups
    if inner == 1:
        return Units(name, "attention", layer.groups, (*by_group, *by_head))
    return Units(name, "attention", layer.groups, tuple(by_group), inner, tuple(by_head))


def _stream(source: Source, layers: list[Layer]) -> Units:
    """Return the entries of the residual stream, in every tensor that reads it or writes to it."""
    inside: dict[str, int] = {}  # matrix of a layer -> its axis along the stream
    writing = set()
    for layer in layers:
        inside |= {slot.tensor: 1 - slot.axis for slot in _all_slots(layer)}
        writing |= {slot.tensor.removesuffix("weight") + "bias" for slot in (layer.out, layer.down)}
    first = layers[0].query
    hidden = source.tensors[first.tensor].shape[1 - first.axis]
    slots = []
    for name, tensor in source.tensors.items():
        part = place(name).part
        if name in inside:
            slots.append(Slot(name, inside[name]))
        elif part in ("embed", "head") and len(tensor.shape) == 2:
            slots.append(Slot(name, 1))
        elif (part in ("layer", "norm") and _is_a_norm(name, inside)) or name in writing:
            slots.append(Slot(name, 0))
        else:
            continue
        if tensor.shape[slots[-1].axis] != hidden:
            wrong = f"'{source.name}': {name} is {tensor.shape}, and the stream {hidden} wide"
            raise BadInput(Fault("", wrong, "leave out --stream"))
    return Units("stream", "stream", hidden, tuple(slots))


def _is_a_norm(name: str, inside: Mapping[str, int]) -> bool:
    """Tell whether a tensor is the weight or bias of a norm of the stream."""
    module = name.rpartition(".")[0]
    return f"{module}.weight" not in inside and not module.endswith(("q_norm", "k_norm"))
