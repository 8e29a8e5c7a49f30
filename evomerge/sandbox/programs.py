"""Programs run in the sandbox, one process each, and whether they came to their end."""

import functools
import os
import secrets
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evomerge.sandbox import confined

_SECONDS = 3  # of the processor; as long as HF's code_eval gives a program
_BYTES = 1 << 30  # of memory
_WALL = 10.0  # seconds; a busy machine is not the program's fault, and one that sleeps is


class Run(NamedTuple):
    """What became of a program.

    Attributes:
        has_passed: whether it came to its end without an exception.
        held: what held it: "calls", and "files" where the kernel has Landlock.

    >>> Run(True, ("files", "calls")).has_passed
    True
    """

    has_passed: bool
    held: tuple[str, ...] = ()


def run_program(program: str, seconds: int = _SECONDS) -> Run:
    """Run a Python program in the sandbox.

    Args:
        program: its text.
        seconds: of the processor.

    >>> run_program("assert 1 + 1 == 2").has_passed, run_program("assert 1 + 1 == 3").has_passed
    (True, False)
    >>> run_program("raise SystemExit(0)").has_passed  # it has not come to its end
    False
    """
    word = secrets.token_hex(16)  # which the program does not know, so that it cannot say it
    read, write = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="evomerge-program-") as folder:
            arguments = [str(seconds), str(_BYTES), os.pathsep.join(_readable()), str(write)]
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(Path(confined.__file__)), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": folder},
                pass_fds=(write,),
                start_new_session=True,
            )
            os.close(write)
            write = -1
            try:
                text = program.encode(errors="surrogateescape")
                process.communicate(word.encode() + b"\n" + text, timeout=seconds + _WALL)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                pass
            finally:
                process.kill()
                process.wait()
        said = os.read(read, 200).decode(errors="replace")
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
    spoken, _, held = said.partition(" ")
    if spoken != word:
        return Run(False)
    return Run(True, tuple(held.split(",")))


@functools.cache
def missing() -> str:
    """Return why programs cannot be run here, "" if they can.

    >>> missing()
    ''
    """
    if run_program("").has_passed:
        return ""
    return "programs can be kept apart on Linux alone, with seccomp, on x86-64 or ARM64"


@functools.cache
def unprotected() -> str:
    """Return what programs could do here that they cannot elsewhere, "" for nothing.

    >>> unprotected() in ("", "the kernel has no Landlock: programs could read and write files")
    True
    """
    if "files" in run_program("").held:
        return ""
    return "the kernel has no Landlock: programs could read and write files"


@functools.cache
def _readable() -> Sequence[str]:
    """Return what a program may read: Python with its packages, the system's libraries, no data."""
    paths = sysconfig.get_paths()
    places = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"]]
    places += [os.path.join(sys.base_prefix, "lib"), "/usr/lib", "/lib", "/lib64", "/usr/lib64"]
    places += ["/usr/share/zoneinfo", "/etc/ld.so.cache", os.devnull, "/dev/urandom"]
    real = [os.path.realpath(place) for place in places]
    return [place for place in dict.fromkeys([*places, *real]) if os.path.exists(place)]
