"""Models and tasks in the folder that evomerge is started in, to be offered to the user."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_DEPTH = 4  # folders below
_MOST = 2_000  # folders that are looked into: a home folder has many more
_SKIPPED = {"runs", "node_modules", "site-packages", "__pycache__"}
_TEXT = 1_000_000  # characters of a file that is looked into


def models_below(folder: str = ".") -> list[str]:
    """Return the model directories and LoRA adapters below a folder, by their files.

    >>> models_below("nowhere")
    []
    """
    found = []
    for place, files in _folders(folder):
        is_model = "config.json" in files and any(f.endswith(".safetensors") for f in files)
        if is_model or "adapter_config.json" in files:
            found.append(place)
    return found


def tasks_below(folder: str = ".") -> list[str]:
    """Return the files below a folder that describe a task of lm-eval.

    >>> tasks_below("nowhere")
    []
    """
    found = []
    for place, files in _folders(folder):
        for name in files:
            path = os.path.join(place, name)
            if name.endswith((".yaml", ".yml")) and _is_task(Path(path)):
                found.append(path)
    return found


def _is_task(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return re.search(r"^(task|group):", stream.read(_TEXT), re.M) is not None
    except OSError:
        return False


def _folders(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yield folders in the order of their names, each with its files, hidden ones left out.

    Links are followed: many keep their models on another disk.
    """
    for count, (place, below, files) in enumerate(os.walk(folder, followlinks=True)):
        if count >= _MOST:
            return
        relative = os.path.relpath(place, folder)
        depth = 0 if relative == "." else len(Path(relative).parts)
        below[:] = sorted(b for b in below if b[0] != "." and b not in _SKIPPED)
        if depth >= _DEPTH:
            below.clear()
        yield os.path.normpath(place), sorted(files)
