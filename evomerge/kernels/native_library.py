"""The C++ kernels as a library: compiled once with the machine's own compiler, and kept.

It lies under `$XDG_CACHE_HOME/evomerge/native`, by the source's hash and the processor's. Whoever
can write there can have code of theirs run as the user's, so where others than the user can, each
process compiles its own.
"""

import contextlib
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

from evomerge.cache.holding import touch
from evomerge.cache.private import exposed, is_private
from evomerge.environment import cache_folder
from evomerge.errors import one_line
from evomerge.node.once import one_at_a_time
from evomerge.node.phases import phase

log = logging.getLogger("evomerge")

SOURCE = Path(__file__).with_name("native.cpp")

# No contraction to FMA, so that the bits are eager torch's.
FLAGS = "-O3 -march=native -ffp-contract=off -fno-math-errno -std=c++17 -shared -fPIC -pthread"

COMPILE_SECONDS = 300  # it takes about ten; more on a loaded machine

MOST = 64  # operands of one tensor, its base not counted, as native.cpp has it

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
        native = _loaded(_compiler())
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
    native.evomerge_digest.restype = None
    native.evomerge_digest.argtypes = [pointer, number, pointer, pointer]
    return native


def _go_on(reason: str) -> None:
    log.warning("merging in eager torch, which is slower: %s", reason.strip()[:200])


def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise OSError("there is no C++ compiler (g++ or clang++, or one that CXX names)")
    return compiler


def _loaded(compiler: str) -> ctypes.CDLL:
    """Return the library, of its file if that is there and nobody else's work."""
    folder = cache_folder("native")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()  # no link is followed after the check
    if reason := exposed(folder):
        log.warning("compiling the kernels for this process alone: %s", reason)
        with tempfile.TemporaryDirectory() as own:  # of mode 0700
            return ctypes.CDLL(str(_compile(compiler, Path(own) / "native.so")))
    path = folder / f"{_key(compiler)}.so"
    if native := _kept(path):
        return native
    lock = folder.with_name("locks") / f"{path.stem}.lock"  # where nothing is loaded from
    with one_at_a_time(lock, "compiling the kernels", or_all=True):
        if native := _kept(path):  # by who held the lock before
            return native
        phase("compiling the kernels")
        return ctypes.CDLL(str(_compile(compiler, path)))


def _kept(path: Path) -> ctypes.CDLL | None:
    """Return the library of a file, None if there is none that can be trusted and loaded."""
    # a link has all bits of its mode, and so counts as another's
    if path.exists() and is_private(path.lstat()):
        with contextlib.suppress(OSError):  # a damaged file, or one of another system
            loaded = ctypes.CDLL(str(path))
            touch(path)
            return loaded
    return None


def _key(compiler: str) -> str:
    """Return 24 hex digits of all that the library depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        # "flags" on x86, "Features" on ARM: what -march=native chooses instructions by
        processor = "".join(sorted({x for x in lines if x.startswith(("flags", "Features"))}))
    except OSError:
        processor = platform.node()
    key = f"{platform.machine()}{processor}{compiler}{FLAGS}".encode() + SOURCE.read_bytes()
    return hashlib.sha256(key).hexdigest()[:24]


def _compile(compiler: str, path: Path) -> Path:
    """Compile the library into a file, and return that."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as own:
        beside = Path(own) / path.name
        command = [*compiler.split(), *FLAGS.split(), str(SOURCE), "-o", str(beside)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        beside.chmod(0o700)  # whatever the umask lets others do
        beside.replace(path)  # whole, or not at all, for others who look for it
    return path
