"""Scoring in parts: which few of the items each candidate is scored on.

Most candidates of a search need not be known well, as what it learns comes from many of them
together. So each is scored on a part of the search items; which one follows from the campaign's
seed and the part's number alone, and candidates of one part have the same items.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evomerge.errors import Fault
from evomerge.sections import Number, Section, Whole, option

# Of a candidate, all objectives together: many candidates on few items teach more than few on many,
# as what a search learns from averages their noise.
_ITEMS = 50
# The least share of all items: parts of fewer than an eighth of few items would say too little.
_LEAST_PARTS = 8
_LEAST_ITEMS = 8  # of a part; below, all are scored


class BatchesSection(Section):
    """Score most candidates on a few items each, and the most promising ones on all.

    >>> BatchesSection(items=25).confirm
    0.2
    """

    kind: Literal["batches"] = "batches"
    items: Whole | None = option(
        "of each objective, that a candidate is scored on; null: 50 of all objectives together, or"
        " an eighth of the items where they are fewer than 400",
        None,
        unit="items",
        ge=1,
    )
    confirm: Number = option(
        "share of the scored items, without the baselines', that goes into scoring the most"
        " promising candidates in full",
        0.2,
        gt=0,
        lt=1,
    )


class FullSection(Section):
    """Score every candidate on all items.

    >>> FullSection().kind
    'full'
    """

    kind: Literal["full"] = "full"


def by_name(value: Any) -> Any:
    """Return `{kind: NAME}` for a kind that is written as a text alone.

    >>> by_name("full")
    {'kind': 'full'}
    """
    return {"kind": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Parts:
    """The parts of a search's items.

    Attributes:
        seed: the campaign's.
        stage: of the campaign, so that each has an order of its own.
        items: objective -> how many search items there are.
        batch: objective -> how many of them make a part; all of them, where they are few.

    >>> parts = Parts(7, 0, {"maths": 6}, {"maths": 2})
    >>> first, second, third = (parts.of(n)["maths"].tolist() for n in range(3))
    >>> sorted(first + second + third)
    [0, 1, 2, 3, 4, 5]
    """

    seed: int
    stage: int
    items: Mapping[str, int]
    batch: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many parts make up all items of the objective that has the most parts."""
        return max(-(-self.items[name] // self.batch[name]) for name in self.items)

    @property
    def size(self) -> int:
        """How many items one part has, all objectives together."""
        return sum(self.batch.values())

    def of(self, part: int) -> dict[str, np.ndarray]:
        """Return objective -> the (batch,) int64 positions of a part among the search items.

        Drawn without replacement from an order that is shuffled anew when it is used up, so that
        all items come equally often.
        """
        found = {}
        for index, (name, items) in enumerate(self.items.items()):
            batch = self.batch[name]
            rounds, number = divmod(part, items // batch)
            order = np.random.default_rng([self.seed, self.stage, index, rounds]).permutation(items)
            found[name] = np.sort(order[number * batch : (number + 1) * batch])
        return found


def make_parts(
    section: BatchesSection | FullSection,
    items: Mapping[str, int],
    costs: Iterable[str],
    seed: int,
    stage: int,
) -> Parts | None:
    """Return the parts that a campaign asks for, or None where all candidates are scored in full.

    Args:
        section: of the campaign file.
        items: objective -> search items.
        costs: objectives whose one item is the model itself.
        seed, stage: see `Parts`.

    >>> make_parts(BatchesSection(), {"ja": 400, "fr": 400}, (), seed=7, stage=0).batch
    {'ja': 25, 'fr': 25}
    >>> make_parts(BatchesSection(), {"few": 40}, (), seed=7, stage=0) is None
    True
    """
    if isinstance(section, FullSection):
        return None
    scored = {name: count for name, count in items.items() if name not in set(costs)}
    if not scored:
        return None
    each = section.items
    if each is None:
        whole = min(_ITEMS, sum(scored.values()) // _LEAST_PARTS)
        if whole < _LEAST_ITEMS:
            return None
        each = max(1, round(whole / len(scored)))
    batch = {name: min(each, count) if name in scored else count for name, count in items.items()}
    # An objective is not cut where its parts would be all but all of it.
    batch = {name: n if 2 * n <= items[name] else items[name] for name, n in batch.items()}
    if batch == dict(items):
        return None
    return Parts(seed, stage, dict(items), batch)


def items_fault(section: BatchesSection | FullSection, items: Mapping[str, int]) -> Iterable[Fault]:
    """Return why a campaign's parts are none: more items than there are.

    >>> [fault.key for fault in items_fault(BatchesSection(items=50), {"few": 40})]
    ['items']
    """
    if isinstance(section, BatchesSection) and section.items and items:
        most = max(items.values())
        if section.items > most:
            wrong = f"{section.items} items of each objective, which has at most {most} to search"
            yield Fault("items", wrong, "write fewer, or scoring: full")
