"""What `evomerge cache` prints: the cache by kinds, as JSON-able data."""

import math
from datetime import UTC, datetime
from typing import TypedDict

from evomerge.cache import KINDS
from evomerge.cache.entries import entries
from evomerge.cache.eviction import limits
from evomerge.environment import cache_folder


class KindShape(TypedDict):
    """One kind of entries.

    Attributes:
        last_used: in ISO 8601, UTC; null where there are none.
        in_use: how many entries live processes use.
    """

    kind: str
    what: str
    entries: int
    bytes: int
    last_used: str | None
    in_use: int


class CacheShape(TypedDict):
    """The cache; its limits are null where there are none."""

    folder: str
    limit_bytes: int | None
    limit_days: float | None
    kinds: list[KindShape]


def summary(kinds: tuple[str, ...] = tuple(KINDS)) -> CacheShape:
    """Return what lies in the cache, and how much may.

    Args:
        kinds: of `KINDS`.

    Raises:
        BadInput: see `limits`.

    >>> [row["kind"] for row in summary(("native", "digests"))["kinds"]]
    ['native', 'digests']
    """
    most, rows = limits(), []
    for kind in kinds:
        found = entries((kind,))
        latest = datetime.fromtimestamp(found[-1].used, UTC) if found else None
        row = KindShape(
            kind=kind,
            what=KINDS[kind],
            entries=len(found),
            bytes=sum(entry.bytes for entry in found),
            last_used=latest.isoformat(timespec="seconds") if latest else None,
            in_use=sum(bool(entry.user) for entry in found),
        )
        rows.append(row)
    return CacheShape(
        folder=str(cache_folder()),
        limit_bytes=int(most.bytes) if math.isfinite(most.bytes) else None,
        limit_days=most.days if math.isfinite(most.days) else None,
        kinds=rows,
    )
