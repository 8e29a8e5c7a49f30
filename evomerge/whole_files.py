"""Files and folders that are either whole or not there."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a path to write a file or a folder to, which then takes the place of `path`.

    The folder around is made if need be. If the body fails, or the process is killed within it,
    `path` is what it was before.

    Raises:
        OSError: it cannot be put there; a file replaces a file, a folder nothing but an empty one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_beside(Path(folder) / "notes" / "one.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     print(Path(folder, "notes", "one.txt").read_text(), len(os.listdir(f"{folder}/notes")))
    whole 1
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
