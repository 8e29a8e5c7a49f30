"""The lock on a run's directory: one campaign at a time."""

import fcntl
import os
import platform
import time
from pathlib import Path

from evomerge.errors import EvomergeError


class RunLock:
    """Holds a run's directory by an OS lock that dies with its holder."""

    def __init__(self, directory: Path):
        self._path = directory / ".lock"

    def __enter__(self) -> "RunLock":
        """
        Raises:
            EvomergeError: another process holds it; the message says who.
        """
        self._file = open(self._path, "a+", encoding="utf-8")
        try:
            self._lock()
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise EvomergeError(f"{self._path.parent} is held by {holder}") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}")
        self._file.flush()
        return self

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)  # `status` looks at the lock for a moment
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @staticmethod
    def held(directory: Path) -> bool:
        """Tell whether a live process holds the run's directory."""
        try:
            with open(directory / ".lock", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True
