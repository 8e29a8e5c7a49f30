"""Whether models descend from one another, by a look at some of their weights.

Fine-tunes stay near the model that they began from. Two that were trained apart have nothing in
common, though their shapes agree to the last tensor: the same neuron does another thing in each,
and what lies between them does nothing.
"""

from collections.abc import Sequence

import numpy as np

from evomerge.errors import BadInput
from evomerge.sources.invariants import STORED_AS, Part, attention, cosine, floats, mlp
from evomerge.sources.safetensors_file import Tensor, read_json
from evomerge.sources.source import Source
from evomerge.sources.units import NAMES, Layer, layers_of
from evomerge.tensor_names import place

RECORD = "made_by.json"  # beside weights that were made without a recipe: how they were made

_MATRICES = 8  # that are looked at, over the whole depth
_ROWS = 256  # of each; some megabytes of a large model

# Cosines of weights: of models trained apart those of two random matrices, 1 / sqrt(elements); of
# fine-tunes above .99, and above .9 after long further training.
KIN = 0.5

# By how much a head of a fine-tune never grows in all layers; PaRaMS (Wei et al. 2025,
# arXiv:2503.07661) scales heads by more, and neurons' order with it.
_SCALED = 1.5


def strangers(sources: Sequence[Source]) -> list[str]:
    """Return a line for each source that cannot be averaged with the first one, and why.

    Either they were trained apart, or one is written differently: its units in another order, or
    its heads in other coordinates, which protects it from being merged.

    Those whose weights are not on this machine's disk, or in formats of less than 16 bits, are
    not looked at; of a LoRA adapter, the model that it is added to is.

    Args:
        sources: of one architecture, the base first where there is one.

    >>> import tempfile
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base = open_source(str(tiny_llama(f"{folder}/base", seed=0)))
    ...     tuned = open_source(str(tiny_llama(f"{folder}/tuned", seed=1, near=base.path)))
    ...     other = open_source(str(tiny_llama(f"{folder}/other", seed=2)))
    ...     print(*strangers([base, tuned, other]))
    '...other' and '...base' seem to be trained apart: ...
    """
    first, *others = sources
    found = []
    for other in others:
        line = _rewritten(first, other)
        alike = likeness(first, other)
        if line is None and alike is not None and alike < KIN:
            line = (
                f"'{other.name}' and '{first.name}' seem to be trained apart: the cosine of their"
                f" weights is {alike:.2f}, and of fine-tunes of one model above .9; what lies"
                f" between such models is mostly useless; {_advice(other)}"
            )
        if line is not None:
            found.append(line)
    return found


def _advice(other: Source) -> str:
    """Return what may help where models were trained apart."""
    record = read_json(other.path / RECORD)
    if isinstance(record, dict) and record.get("kind") == "aligned":
        return (
            "its units have been put in order, and `evomerge align --texts` tells what that helped"
        )
    return "`evomerge align` may bring their units into one order"


def _rewritten(first: Source, other: Source) -> str | None:
    """Return what to know of a model that is a relative, written differently; None if it is not.

    Where its attention's or its MLPs' matrices are not the first model's, and their products are.
    """
    if str(first.config.get("model_type")) not in NAMES:
        return None
    try:
        layers, likewise = layers_of(first), layers_of(other)
    except BadInput:  # whose heads and MLPs are not alike in all layers
        return None
    if layers != likewise or _shapes(first) != _shapes(other):
        return None
    chosen = [layers[number] for number in sorted({0, len(layers) // 2, len(layers) - 1})]
    if all(_looks_alike(first, other, layer) for layer in chosen):
        return None  # as fine-tunes do, without a look at whole matrices
    heads: list[Part] = []
    neurons: list[Part] = []
    for layer in chosen:
        for parts, compare in ((heads, attention), (neurons, mlp)):
            part = compare(first, other, layer)
            if part is None:
                return None
            parts.append(part)
    same = min(part.products for part in heads) >= KIN
    moved = _weights_of(heads) < KIN and np.median([part.matched for part in heads]) < KIN
    scaled = _weights_of(heads) >= KIN and min(part.scale for part in heads) > _SCALED
    if same and (moved or scaled):
        return (
            f"'{other.name}' seems to be protected against merging: its attention computes what"
            f" that of '{first.name}' does (cosine of W_Q^T W_K and W_O W_V {_products(heads)})"
            f" with other matrices (cosine {_weights(heads)}, sizes up to"
            f" {max(part.scale for part in heads):.1f} times), as after secret invertible"
            " transforms of its heads; it works alone, and no average with it will: ask its makers"
            " for a copy that may be merged, or leave it out"
        )
    for parts, what in ((neurons, "MLPs"), (heads, "heads")):
        if _is_rewritten(parts):
            return (
                f"'{other.name}' seems to have the {what} of '{first.name}' in another order: the"
                f" cosine of their products is {_products(parts)}, and of their matrices"
                f" {_weights(parts)}; `evomerge align {first.name} {other.name} OUT` writes it in"
                " the same order"
            )
    return None


def _looks_alike(first: Source, other: Source, layer: Layer) -> bool:
    """Tell whether the first rows of a layer's matrices are much the same in two models."""
    for slot in (layer.query, layer.key, layer.value, layer.out, *layer.up, layer.down):
        rows, likewise = (_first_rows(source.tensors[slot.tensor]) for source in (first, other))
        if rows is None or likewise is None:
            continue
        sizes = np.linalg.norm(rows), np.linalg.norm(likewise)
        if cosine(rows, likewise) < KIN or max(sizes) > _SCALED * min(sizes):
            return False
    return True


def _shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors within its layers."""
    inside = (name for name in source.tensors if place(name).layer is not None)
    return {name: source.tensors[name].shape for name in inside}


def _is_rewritten(parts: Sequence[Part]) -> bool:
    return _weights_of(parts) < KIN <= min(part.products for part in parts)


def _weights_of(parts: Sequence[Part]) -> float:
    return float(np.median([part.weights for part in parts]))


def _weights(parts: Sequence[Part]) -> str:
    return f"{_weights_of(parts):.2f}"


def _products(parts: Sequence[Part]) -> str:
    return f"{min(part.products for part in parts):.2f}"


def likeness(one: Source, other: Source) -> float | None:
    """Return the median cosine of two models' matrices, of some rows of some in their layers.

    None if there are none that can be read.

    >>> from pathlib import Path
    >>> empty = Source("a", Path("a"), {}, {}, {})
    >>> likeness(empty, empty) is None
    True
    """
    cosines = []
    for name in _chosen(one):
        if name not in other.tensors:
            continue
        rows, likewise = _first_rows(one.tensors[name]), _first_rows(other.tensors[name])
        if rows is None or likewise is None or rows.shape != likewise.shape:
            continue
        lengths = np.linalg.norm(rows) * np.linalg.norm(likewise)
        if lengths > 0:
            cosines.append(float(rows @ likewise / lengths))
    return float(np.median(cosines)) if cosines else None


def _chosen(source: Source) -> list[str]:
    """Return the names of matrices in the layers, spread over all that there are.

    Image models have matrices, and no numbered layers.
    """
    matrices = [
        name
        for name, tensor in source.tensors.items()
        if len(tensor.shape) == 2 and min(tensor.shape) > 1
    ]
    in_layers = [name for name in matrices if place(name).layer is not None]
    matrices = in_layers or (matrices if source.is_image_model else [])
    count = min(_MATRICES, len(matrices))
    return [matrices[i * len(matrices) // count] for i in range(count)]


def _first_rows(tensor: Tensor) -> np.ndarray | None:
    """Return the first rows of a matrix as (elements,) float64; None if they cannot be read."""
    kind = STORED_AS.get(tensor.dtype)
    if kind is None or not tensor.file.is_file():
        return None
    count = min(_ROWS, tensor.shape[0]) * tensor.shape[1]
    with open(tensor.file, "rb") as stream:
        stream.seek(tensor.begin)
        stored = np.frombuffer(stream.read(count * int(kind[-1])), kind)
    if len(stored) != count:
        return None
    return floats(stored, np.float64)
