"""Environments of other tools' own, made at the first run: their packages would replace ours."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def python_of(folder: Path, packages: Sequence[str], install: bool = True) -> Path | None:
    """Return the python of an environment that has packages, installing them at the first time.

    Args:
        folder: of the environment; it need not exist.
        packages: as pip takes them, in the order in which they are installed.
        install: whether to make it where it is not there.

    Returns:
        None where it is not there and is not to be made.
    """
    python, installed = folder / "bin" / "python", folder / "installed"
    if installed.exists():
        return python
    if not install:
        return None
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for package in packages:
        command = [str(python), "-m", "pip", "install", "-q", *package.split()]
        subprocess.run(command, check=True)
    installed.touch()
    return python
