"""Weight matching: one model's units in the order that brings its weights nearest to another's.

Git Re-Basin (Ainsworth, Hayase and Srinivasa 2023, arXiv:2209.04836, section 3.2 and algorithm 1;
reference code github.com/samuela/git-re-basin): maximize sum over tensors of <W_A, P(W_B)> by one
linear assignment problem for each set of units at a time, the others held, in random order, until
none improves. Heads of attention are assigned as Verma and Elbayad 2024 (arXiv:2403.00986) do: the
heads within a group of shared keys and values first, for every pair of groups, then the groups.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from evomerge.aligning.orders import Order, Orders, by_unit
from evomerge.sources.units import Slot, Units

Read = Callable[[str], torch.Tensor]  # a tensor by its name

_MOST_SWEEPS = 100  # as in the reference code; a handful are usual

_ENTRIES = 1 << 14  # of each unit that are widened at a time, so that embeddings need no copy

# What counts as a gain, as a share of the value: below it is rounding of float32 sums.
_SMALLEST_GAIN = 1e-6


def match(reference: Read, other: Read, units: Sequence[Units], seed: int = 0) -> Orders:
    """Return the orders of a model's units that match a reference's.

    Units that share no tensor with others (the MLPs and heads of a decoder, as long as the stream
    stays) have their best order after one assignment each.

    Args:
        reference, other: of the models.
        units: of both.
        seed: of the order in which units are assigned.

    >>> weights = {"up": torch.eye(3), "down": torch.tensor([[1.0, 2.0, 3.0]])}
    >>> turned = {"up": weights["up"][[2, 0, 1]], "down": weights["down"][:, [2, 0, 1]]}
    >>> units = [Units("hidden", "hidden", 3, (Slot("up", 0), Slot("down", 1)))]
    >>> match(weights.get, turned.get, units)[0].outer
    array([1, 2, 0])
    """
    generator = np.random.default_rng(seed)
    orders = Orders(units)
    waiting = set(range(len(units)))
    for _ in range(_MOST_SWEEPS):
        for index in generator.permutation(len(units)).tolist():
            if index not in waiting:
                continue
            waiting.discard(index)
            order = _best_order(reference, other, units, orders, index)
            if order is not None:
                orders[index] = order
                waiting |= orders.sharing(index)
        if not waiting:
            break
    return orders


def _best_order(
    reference: Read, other: Read, units: Sequence[Units], orders: Orders, index: int
) -> Order | None:
    """Return the best order of some units, the others' held; None where theirs is as good."""
    unit, old = units[index], orders[index]
    outer = _likeness(reference, other, orders, index, unit.slots, unit.count)
    if unit.inner == 1:
        chosen = assignment(outer)
        new = Order(chosen, chosen)
        within = np.zeros((0, 0))
    else:
        within = _likeness(
            reference, other, orders, index, unit.inner_slots, unit.count * unit.inner
        )
        new = _nested(outer, within, unit)
    gain = _value(outer, within, new) - _value(outer, within, old)
    size = max(np.abs(part).max(initial=0.0) for part in (outer, within)) * unit.count
    return new if gain > _SMALLEST_GAIN * size else None


def _nested(outer: np.ndarray, within: np.ndarray, unit: Units) -> Order:
    """Return the best order of units whose parts may change places as well.

    Args:
        outer: (count, count) likenesses of the units.
        within: (count * inner, count * inner) of their parts.
        unit: says how many there are.
    """
    count, inner = unit.count, unit.inner
    blocks = within.reshape(count, inner, count, inner).transpose(0, 2, 1, 3)
    parts = np.empty((count, count, inner), dtype=np.int64)
    values = outer.copy()
    for one in range(count):
        for other in range(count):
            chosen = assignment(blocks[one, other])
            parts[one, other] = chosen
            values[one, other] += blocks[one, other][np.arange(inner), chosen].sum()
    best = assignment(values)
    whole = [best[one] * inner + parts[one, best[one]] for one in range(count)]
    return Order(best, np.concatenate(whole))


def assignment(likeness: np.ndarray) -> np.ndarray:
    """Return the (n,) columns, each once, whose sum with rows 0 to n - 1 is the largest.

    >>> assignment(np.array([[1.0, 2.0], [2.0, 1.0]]))
    array([1, 0])
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    chosen: np.ndarray = linear_sum_assignment(likeness, maximize=True)[1]
    return chosen


def _value(outer: np.ndarray, within: np.ndarray, order: Order) -> float:
    value = outer[np.arange(len(outer)), order.outer].sum()
    if len(within):
        value += within[np.arange(len(within)), order.inner].sum()
    return float(value)


def _likeness(
    reference: Read,
    other: Read,
    orders: Orders,
    index: int,
    slots: Sequence[Slot],
    count: int,
) -> np.ndarray:
    """Return the (count, count) float64 inner products of the reference's units and the other's.

    Args:
        reference, other: the models.
        orders: of the other's units; these units are taken as they stand.
        index: of these units.
        slots: in which they stand.
        count: how many there are.
    """
    total = torch.zeros(count, count, dtype=torch.float64)
    for slot in slots:
        tensor = orders.applied(slot.tensor, other(slot.tensor), but=index)
        rows = by_unit(reference(slot.tensor), slot, count).split(_ENTRIES, 1)
        columns = by_unit(tensor, slot, count).split(_ENTRIES, 1)
        for one, two in zip(rows, columns, strict=True):
            total += one.float() @ two.float().T  # A = sum over slots of W_A W_B^T, algorithm 1
    return total.numpy()
