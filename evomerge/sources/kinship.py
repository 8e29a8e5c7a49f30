"""Whether models descend from one another, by a look at some of their weights.

Fine-tunes stay near the model that they began from. Two that were trained apart have nothing in
common, though their shapes agree to the last tensor: the same neuron does another thing in each,
and what lies between them does nothing.
"""

from collections.abc import Sequence

import numpy as np

from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source
from evomerge.tensor_names import place

_MATRICES = 8  # that are looked at, over the whole depth
_ROWS = 256  # of each; some megabytes of a large model

# Cosines of weights: of models trained apart those of two random matrices, 1 / sqrt(elements); of
# fine-tunes above .99, and above .9 after long further training.
KIN = 0.5

_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def strangers(sources: Sequence[Source]) -> list[str]:
    """Return a line for each source that is no relative of the first one.

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
        cosine = likeness(first, other)
        if cosine is not None and cosine < KIN:
            found.append(
                f"'{other.name}' and '{first.name}' seem to be trained apart: the cosine of their"
                f" weights is {cosine:.2f}, and of fine-tunes of one model above .9; what lies"
                " between such models is mostly useless"
            )
    return found


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
    """Return the names of matrices in the layers, spread over all that there are."""
    matrices = [
        name
        for name, tensor in source.tensors.items()
        if len(tensor.shape) == 2 and min(tensor.shape) > 1 and place(name).layer is not None
    ]
    count = min(_MATRICES, len(matrices))
    return [matrices[i * len(matrices) // count] for i in range(count)]


def _first_rows(tensor: Tensor) -> np.ndarray | None:
    """Return the first rows of a matrix as (elements,) float64; None if they cannot be read."""
    kind = _NUMBERS.get(tensor.dtype)
    if kind is None or not tensor.file.is_file():
        return None
    count = min(_ROWS, tensor.shape[0]) * tensor.shape[1]
    with open(tensor.file, "rb") as stream:
        stream.seek(tensor.begin)
        stored = np.frombuffer(stream.read(count * int(kind[-1])), kind)
    if len(stored) != count:
        return None
    if tensor.dtype == "BF16":  # the upper half of a float32
        stored = (stored.astype("<u4") << 16).view("<f4")
    with np.errstate(invalid="ignore"):
        wide = stored.astype(np.float64)
    return wide if np.isfinite(wide).all() else None
