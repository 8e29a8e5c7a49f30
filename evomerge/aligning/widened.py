"""Two decoders merged where their neurons match, their other neurons side by side.

PLeaS (Nasery et al. 2024, arXiv:2407.02447, section 3; reference code
github.com/SewoongLab/PLeaS-Merging) matches units by a permutation and merges the best matched
share of them; the rest of both models is kept, so that the merged model is wider. In a decoder the
neurons of MLPs are what may become more: heads and the stream are merged whole. Given texts, the
paper's second step follows (see `least_squares`).
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from evomerge.aligning.aligned_model import REFERENCE, Alignment, align, open_pair
from evomerge.aligning.least_squares import gather
from evomerge.aligning.orders import by_unit
from evomerge.aligning.written_model import refuse_existing, write_model
from evomerge.errors import BadInput, Fault
from evomerge.sources.trust import NOBODY, Trust
from evomerge.sources.units import Slot, Units, layers_of


class Kept(NamedTuple):
    """What becomes of one MLP's neurons, by their numbers in the reference's order.

    Attributes:
        merged: that are merged.
        apart: of which both models' own are kept.

    >>> Kept(np.array([0, 2]), np.array([1])).width
    4
    """

    merged: np.ndarray
    apart: np.ndarray

    @property
    def width(self) -> int:
        """How many neurons the merged MLP has."""
        return len(self.merged) + 2 * len(self.apart)


class Widened(NamedTuple):
    """What was written.

    Attributes:
        weights: their checksum.
        before, width: neurons of an MLP of the models, and of the merged one.
        parameters: of the merged model.

    >>> Widened("", 32, 38, 5000).width
    38
    """

    weights: str
    before: int
    width: int
    parameters: int


def split(likeness: np.ndarray, apart: float) -> Kept:
    """Part matched neurons into those that are merged and those that are kept apart.

    Args:
        likeness: (neurons,) inner products of each with its match; the least alike stay apart.
        apart: the share that does.

    >>> split(np.array([0.5, 0.1, 0.3, 0.9]), 0.5)
    Kept(merged=array([0, 3]), apart=array([1, 2]))
    """
    count = round(apart * len(likeness))
    by_likeness = np.argsort(likeness, kind="stable")
    return Kept(np.sort(by_likeness[count:]), np.sort(by_likeness[:count]))


def widen(
    reference: str,
    model: str,
    out: Path,
    trust: Trust = NOBODY,
    *,
    apart: float = 0.2,
    weight: float = 0.5,
    stream: bool = False,
    seed: int = 0,
    texts: Path | None = None,
) -> Widened:
    """Merge two decoders into a wider one, as a Hugging Face directory.

    Args:
        reference, model: as `open_source` takes them.
        out: a path that does not exist.
        trust: what code of the models may run.
        apart: share of each MLP's neurons that are kept apart; 0 merges all, 1 none.
        weight: of the model; that of the reference is what is left of 1.
        stream, seed: see `align`.
        texts: one a line, on which matrices are fitted to what both models compute.

    Raises:
        BadInput: the models or `out` will not do.
        EvomergeError: the disk does not take it; nothing is left behind.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = (str(tiny_llama(f"{folder}/{seed}", seed)) for seed in (0, 1))
    ...     widened = widen(a, b, Path(folder, "out"), apart=0.25)
    >>> widened.before, widened.width
    (32, 40)
    """
    refuse_existing(out)
    pair = open_pair(reference, model, trust)
    if pair.reference.factory is not None:
        wrong = f"'{reference}' has the width that its function gives it"
        raise BadInput(Fault("", wrong, "take decoders of transformers"))
    merge = _Merge(align(pair, stream=stream, seed=seed), apart, weight)
    shapes = {name: merge.shape(name) for name in pair.reference.tensors}
    key = "n_inner" if pair.reference.config.get("model_type") == "gpt2" else "intermediate_size"
    config = {**pair.reference.config, key: merge.width}
    record: dict[str, Any] = {"kind": "widened", "reference": reference, "model": model}
    settings = {"apart": apart, "weight": weight, "stream": stream, "seed": seed}
    record["fitted"] = texts is not None
    fitted = {} if texts is None else merge.fitted(texts)
    tensors = ((n, fitted[n] if n in fitted else merge.tensor(n)) for n in shapes)
    sources = [pair.reference, pair.model]
    checksum = write_model(out, sources, config, shapes, tensors, record | settings)
    parameters = sum(int(np.prod(shape)) for shape in shapes.values())
    return Widened(checksum, merge.before, merge.width, parameters)


class _Merge:
    """The tensors of the wider model."""

    def __init__(self, alignment: Alignment, apart: float, weight: float):
        self._alignment, self._weight = alignment, weight
        self._slots: dict[str, list[tuple[Slot, int]]] = {}  # tensor -> slots of which MLP
        self._kept: dict[int, Kept] = {}
        for index, unit in enumerate(alignment.units):
            if unit.kind != "mlp":
                continue
            self._kept[index] = split(self._likeness(unit), apart)
            for slot in unit.slots:
                self._slots.setdefault(slot.tensor, []).append((slot, index))
            self.before, self.width = unit.count, self._kept[index].width

    def _likeness(self, unit: Units) -> np.ndarray:
        """Return the (neurons,) inner products of the reference's neurons with their matches."""
        total = torch.zeros(unit.count, dtype=torch.float64)
        for slot in unit.slots:
            one, other = (by_unit(tensor, slot, unit.count) for tensor in self._both(slot.tensor))
            total += (one * other).sum(1, dtype=torch.float64)
        return total.numpy()

    def _both(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a tensor of the reference and of the model, its units in order, in float32."""
        one = self._alignment.pair.weights.tensor(REFERENCE, name)
        dtype = torch.promote_types(one.dtype, torch.float32)
        return one.to(dtype), self._alignment.tensor(name).to(dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of the wider model."""
        shape = [*self._alignment.pair.reference.tensors[name].shape]
        for slot, index in self._slots.get(name, ()):
            shape[slot.axis] += self._kept[index].width - self._alignment.units[index].count
        return tuple(shape)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the wider model."""
        one, other = self._both(name)
        slots = self._slots.get(name)
        if slots is None:
            return torch.lerp(one, other, self._weight)
        # what both models' own neurons add to the stream is weighed as the models are
        last = slots[0][0] == self._alignment.units[slots[0][1]].slots[-1]
        own = (1 - self._weight, self._weight) if last else (1.0, 1.0)
        return self._widened(name, one, other, slots[0][0].axis, own)

    def _widened(
        self,
        name: str,
        one: torch.Tensor,
        other: torch.Tensor,
        axis: int,
        own: tuple[float, float] = (1.0, 1.0),
    ) -> torch.Tensor:
        """Return neurons along an axis merged where they match, and both models' own after them.

        Args:
            name: of a tensor in which they stand.
            one, other: of the reference and of the model.
            axis: along which they stand here.
            own: by what those are multiplied that are kept apart, the reference's and the model's.
        """
        merged = torch.lerp(one, other, self._weight)
        parts = []
        for slot, index in sorted(self._slots[name], key=lambda entry: entry[0].start):
            kept = self._kept[index]
            chosen = torch.from_numpy(slot.start + kept.apart)
            parts += [
                merged.index_select(axis, torch.from_numpy(slot.start + kept.merged)),
                one.index_select(axis, chosen) * own[0],
                other.index_select(axis, chosen) * own[1],
            ]
        return torch.cat(parts, axis)

    def fitted(self, texts: Path) -> dict[str, torch.Tensor]:
        """Return the matrices of the layers, fitted to what both models compute on texts."""
        pair = self._alignment.pair
        outputs = {}  # matrix -> its axis of outputs
        for layer in layers_of(pair.reference):
            for slot in (layer.query, layer.key, layer.value, *layer.up):
                outputs[slot.tensor] = slot.axis
            outputs |= {slot.tensor: 1 - slot.axis for slot in (layer.out, layer.down)}
        names = list(pair.reference.tensors)
        reference = ((n, pair.weights.tensor(REFERENCE, n)) for n in names)
        model = ((n, self._alignment.tensor(n)) for n in names)

        def merged(
            name: str, one: torch.Tensor, other: torch.Tensor, is_input: bool
        ) -> torch.Tensor:
            slots = self._slots.get(name)
            if slots is None or is_input is (slots[0][0].axis == outputs[name]):
                return torch.lerp(one, other, self._weight)
            return self._widened(name, one, other, 1)

        sums = gather(pair.reference, [reference, model], outputs, texts, merged)
        found = {}
        for name, axis in outputs.items():
            begun = self.tensor(name)
            solved = sums[name].solved(begun if axis == 0 else begun.T)
            found[name] = (solved if axis == 0 else solved.T).to(begun.dtype)
        return found
