"""What is scored: a fitness's items, known by ordinal and hash, split once for the search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from evomerge.sections import Number, Section, option


class LastSection(Section):
    """Hold the last items out, in order.

    >>> LastSection(last=0.2).last
    0.2
    """

    last: Number = option("share of the items", ge=0, lt=1, example=0.2)


class TestSplitSection(Section):
    """Search on a task's validation (or training) items, hold its test items out.

    >>> TestSplitSection(split="test").split
    'test'
    """

    __test__ = False  # pytest takes it for a test by its name

    split: Literal["test"] = option("the task's own test split", example="test")


HeldOut = float | LastSection | TestSplitSection


class ItemText(NamedTuple):
    """What an item asks and what is right, for people to read.

    >>> ItemText("3 + 4 =", "seven").target
    'seven'
    """

    text: str
    target: str


@dataclass(frozen=True)
class Split:
    """Ordinals of the items that the search sees, and of those it never does; both sorted.

    >>> Split((0, 2), (1, 3)).heldout
    (1, 3)
    """

    search: tuple[int, ...]
    heldout: tuple[int, ...]

    def of(self, side: str) -> tuple[int, ...]:
        """Return the ordinals of a side, "search" or "heldout"."""
        return self.search if side == "search" else self.heldout


def split_items(
    count: int, test_from: int | None, items: int | None, heldout: HeldOut, seed: int
) -> Split:
    """Choose a fitness's items and hold a share of them out.

    Args:
        count: items of the fitness.
        test_from: the first ordinal of the task's own held-out items, where these are asked for.
        items: how many to take before the split; None for all.
        heldout: a share in [0, 1), drawn with `seed`; the last share, in order; or the task's own
            test split (then `items` limits both sides).
        seed: the campaign's. Tasks of equal size hold the same ordinals out, so parallel
            tasks (one question in several languages) do not leak into each other.

    Returns:
        The split; either side may be empty.

    >>> split_items(10, None, 4, LastSection(last=0.5), seed=0)
    Split(search=(0, 1), heldout=(2, 3))
    """
    rng = np.random.default_rng(seed)
    if isinstance(heldout, TestSplitSection):
        if test_from is None:
            raise ValueError("the fitness has no test split of its own")
        own = rng.permutation(np.arange(test_from))[:items]
        test = rng.permutation(np.arange(test_from, count))[:items]
        return Split(_sorted(own), _sorted(test))
    if isinstance(heldout, LastSection):
        chosen, share = np.arange(count)[:items], heldout.last
    else:
        chosen, share = rng.permutation(count)[:items], heldout
    cut = len(chosen) - round(share * len(chosen))
    return Split(_sorted(chosen[:cut]), _sorted(chosen[cut:]))


def _sorted(ordinals: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(map(int, ordinals)))
