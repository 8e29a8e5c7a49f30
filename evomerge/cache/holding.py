"""Who uses what in the cache, so that nobody removes it meanwhile.

Each process has a file there that names the entries it uses, locked by the operating system for as
long as the process lives. Entries are named and removed under one more lock: whoever has named an
entry and then finds it has it until the process ends.
"""

import atexit
import contextlib
import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from evomerge.environment import cache_folder

_USERS, _LOCK = ".users", ".lock"

_PATIENCE = 30.0  # seconds; those who remove hold the lock for a few renames

# Not every disk that machines share tells one of the other's locks. So a process elsewhere that
# seems to have ended without a word is taken to live for as long as this, in seconds: a week.
_SILENCE = 7 * 86400.0


def hold(path: Path) -> None:
    """Keep an entry of the cache from being removed until this process ends, and note its use.

    Look whether it is there after this: what is not yet there is held too. A path elsewhere, and a
    cache that cannot be written to, are let be.

    Args:
        path: of the entry, or of a file in it.

    >>> import tempfile, unittest.mock
    >>> with tempfile.TemporaryDirectory() as home:
    ...     with unittest.mock.patch.dict(os.environ, XDG_CACHE_HOME=home):
    ...         hold(cache_folder("candidates") / "0f")
    ...         list(held(cache_folder()))
    ['candidates/0f']
    """
    root = cache_folder()
    entry = _entry_of(path, root)
    if entry is None:
        return
    with contextlib.suppress(OSError):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(root):
            _user_of(root).add(entry)
            touch(root / entry)


def touch(path: Path) -> None:
    """Note that an entry is used now, by the time of its last change; that of a folder's own.

    >>> touch(Path("nowhere"))
    """
    with contextlib.suppress(OSError):
        os.utime(path)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let nobody else name or remove entries.

    Raises:
        OSError: it cannot be locked; a timeout is one too.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
    ...     os.listdir(folder)
    ['.lock']
    """
    lock = FileLock(root / _LOCK, timeout=_PATIENCE)
    try:
        lock.acquire()
    except NotImplementedError as error:  # so filelock says that the disk has none
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from error
    try:
        yield
    finally:
        lock.release()


def held(root: Path) -> dict[str, str]:
    """Return the entries that live processes use, KIND/NAME, with one who does.

    >>> held(Path("nowhere"))
    {}
    """
    users: dict[str, str] = {}
    for file in _files(root):
        who = _alive(file)
        if who:
            with contextlib.suppress(OSError):
                users |= dict.fromkeys(file.read_text("utf-8").split(), who)
    return users


def forget_the_dead(root: Path) -> None:
    """Remove the files of processes that have ended; to be called when `locked`.

    >>> forget_the_dead(Path("nowhere"))
    """
    for file in _files(root):
        if not _alive(file):
            with contextlib.suppress(OSError):
                file.unlink()


class _User:
    """This process among a cache's users; made when `locked`.

    Its lock is of the open file, which children share: it lasts until the last of them has ended.
    """

    def __init__(self, root: Path):
        folder = root / _USERS
        folder.mkdir(mode=0o700, exist_ok=True)
        self.pid, self._root, self._entries = os.getpid(), root, set[str]()
        # processes in two containers may have one number
        self._file = folder / f"{platform.node()}-{self.pid}-{uuid4().hex[:8]}"
        self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600)
        with contextlib.suppress(OSError):  # without locks on this disk its age must do
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    @property
    def is_there(self) -> bool:
        """Whether it can still be seen; somebody may have removed all of the cache."""
        return self.pid == os.getpid() and self._file.exists()

    def add(self, entry: str) -> None:
        """Name an entry, KIND/NAME."""
        if entry not in self._entries:
            os.write(self._descriptor, f"{entry}\n".encode())
            self._entries.add(entry)
        touch(self._file)

    def leave(self) -> None:
        """Give back everything; it has been in use until now."""
        if self.pid != os.getpid():  # a child's end is not its parent's
            return
        for entry in self._entries:
            touch(self._root / entry)
        with contextlib.suppress(OSError):
            self._file.unlink()


_USER: dict[Path, _User] = {}  # by the cache's folder, which tests change


@atexit.register
def _leave() -> None:
    for user in _USER.values():
        user.leave()


def _user_of(root: Path) -> _User:
    if root not in _USER or not _USER[root].is_there:
        _USER[root] = _User(root)
    return _USER[root]


def _entry_of(path: Path, root: Path) -> str | None:
    """Return the entry, KIND/NAME, that a path is or is in; None if it is elsewhere."""
    for place, folder in ((path, root), (path.resolve(), root.resolve())):
        if place.is_relative_to(folder):
            parts = place.relative_to(folder).parts
            return "/".join(parts[:2]) if len(parts) > 1 else None
    return None


def _files(root: Path) -> list[Path]:
    try:
        return sorted((root / _USERS).iterdir())
    except OSError:
        return []


def _alive(file: Path) -> str:
    """Return who a file's process is, "" if it has ended."""
    host, pid, _ = file.name.rsplit("-", 2) if file.name.count("-") > 1 else ("", "", "")
    who = f"process {pid} on {host}"
    with contextlib.suppress(OSError):
        with open(file, encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return who
            except OSError:  # a disk without locks
                host = ""
        is_recent = time.time() - file.stat().st_mtime < _SILENCE
        return who if is_recent and host != platform.node() else ""
    return ""
