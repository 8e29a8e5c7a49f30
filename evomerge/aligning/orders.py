"""Units in another order: applied to tensors, of which the same numbers remain."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from evomerge.sources.units import Slot, Units


class Order(NamedTuple):
    """The order of some units: what comes to place i is number order[i] of before.

    Attributes:
        outer: (count,) of the units.
        inner: (count * inner,) of their parts, which agrees with `outer`.

    >>> Order.unchanged(Units("a", "attention", 2, (), inner=2)).inner
    array([0, 1, 2, 3])
    """

    outer: np.ndarray
    inner: np.ndarray

    @classmethod
    def unchanged(cls, units: Units) -> "Order":
        """Return the order in which units stand."""
        return cls(np.arange(units.count), np.arange(units.count * units.inner))

    @property
    def moved(self) -> int:
        """How many parts are not where they were."""
        return int((self.inner != np.arange(len(self.inner))).sum())


class Orders:
    """An order for each of a model's units, by what they do to each tensor.

    >>> units = [Units("hidden", "hidden", 3, (Slot("up", 0), Slot("down", 1)))]
    >>> orders = Orders(units)
    >>> orders[0] = Order(np.array([2, 0, 1]), np.array([2, 0, 1]))
    >>> orders.applied("up", torch.tensor([10, 11, 12]))
    tensor([12, 10, 11])
    """

    def __init__(self, units: Sequence[Units]):
        """
        Args:
            units: of a model; each begins in the order in which it stands.
        """
        self._orders = [Order.unchanged(unit) for unit in units]
        self._slots: dict[str, list[tuple[int, Slot, bool]]] = {}
        for index, unit in enumerate(units):
            for slot in unit.slots:
                self._slots.setdefault(slot.tensor, []).append((index, slot, False))
            for slot in unit.inner_slots:
                self._slots.setdefault(slot.tensor, []).append((index, slot, True))

    def __getitem__(self, index: int) -> Order:
        return self._orders[index]

    def __setitem__(self, index: int, order: Order) -> None:
        self._orders[index] = order

    def __len__(self) -> int:
        return len(self._orders)

    def sharing(self, index: int) -> set[int]:
        """Return the other units that stand in a tensor with these."""
        shared = [slots for slots in self._slots.values() if any(i == index for i, *_ in slots)]
        return {other for slots in shared for other, *_ in slots} - {index}

    def applied(self, name: str, tensor: torch.Tensor, but: int | None = None) -> torch.Tensor:
        """Return a tensor with its units in their orders.

        Args:
            name: of the tensor.
            tensor: of any dtype.
            but: units that stay as they stand.
        """
        along: dict[int, np.ndarray] = {}  # axis -> where each entry comes from
        for index, slot, is_inner in self._slots.get(name, ()):
            if index == but:
                continue
            order = self._orders[index].inner if is_inner else self._orders[index].outer
            source = along.setdefault(slot.axis, np.arange(tensor.shape[slot.axis]))
            source[slot.positions(np.arange(len(order)))] = slot.positions(order)
        for axis, source in along.items():
            tensor = tensor.index_select(axis, torch.from_numpy(source))
        return tensor


def by_unit(tensor: torch.Tensor, slot: Slot, count: int) -> torch.Tensor:
    """Return the (count, entries) numbers of a tensor that belong to each of its units.

    >>> by_unit(torch.arange(6).view(2, 3), Slot("down", 1), 3)
    tensor([[0, 3],
            [1, 4],
            [2, 5]])
    """
    rows = tensor.movedim(slot.axis, 0)
    whole = slot.start == 0 and slot.block == slot.stride and len(rows) == count * slot.block
    if not whole:
        rows = rows[torch.from_numpy(slot.positions(np.arange(count)))]
    return rows.reshape(count, -1)


def names_in(units: Iterable[Units]) -> dict[str, None]:
    """Return the tensors in which units stand, each once.

    >>> [*names_in([Units("a", "mlp", 1, (Slot("up", 0), Slot("down", 1), Slot("up", 0, 1)))])]
    ['up', 'down']
    """
    slots = (slot for unit in units for slot in (*unit.slots, *unit.inner_slots))
    return dict.fromkeys(slot.tensor for slot in slots)


def kinds_of(units: Sequence[Units]) -> Mapping[str, list[int]]:
    """Return the numbers of the units of each kind.

    >>> kinds_of([Units("a", "mlp", 1, ()), Units("b", "attention", 1, ())])
    {'mlp': [0], 'attention': [1]}
    """
    found: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        found.setdefault(unit.kind, []).append(index)
    return found
