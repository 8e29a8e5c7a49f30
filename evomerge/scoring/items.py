"""What is scored: a fitness's items, known by ordinal and hash, split once for the search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Fitness(Protocol):
    """What scores a model on items known by their ordinal, 0 to len(hashes) - 1.

    Attributes:
        direction: "maximize" or "minimize".
        definition: hash of what scores, a module's or a task's file; "" where there is none.
        hashes: one per item; they tell whether the items are still the same.
        test_from: the first ordinal of the task's own held-out items, where asked for.
    """

    direction: str
    definition: str
    hashes: list[str]
    test_from: int | None

    def prepare(self, model: Any, tokenizer: Any, ordinals: Sequence[int]) -> None:
        """Get ready to score `model`, whose weights will change, on any of `ordinals`."""

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        """Return the (len(ordinals),) float32 scores of the model as it is now."""

    def answers(self, ordinals: Sequence[int]) -> list[str] | None:
        """Return what the model said when it was last scored; None if it does not speak."""


@dataclass(frozen=True)
class Split:
    """Ordinals of the items that the search sees, and of those it never does; both sorted."""

    search: tuple[int, ...]
    heldout: tuple[int, ...]


def split_items(
    fitness: Fitness, items: int | None, heldout: float | Mapping[str, Any], seed: int
) -> Split:
    """Choose a fitness's items and hold a share of them out.

    Args:
        fitness: an opened fitness.
        items: how many to take before the split; None for all.
        heldout: a share in [0, 1), drawn with `seed`; {"last": share}, in order; or
            {"split": "test"}, the task's own (then `items` limits both sides).
        seed: the campaign's. Tasks of equal size hold the same ordinals out, so parallel
            tasks (one question in several languages) do not leak into each other.

    Returns:
        The split; either side may be empty.
    """
    rng = np.random.default_rng(seed)
    size = len(fitness.hashes)
    if isinstance(heldout, Mapping) and "split" in heldout:
        sides = np.arange(fitness.test_from), np.arange(fitness.test_from, size)
        taken = [rng.permutation(side)[:items] for side in sides]
        return Split(*(tuple(sorted(map(int, side))) for side in taken))
    if isinstance(heldout, Mapping):
        chosen, share = np.arange(size)[:items], heldout["last"]
    else:
        chosen, share = rng.permutation(size)[:items], heldout
    cut = len(chosen) - round(share * len(chosen))
    return Split(*(tuple(sorted(map(int, side))) for side in (chosen[:cut], chosen[cut:])))
