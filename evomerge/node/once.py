"""What the processes of one machine do once for all of them, while the others wait."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from evomerge.errors import one_line
from evomerge.node.phases import AGAIN, still


@contextlib.contextmanager
def one_at_a_time(path: Path, doing: str, *, or_all: bool = False) -> Iterator[None]:
    """Hold a file's lock, which the machine's other processes wait for; it dies with its holder.

    Args:
        path: of the lock's file; the folder around is made if need be.
        doing: what its holder does, for those who wait.
        or_all: go on without a lock where there can be none; the same is done several times then.

    Raises:
        OSError: there can be no lock.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with one_at_a_time(Path(folder) / "locks" / "one.lock", "preparing wudi"):
    ...         print("alone")
    alone
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=AGAIN)
            except Timeout:
                still(f"waiting for another process of this machine: {doing}")
    except (OSError, NotImplementedError) as error:  # a folder or a disk that takes none
        if not or_all:
            raise OSError(f"{path} cannot be locked: {one_line(error)}") from error
    try:
        yield
    finally:
        lock.release()
