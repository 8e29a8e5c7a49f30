"""What experts say to prompts, kept in the cache: asked once, by one process of a machine.

A file of numpy's arrays for each expert, prompts and way of asking, in
`$XDG_CACHE_HOME/evomerge/experts`.
"""

import contextlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.cache.eviction import make_room
from evomerge.cache.holding import hold
from evomerge.canonical import json_hash
from evomerge.environment import cache_folder
from evomerge.node.once import one_at_a_time
from evomerge.node.phases import phase
from evomerge.whole_files import written_beside

Arrays = Mapping[str, np.ndarray]


def kept_or_made(key: Any, doing: str, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays that were kept under a key, or make them and keep them.

    They are made by one process of a machine while the others wait. A cache that cannot be written
    to costs the next start the same again, no more.

    Args:
        key: JSON-able: all that they follow from.
        doing: what making them is, for those who wait.
        make: makes them.

    >>> first = kept_or_made("a key", "asking", lambda: {"said": np.array([1, 2])})
    >>> again = kept_or_made("a key", "asking", lambda: {})
    >>> again["said"].tolist()
    [1, 2]
    """
    file = cache_folder("experts") / f"{json_hash(key)[:32]}.npz"
    hold(file)
    if (known := _read(file)) is not None:
        return known
    with one_at_a_time(file.with_suffix(".lock"), doing, or_all=True):
        if (known := _read(file)) is not None:  # by who held the lock before
            return known
        phase(doing)
        made = make()
        with contextlib.suppress(OSError):
            make_room(sum(array.nbytes for array in made.values()))
            with written_beside(file) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, **made)  # type: ignore[arg-type]
    return made


def _read(file: Path) -> Arrays | None:
    """Return a file's arrays; None where it is not there, or not whole."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
