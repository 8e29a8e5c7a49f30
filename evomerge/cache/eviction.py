"""What has to go from the cache: what was not used for long, and what is beyond a size.

An entry is renamed before it is deleted, so that none is ever there in part; none that a live
process holds is touched.
"""

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from evomerge.cache import KINDS
from evomerge.cache.entries import (
    REMOVED,
    Entry,
    entries,
    last_use,
    measured,
    unfinished,
)
from evomerge.cache.holding import forget_the_dead, held, locked
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, EvomergeError, Fault, one_line
from evomerge.text import byte_size

log = logging.getLogger("evomerge")

SIZE, AGE = "EVOMERGE_CACHE_GB", "EVOMERGE_CACHE_DAYS"  # variables of the environment

_SHARE = 0.1  # of the disk, without SIZE

_DAYS = 30.0  # without AGE

_DAY = 86400.0  # seconds

# The rest is small, and dear to make again: hashing a source reads all of it.
_LARGE = ("candidates", "prepared", "observed", "experts", "factories", "recipes")


class Limits(NamedTuple):
    """How much may lie in the cache, and for how long unused.

    Attributes:
        bytes: of everything together.
        days: since its last use.

    >>> Limits(5e9, 30.0).days
    30.0
    """

    bytes: float
    days: float


class Removed(NamedTuple):
    """What was removed.

    Attributes:
        entries: how many.
        bytes: of them.
        kept: entry -> why it stays.

    >>> Removed(2, 1_000_000, {}).entries
    2
    """

    entries: int
    bytes: int
    kept: dict[str, str]


def limits() -> Limits:
    """Return the limits that the environment sets, or those by default.

    Raises:
        BadInput: a variable is no number of at least 0.

    >>> import unittest.mock
    >>> with unittest.mock.patch.dict(os.environ, {SIZE: "50", AGE: "inf"}):
    ...     limits()
    Limits(bytes=50000000000.0, days=inf)
    """
    size, days = _number(SIZE), _number(AGE)
    if size is None:
        place = cache_folder()
        while not place.exists():
            place = place.parent
        size = _SHARE * shutil.disk_usage(place).total / 1e9
    return Limits(size * 1e9, _DAYS if days is None else days)


def _number(variable: str) -> float | None:
    """Return what a variable of the environment says, None if it is not set."""
    text = os.environ.get(variable, "")
    if not text:
        return None
    with contextlib.suppress(ValueError):
        number = float(text)
        if number >= 0 and not math.isnan(number):
            return number
    mend = "write a number of at least 0, e.g. 100, or inf for no limit"
    raise BadInput(Fault(variable, f"'{text}' is no such limit", mend, file="environment"))


def make_room(coming: int = 0) -> None:
    """Remove what is beyond the limits, before something is written.

    Where the cache cannot be locked or written to, nothing is.

    Args:
        coming: bytes that will be written, as far as is known.

    Raises:
        BadInput: see `limits`.

    >>> make_room()
    """
    most = limits()
    found, oldest = entries(), time.time() - most.days * _DAY
    total = coming + sum(entry.bytes for entry in found)
    chosen = []
    for entry in found:
        is_over = total > most.bytes and entry.kind in _LARGE
        if not entry.user and (entry.used < oldest or is_over):
            chosen.append(entry)
            total -= entry.bytes
    with contextlib.suppress(OSError):
        removed = _remove(chosen, tuple(KINDS))
        if removed.entries:
            size = byte_size(removed.bytes)
            log.info("removed %d entries, %s, from %s", removed.entries, size, cache_folder())


def empty(kinds: tuple[str, ...] = tuple(KINDS)) -> Removed:
    """Remove all of some kinds, but for what is in use.

    Args:
        kinds: of `KINDS`.

    Raises:
        EvomergeError: the cache cannot be locked.

    >>> empty(())
    Removed(entries=0, bytes=0, kept={})
    """
    try:
        return _remove(entries(kinds), kinds)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise EvomergeError(f"{cache_folder()} cannot be emptied: {reason}") from error


def _remove(chosen: Sequence[Entry], kinds: tuple[str, ...]) -> Removed:
    """Remove entries that nobody uses, and of some kinds what killed processes have left.

    Raises:
        OSError: the cache cannot be locked.
    """
    root, gone, freed = cache_folder(), list[Path](), list[int]()
    kept: dict[str, str] = {}
    if not root.exists():
        return Removed(0, 0, kept)
    with locked(root):
        forget_the_dead(root)
        users = held(root)
        for entry in chosen:
            if entry.name in users:
                kept[entry.name] = f"in use by {users[entry.name]}"
                continue
            if last_use(entry.path) != entry.used:  # used, or removed by another, meanwhile
                continue
            try:
                gone.append(_put_aside(entry.path))
            except OSError as error:
                kept[entry.name] = f"cannot be removed: {error.strerror}"
            else:
                freed.append(entry.bytes)
        for path in unfinished(kinds):
            if _is_left(path, users):
                with contextlib.suppress(OSError):
                    gone.append(_put_aside(path))
    for path in gone:
        _delete(path)
    return Removed(len(freed), sum(freed), kept)


def _is_left(path: Path, users: Iterable[str]) -> bool:
    """Tell whether nobody writes or removes something any more."""
    if path.name.endswith(REMOVED):
        return True
    of_entries = (name.rpartition("/")[2] for name in users)
    is_written = any(name in path.name for name in of_entries)
    # whoever writes without a hold, as compilers do, is done within minutes
    return not is_written and measured(path)[1] < time.time() - _DAY


def _put_aside(path: Path) -> Path:
    """Rename something to what nobody takes for an entry."""
    if path.name.endswith(REMOVED):
        return path
    return path.rename(path.with_name(f".{path.name.lstrip('.')}.{uuid4().hex[:8]}{REMOVED}"))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
