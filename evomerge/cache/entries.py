"""What lies in the cache: entries of several kinds, each with its size and its last use.

An entry is a file or a folder below its kind's folder. What begins with a dot or ends with `.tmp`
is none yet, or no more: it is written, or removed.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evomerge.cache import KINDS
from evomerge.cache.holding import held
from evomerge.environment import cache_folder

REMOVED = ".gone"  # ends the name of what was taken away, and is still to be deleted


class Entry(NamedTuple):
    """An entry of the cache.

    Attributes:
        kind: of `cache.KINDS`.
        path: a file or a folder.
        bytes: all that it takes.
        used: when it was last used, in seconds since the epoch.
        user: a process that uses it; "" if none does.

    >>> Entry("candidates", Path("cache/candidates/0f"), 12, 0.0, "").name
    'candidates/0f'
    """

    kind: str
    path: Path
    bytes: int
    used: float
    user: str

    @property
    def name(self) -> str:
        """KIND/NAME, as those who hold it write it."""
        return f"{self.kind}/{self.path.name}"


def entries(kinds: tuple[str, ...] = tuple(KINDS)) -> list[Entry]:
    """Return what lies in the cache, that which was used longest ago first.

    >>> [entry.name for entry in entries(("no such kind",))]
    []
    """
    users, found = held(cache_folder()), []
    for kind in kinds:
        for path in _inside(cache_folder(kind)):
            if not is_unfinished(path) and path.suffix != ".lock":
                size, _ = measured(path)
                name = f"{kind}/{path.name}"
                found.append(Entry(kind, path, size, last_use(path), users.get(name, "")))
    return sorted(found, key=lambda entry: entry.used)


def unfinished(kinds: tuple[str, ...]) -> Iterator[Path]:
    """Yield what is being written or removed, or was when its process was killed.

    >>> list(unfinished(("no such kind",)))
    []
    """
    for kind in kinds:
        yield from filter(is_unfinished, _inside(cache_folder(kind)))


def is_unfinished(path: Path) -> bool:
    """Tell by its name whether something is being written or removed.

    >>> is_unfinished(Path("prepared/0f.tmp")), is_unfinished(Path("prepared/0f"))
    (True, False)
    """
    return path.name.startswith(".") or path.suffix == ".tmp"


def last_use(path: Path) -> float:
    """Return when an entry was last used, in seconds since the epoch; 0 if it is gone.

    >>> last_use(Path("nowhere"))
    0.0
    """
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def measured(path: Path) -> tuple[int, float]:
    """Return the bytes of a file or a folder, and when something in it last changed.

    No link is followed.

    >>> measured(Path("nowhere"))
    (0, 0.0)
    """
    try:
        status = path.lstat()
    except OSError:  # gone meanwhile
        return 0, 0.0
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size, status.st_mtime
    size, changed = 0, status.st_mtime
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                inner = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            changed = max(changed, inner.st_mtime)
            size += 0 if stat.S_ISDIR(inner.st_mode) else inner.st_size
    return size, changed


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
