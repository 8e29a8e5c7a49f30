"""Products of weights, which neither the order of units nor coordinates within heads change.

Attention sees queries and keys only through W_Q^T W_K, and values and its output through W_O W_V,
head by head; an MLP its neurons only as a sum over them. A model whose products are another's and
whose matrices are not computes nearly the same, written differently: its units stand in another
order, or somebody has multiplied its heads by secret invertible matrices, as MergeLock does (Wang
et al. 2025, arXiv:2509.01548), so that merges with it fail. Torch-free.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source
from evomerge.sources.units import Layer, Slot

_CORNER = 256  # rows and columns of a product that are compared; of the stream, at its begin

# numpy's, of the dtypes of 16 bits or more; bfloat16, which numpy has not, as its bits
STORED_AS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


# query, key, value, out: each (heads, block, columns)
Heads = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Part(NamedTuple):
    """How alike one part of a layer is in two models.

    Attributes:
        weights: mean cosine of the matrices of a product, of the product where it is smallest.
        products: the smallest cosine of its products.
        matched: of attention, the mean over one model's heads of the largest cosine with any head
            of the other, of queries or of values, whichever is smaller; of an MLP 1.
        scale: of attention, by how much a head of queries or values is larger or smaller than the
            other model's, of the head where it is most; of an MLP 1.

    >>> Part(0.01, 0.99, 0.98).scale
    1.0
    """

    weights: float
    products: float
    matched: float = 1.0
    scale: float = 1.0


def attention(one: Source, other: Source, layer: Layer) -> Part | None:
    """Compare two models' attention in a layer; None if they cannot be read.

    Args:
        one, other: of one shape.
        layer: where the heads stand in both.

    >>> Part._fields
    ('weights', 'products', 'matched', 'scale')
    """
    found = []
    for source in (one, other):
        query = _units(source, layer.query, layer.heads)
        key, value = (_units(source, slot, layer.groups) for slot in (layer.key, layer.value))
        out = _units(source, layer.out, layer.heads)
        if query is None or key is None or value is None or out is None:
            return None
        found.append((query, key, value, out))
    alike = [cosine(a, b) for a, b in zip(*found, strict=True)]
    weights = min(sum(alike[:2]) / 2, sum(alike[2:]) / 2)
    return Part(weights, _same_products(found, layer), *_by_head(found))


def _same_products(found: Sequence[Heads], layer: Layer) -> float:
    """Return the smaller of the cosines of two models' sums over heads of W_Q^T W_K and W_O W_V."""
    products = []
    for query, key, value, out in found:
        shared = layer.heads // layer.groups
        keys, values = np.repeat(key, shared, 0), np.repeat(value, shared, 0)
        # sum over heads h of W_Q^T W_K and of W_O W_V, (stream, stream)
        products.append((_product(query, keys), _product(out, values)))
    return min(cosine(a, b) for a, b in zip(*products, strict=True))


def _by_head(found: Sequence[Heads]) -> tuple[float, float]:
    """Return how alike heads are that match best, and how their sizes differ; see `Part`."""
    one, other = found
    matched, scales = [], []
    for index in (0, 2):  # queries, values
        flat, likewise = (heads[index].reshape(len(heads[index]), -1) for heads in (one, other))
        sizes = [np.linalg.norm(flat, axis=1), np.linalg.norm(likewise, axis=1)]
        between = np.maximum(np.outer(*sizes), np.finfo(np.float32).tiny)
        matched.append(float((flat @ likewise.T / between).max(1).mean()))
        logs = np.abs(np.diff(np.log(np.maximum(sizes, np.finfo(np.float32).tiny)), axis=0))
        scales.append(float(np.exp(logs.max())))
    return min(matched), max(scales)


def mlp(one: Source, other: Source, layer: Layer) -> Part | None:
    """Compare two models' MLPs in a layer; None if they cannot be read.

    Args:
        one, other, layer: see `attention`.

    >>> from pathlib import Path
    >>> nothing = Source("a", Path("a"), {}, {}, {})
    >>> slot = Slot("w", 0)
    >>> mlp(nothing, nothing, Layer("", slot, slot, slot, slot, (slot,), slot, 1, 1, 2)) is None
    True
    """
    slots = (*layer.up, layer.down)
    found = []
    for source in (one, other):
        units = [_units(source, slot, layer.width) for slot in slots]
        if any(unit is None for unit in units):
            return None
        found.append([unit for unit in units if unit is not None])
    weights = float(np.mean([cosine(a, b) for a, b in zip(*found, strict=True)]))
    products = []
    for *ups, down in found:
        products.append([_product(down, up) for up in ups])  # sum over neurons of W_down W_up
    return Part(weights, min(cosine(a, b) for a, b in zip(*products, strict=True)))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Return the cosine of two arrays of one shape; 0 if either is zero.

    >>> cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])).__round__(3)
    0.707
    """
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / lengths if lengths > 0 else 0.0


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the (columns, columns) sum over (units, block, columns) of left^T right."""
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])


def _units(source: Source, slot: Slot, count: int) -> np.ndarray | None:
    """Return (units, block, columns) float32 of a matrix, of the stream's first entries alone.

    None if it is not on this machine's disk as numbers of 16 bits or more, or is not finite.
    """
    stored = source.tensors.get(slot.tensor)
    matrix = None if stored is None else _matrix(stored)
    if matrix is None:
        return None
    rows = matrix if slot.axis == 0 else matrix.T
    part = rows[slot.positions(np.arange(count)), : min(_CORNER, rows.shape[1])]
    wide = floats(part, np.float32)
    return None if wide is None else wide.reshape(count, slot.block, -1)


def floats(stored: np.ndarray, dtype: type[np.floating]) -> np.ndarray | None:
    """Return stored numbers as floats of a dtype; None if one is NaN or infinite.

    Args:
        stored: as STORED_AS has them.
        dtype: numpy's.

    >>> floats(np.array([0x3F80, 0xC000], "<u2"), np.float64)
    array([ 1., -2.])
    """
    if stored.dtype == np.dtype("<u2"):  # bfloat16: the upper half of a float32
        stored = (stored.astype("<u4") << 16).view("<f4")
    with np.errstate(invalid="ignore", over="ignore"):
        wide = stored.astype(dtype)
    return wide if np.isfinite(wide).all() else None


def _matrix(tensor: Tensor) -> np.ndarray | None:
    """Return a stored matrix, mapped; bfloat16 as its bits."""
    kind = STORED_AS.get(tensor.dtype)
    if kind is None or len(tensor.shape) != 2 or not tensor.file.is_file():
        return None
    if tensor.file.stat().st_size < tensor.end:
        return None
    if (tensor.end - tensor.begin) != tensor.elements * int(kind[-1]):
        return None
    return np.memmap(tensor.file, kind, "r", tensor.begin, tensor.shape)
