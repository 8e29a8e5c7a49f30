"""A model that computes what it did, its units in the order of another's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evomerge.aligning.matching import match
from evomerge.aligning.module_units import module_units
from evomerge.aligning.orders import Orders, kinds_of, names_in
from evomerge.aligning.written_model import check_finite, refuse_existing, write_model
from evomerge.errors import BadInput, Fault, Faults
from evomerge.merging.source_weights import SourceWeights
from evomerge.sources.alignment import aligned
from evomerge.sources.compatibility import mismatches
from evomerge.sources.source import Source, open_source
from evomerge.sources.trust import NOBODY, Trust
from evomerge.sources.units import Units, decoder_units

REFERENCE, MODEL = "reference", "model"

_ROWS = 1 << 12  # of a tensor that are compared at a time


class Pair(NamedTuple):
    """Two opened models of one architecture, and their weights by REFERENCE and MODEL.

    >>> Pair._fields
    ('reference', 'model', 'weights')
    """

    reference: Source
    model: Source
    weights: SourceWeights


class Kind(NamedTuple):
    """What became of the units of one kind.

    Attributes:
        sets: of units, each with an order of its own.
        units: in all of them.
        moved: the share that is not where it was.
        before, after: cosine of the two models' weights in the tensors where they stand.

    >>> Kind(2, 64, 0.5, 0.01, 0.3).moved
    0.5
    """

    sets: int
    units: int
    moved: float
    before: float
    after: float


class Alignment(NamedTuple):
    """A model's units matched with a reference's.

    >>> Alignment._fields
    ('pair', 'units', 'orders', 'kinds')
    """

    pair: Pair
    units: list[Units]
    orders: Orders
    kinds: dict[str, Kind]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the model, its units in their new order."""
        return self.orders.applied(name, self.pair.weights.tensor(MODEL, name))


def open_pair(reference: str, model: str, trust: Trust = NOBODY) -> Pair:
    """Open two models and check that they are of one architecture and vocabulary.

    Raises:
        BadInput: with every fault.

    >>> open_pair("nowhere", "nowhere")
    Traceback (most recent call last):
    evomerge.errors.BadInput: nowhere: there is no directory 'nowhere'...
    """
    faults, opened = Faults(), []
    for name in (reference, model):
        with faults.gather(name):
            opened.append(open_source(name, trust))
    faults.check()
    one, other = opened
    faults.extend(mismatches([one, other]))
    if one.place == other.place:
        faults.add("", f"'{reference}' and '{model}' are one model", "name two")
    faults.check()
    check_finite(opened)
    other = aligned(one, other)
    weights = SourceWeights({REFERENCE: one, MODEL: other}, torch.device("cpu"), room=0)
    return Pair(one, other, weights)


def align(pair: Pair, *, stream: bool = False, seed: int = 0) -> Alignment:
    """Match a model's units with a reference's by their weights.

    Args:
        pair: the models.
        stream: match the entries of a decoder's residual stream as well.
        seed: of the order in which units are assigned.

    Raises:
        BadInput: it is not known which units the models have.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     names = [str(tiny_llama(f"{folder}/{seed}", seed)) for seed in (0, 1)]
    ...     kinds = align(open_pair(*names)).kinds
    >>> sorted(kinds), kinds["mlp"].after > kinds["mlp"].before + 0.1
    (['attention', 'mlp'], True)
    """
    weights = pair.weights
    if pair.reference.factory is not None:
        if stream:
            wrong = f"'{pair.reference.name}' is no decoder, and has no residual stream"
            raise BadInput(Fault("--stream", wrong, "leave it out"))
        tensors = {name: weights.tensor(MODEL, name) for name in pair.model.tensors}
        units = module_units(pair.model, tensors)
    else:
        units = decoder_units(pair.model, stream)

    def read_reference(name: str) -> torch.Tensor:
        return weights.tensor(REFERENCE, name)

    def read_model(name: str) -> torch.Tensor:
        return weights.tensor(MODEL, name)

    orders = match(read_reference, read_model, units, seed)
    return Alignment(pair, units, orders, _kinds(pair, units, orders))


def _kinds(pair: Pair, units: list[Units], orders: Orders) -> dict[str, Kind]:
    """Return what became of the units of each kind."""
    products: dict[str, torch.Tensor] = {}
    for name in names_in(units):
        one = pair.weights.tensor(REFERENCE, name)
        other = pair.weights.tensor(MODEL, name)
        reordered = orders.applied(name, other)
        products[name] = torch.zeros(4, dtype=torch.float64)
        for chunks in zip(*(t.split(_ROWS) for t in (one, other, reordered)), strict=True):
            a, b, c = (chunk.double() for chunk in chunks)
            sums = (a * b).sum(), (a * c).sum(), (a * a).sum(), (b * b).sum()
            products[name] += torch.stack(sums)
    found = {}
    for kind, indices in kinds_of(units).items():
        own = [units[index] for index in indices]
        total = torch.stack([products[name] for name in names_in(own)]).sum(0)
        size = float((total[2] * total[3]).sqrt()) or 1.0
        parts = sum(unit.count * unit.inner for unit in own)
        moved = sum(orders[index].moved for index in indices) / parts
        before, after = float(total[0]) / size, float(total[1]) / size
        found[kind] = Kind(len(own), parts, moved, before, after)
    return found


def write_aligned(alignment: Alignment, out: Path, record: Mapping[str, Any]) -> str:
    """Write the model whose units were matched, in their new order; return the weights' checksum.

    What it stores are the same numbers, unless an adapter had to be added to them.

    Args:
        alignment: of the model.
        out: a path that does not exist; of a module that a function made, a .safetensors file.
        record: how it was made.

    Raises:
        BadInput: there is something at `out`.
        EvomergeError: the disk does not take it; nothing is left behind.

    >>> import tempfile
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     names = [str(tiny_llama(f"{folder}/{seed}", seed)) for seed in (0, 1)]
    ...     alignment = align(open_pair(*names))
    ...     _ = write_aligned(alignment, Path(folder, "out"), {"seed": 0})
    ...     open_source(f"{folder}/out").layers
    2
    """
    model = alignment.pair.model
    check_out(model, out)
    shapes = {name: stored.shape for name, stored in model.tensors.items()}

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for name in model.tensors:
            yield name, alignment.tensor(name)

    return write_model(out, [model], model.config, shapes, stream(), record)


def check_out(model: Source, out: Path) -> None:
    """Raise `BadInput` if a model like this cannot be written there.

    >>> check_out(Source("a", Path("a"), {}, {}, {}), Path("nowhere"))
    """
    refuse_existing(out)
    if model.factory is not None and out.suffix != ".safetensors":
        wrong = "is to hold the weights of a module that a function made"
        raise BadInput(Fault("", wrong, "name a .safetensors file", str(out)))
