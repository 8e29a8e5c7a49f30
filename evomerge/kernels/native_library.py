"""The C++ kernels as a library: compiled once with the machine's own compiler, and kept.

It lies under `$XDG_CACHE_HOME/evomerge/native`, by the source's hash and the processor's.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from evomerge.environment import cache_folder
from evomerge.errors import one_line

log = logging.getLogger("evomerge")

SOURCE = Path(__file__).with_name("native.cpp")

# No contraction to FMA, so that the bits are eager torch's.
FLAGS = "-O3 -march=native -ffp-contract=off -fno-math-errno -std=c++17 -shared -fPIC -pthread"

COMPILE_SECONDS = 300  # it takes about ten; more on a loaded machine

MOST = 32  # operands of one tensor, its base not counted, as native.cpp has it

# The records `Term` and `Piece` of native.cpp.
TERM = np.dtype(
    [(name, np.uint64) for name in ("data", "levels")]
    + [(name, np.float32) for name in ("weight", "low", "high", "inverse")]
    + [(name, np.uint32) for name in ("key0", "key1", "threshold", "dtype")]
)

PIECE = np.dtype(
    [("size", np.int64)]
    + [(name, np.uint64) for name in ("base", "out", "terms", "digests", "variances")]
    + [(name, np.int64) for name in ("first_tile", "inside", "room")]
    + [(name, np.int32) for name in ("count", "base_dtype", "dtype", "out_dtype")]
    + [(name, np.int32) for name in ("thin", "join", "normalize", "least")]
    + [("scale", np.float32)]
    + [(name, np.int32) for name in ("broken", "bin", "spare")]
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, compiling them if need be; None, said once, if that fails.

    >>> native = library()
    >>> native is None or native.evomerge_sizes() == PIECE.itemsize << 32 | TERM.itemsize
    True
    """
    try:
        try:
            native = ctypes.CDLL(str(_compiled()))
        except OSError:  # a damaged file, or one of another system
            native = ctypes.CDLL(str(_compiled(anew=True)))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines() or [one_line(error)]
        _go_on(next((line for line in lines if "error" in line), lines[0]))
        return None
    except (OSError, subprocess.SubprocessError) as error:
        _go_on(one_line(error))
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    native.evomerge_sizes.restype = number
    if native.evomerge_sizes() != PIECE.itemsize << 32 | TERM.itemsize:
        _go_on("evomerge changed while it ran")
        return None
    for function in (native.evomerge_merge, native.evomerge_survey):
        function.restype = None
        function.argtypes = [pointer, number, number, pointer, ctypes.c_int]
    return native


def _go_on(reason: str) -> None:
    log.warning("merging in eager torch, which is slower: %s", reason.strip()[:200])


def _compiled(anew: bool = False) -> Path:
    """Return the library's file, made if it is not there, or in any case."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise OSError("there is no C++ compiler (g++ or clang++, or one that CXX names)")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        # "flags" on x86, "Features" on ARM: what -march=native chooses instructions by
        processor = "".join(sorted({x for x in lines if x.startswith(("flags", "Features"))}))
    except OSError:
        processor = platform.node()
    key = f"{platform.machine()}{processor}{compiler}{FLAGS}".encode() + SOURCE.read_bytes()
    folder = cache_folder("native")
    path = folder / f"{hashlib.sha256(key).hexdigest()[:24]}.so"
    if path.exists() and not anew:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        beside = Path(own) / path.name
        command = [*compiler.split(), *FLAGS.split(), str(SOURCE), "-o", str(beside)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        beside.replace(path)  # whole, or not at all, for others who look for it
    return path
