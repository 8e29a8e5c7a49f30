"""Whether others than the user can have put something where code is taken from."""

import os
import stat
from pathlib import Path


def exposed(folder: Path) -> str:
    """Return how others than the user and root can put files into a folder; "" if they cannot.

    Args:
        folder: without links on its way.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder).chmod(0o777)
    ...     exposed(Path(folder).resolve())
    'others than you can write to ...'
    """
    for place in (folder, *folder.parents):
        status = place.stat()
        # a folder like /tmp, whose entries only their owners can move, is safe to pass through
        passed = place != folder and _is_of_user(status) and status.st_mode & stat.S_ISVTX
        if not passed and not is_private(status):
            return f"others than you can write to {place}"
    return ""


def is_private(status: os.stat_result) -> bool:
    """Tell whether nobody but the user and root can write to a file or a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     is_private(os.stat(folder))
    True
    """
    # many systems give each user a group of the same number, and let it write
    of_group = status.st_mode & stat.S_IWGRP and status.st_gid != status.st_uid
    return _is_of_user(status) and not status.st_mode & stat.S_IWOTH and not of_group


def _is_of_user(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())
