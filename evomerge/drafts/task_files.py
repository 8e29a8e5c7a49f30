"""Where a task's file is, by the name that is written in it."""

import re
from collections.abc import Iterable
from pathlib import Path

_MOST = 1_000_000  # characters of a file that is looked into


def task_file(name: str, folders: Iterable[str]) -> str | None:
    """Return the file of a task or group below some folders, None if none there is called so.

    >>> task_file("maths", ["nowhere"]) is None
    True
    """
    said = rf"^(task|group):[ \t]*(['\"]?){re.escape(name)}\2[ \t]*(#.*)?$"
    for folder in folders:
        for file in sorted(Path(folder).rglob("*")):
            if file.suffix not in (".yaml", ".yml") or not file.is_file():
                continue
            with file.open(encoding="utf-8", errors="replace") as stream:
                if re.search(said, stream.read(_MOST), re.M):
                    return str(file)
    return None
