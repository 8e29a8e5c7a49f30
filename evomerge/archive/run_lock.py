"""The lock on a run's directory: one campaign at a time."""

import os
import platform
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from evomerge.errors import EvomergeError

_PATIENCE = 1.0  # seconds; `held` has the lock for a moment


class RunLock:
    """Holds a run's directory by a lock of the operating system, which dies with its holder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     with RunLock(Path(run)):
    ...         RunLock.held(Path(run))
    ...     RunLock.held(Path(run))
    True
    False
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._lock = FileLock(directory / ".lock")

    def __enter__(self) -> Self:
        """
        Raises:
            EvomergeError: another process holds it; the message says who.
        """
        holder = _holder_file(self._directory)
        try:
            self._lock.acquire(timeout=_PATIENCE)
        except Timeout:
            name = holder.read_text("utf-8") if holder.exists() else "another process"
            raise EvomergeError(f"{self._directory} is held by {name}") from None
        holder.write_text(f"process {os.getpid()} on {platform.node()}", "utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _holder_file(self._directory).unlink(missing_ok=True)
        self._lock.release()

    @staticmethod
    def held(directory: Path) -> bool:
        """Tell whether a live process holds the run's directory."""
        if not (directory / ".lock").exists():
            return False
        lock = FileLock(directory / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        except OSError:  # not ours to write: all that can be seen is whether a holder left its name
            return _holder_file(directory).exists()
        lock.release()
        return False


def _holder_file(directory: Path) -> Path:
    return directory / ".lock-holder"
