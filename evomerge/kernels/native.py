"""The kernels in C++ for the processor: one pass over memory where eager torch makes many.

`native.cpp` is compiled once with the machine's own compiler (some seconds) and kept under
`$XDG_CACHE_HOME/evomerge/native`, by the source's hash and the processor's. It says the same as
`kernels.py`, operation by operation, and gives the same bits of finite task vectors (energies are
summed in another order, in float64). A machine without a compiler says so once and goes on in
eager torch.
"""

import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.environment import cache_folder
from evomerge.errors import one_line
from evomerge.kernels.checksum import TILE_BYTES, digest_keys
from evomerge.kernels.eager import Kept, chances_of_rank, keep_by_chance
from evomerge.kernels.masked import Masked

log = logging.getLogger("evomerge")

SOURCE = Path(__file__).with_name("native.cpp")

FLAGS = "-O3 -march=native -ffp-contract=off -fno-math-errno -std=c++17 -shared -fPIC -pthread"

MOST = 32  # models of one tensor, as native.cpp has it

_DTYPES = {torch.bfloat16: 0, torch.float32: 1, torch.float16: 2}

_THIN = {"magnitude": 1, "band": 2, "random": 3, "ranked": 4, "votes": 5, "variance": 6}

_JOIN = {"sum": 0, "elect": 1, "largest": 2}

_TERM = np.dtype(
    [(name, np.uint64) for name in ("data", "levels")]
    + [(name, np.float32) for name in ("weight", "low", "high", "inverse")]
    + [(name, np.uint32) for name in ("key0", "key1", "threshold", "dtype")]
)

_PIECE = np.dtype(
    [("size", np.int64)]
    + [(name, np.uint64) for name in ("base", "out", "terms", "digests", "found")]
    + [(name, np.int64) for name in ("first_tile", "inside", "room")]
    + [(name, np.int32) for name in ("count", "base_dtype", "dtype", "out_dtype")]
    + [(name, np.int32) for name in ("thin", "join", "normalize", "least")]
    + [("scale", np.float32)]
    + [(name, np.int32) for name in ("broken", "bin", "spare")]
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, compiling them if need be; None, said once, if that fails."""
    try:
        try:
            found = ctypes.CDLL(str(_compiled()))
        except OSError:  # a damaged file, or one of another system
            found = ctypes.CDLL(str(_compiled(anew=True)))
    except (OSError, subprocess.SubprocessError) as error:
        stderr = getattr(error, "stderr", None) or one_line(error)
        said = (stderr if isinstance(stderr, str) else stderr.decode(errors="replace")).splitlines()
        line = next((line for line in said if "error" in line), said[0])
        log.warning("merging in eager torch, which is slower: %s", line.strip()[:200])
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.evomerge_sizes.restype = number
    if found.evomerge_sizes() != _PIECE.itemsize << 32 | _TERM.itemsize:
        log.warning("merging in eager torch, which is slower: evomerge changed while it ran")
        return None
    for function in (found.evomerge_merge, found.evomerge_survey):
        function.restype = None
        function.argtypes = [pointer, number, number, pointer, ctypes.c_int]
    return found


def _compiled(anew: bool = False) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise OSError("there is no C++ compiler (g++ or clang++, or one that CXX names)")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "".join(sorted({x for x in lines if x.startswith(("flags", "Features"))}))
    except OSError:
        processor = platform.node()
    named = f"{platform.machine()}{processor}{compiler}{FLAGS}".encode() + SOURCE.read_bytes()
    folder = cache_folder("native")
    path = folder / f"{hashlib.sha256(named).hexdigest()[:24]}.so"
    if anew or not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            beside = Path(own) / path.name
            command = [*compiler.split(), *FLAGS.split(), str(SOURCE), "-o", str(beside)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            beside.replace(path)
    return path


def does(how: Masked) -> bool:
    """Whether a masked sum has a native form."""
    return how.thin == "variance" or (how.thin in _THIN and not how.energy)


def takes(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether the native kernels read and write these tensors, for results of `dtype`."""
    dtypes = {t.dtype for t in tensors} | {dtype}
    if not dtypes <= _DTYPES.keys() or not all(t.is_contiguous() for t in tensors):
        return False
    native = library()
    return native is not None and (torch.float16 not in dtypes or bool(native.evomerge_has_f16()))


class Batch:
    """Tensors to be merged again and again with other numbers, all in one call.

    Columns are set for all tensors or for some rows of them; see `kernels.Kept` and `Masked`
    for what they mean.
    """

    def __init__(
        self,
        bases: Sequence[torch.Tensor] | None,
        tensors: Sequence[Sequence[torch.Tensor]],
        outs: Sequence[torch.Tensor],
        dtype: torch.dtype,
        cuts: Sequence[np.ndarray] | None = None,
    ):
        """
        Args:
            bases: W_0 of each tensor for a masked sum; None for a weighted sum.
            tensors: of each tensor, the models'.
            outs: where each result goes, rounded to `dtype` and stored in its own.
            dtype: of the results.
            cuts: of a weighted sum's tensors, where runs of elements begin, the first at 0: each
                run is a row of its own.
        """
        self._alive: list[Any] = [bases, tensors, outs]  # what the pointers point at
        of, starts, sizes = _runs([out.numel() for out in outs], cuts)
        self._pieces = np.zeros(len(of), _PIECE)
        self._terms = np.zeros((len(of), len(tensors[0])), _TERM)
        self._kept: dict[int, Any] = {}
        tiles = (sizes * dtype.itemsize + TILE_BYTES - 1) // TILE_BYTES
        self._first = np.concatenate([[0], np.cumsum(tiles)])
        self._digests = np.empty(self._first[-1], np.uint64)
        p, t = self._pieces, self._terms
        p["size"], p["count"], p["dtype"] = sizes, t.shape[1], _DTYPES[dtype]
        p["first_tile"] = self._first[:-1]
        p["digests"] = self._digests.ctypes.data + 8 * self._first[:-1].astype(np.uint64)
        p["terms"] = t.ctypes.data + t.strides[0] * np.arange(len(of), dtype=np.uint64)
        data, kinds = _pointers([[out] for out in outs], of, starts)
        p["out"], p["out_dtype"] = data[:, 0], kinds[:, 0]
        if bases is not None:
            p["base"] = [base.data_ptr() for base in bases]
            p["base_dtype"] = [_DTYPES[base.dtype] for base in bases]
        t["data"], t["dtype"] = _pointers(tensors, of, starts)

    @property
    def nbytes(self) -> int:
        return self._pieces.nbytes + self._terms.nbytes + self._digests.nbytes

    def weigh(self, rows: Any, weights: np.ndarray) -> None:
        """Set the weights of a weighted sum: (models,), or (rows, models)."""
        self._terms["weight"][rows] = weights

    def thin(self, rows: Any, how: Masked) -> None:
        """Set what tensors of one group of layers and modules have in common in a masked sum."""
        p, t = self._pieces, self._terms
        p["thin"][rows], p["join"][rows] = _THIN[how.thin], _JOIN[how.join]
        p["normalize"][rows], p["scale"][rows] = how.normalize, how.scale
        p["least"][rows] = min(int(np.ceil(how.least)), MOST + 1)
        t["weight"][rows] = how.weight
        if how.thin == "votes":
            t["low"][rows] = how.threshold
        for k, density in enumerate(how.density):
            if how.thin == "random":
                t["threshold"][rows, k], t["inverse"][rows, k] = keep_by_chance(density, how)
            elif how.thin == "ranked":
                t["low"][rows, k], t["high"][rows, k] = chances_of_rank(density, how)
                t["inverse"][rows, k] = how.rescale

    def keep(self, row: int, kept: Sequence[Kept]) -> None:
        """Set what thinning one tensor's task vectors needs beside that."""
        t, thin, self._kept[row] = self._terms[row], self._pieces["thin"][row], kept
        if thin in (_THIN["magnitude"], _THIN["band"], _THIN["variance"]):
            t["low"], t["high"] = [k.low for k in kept], [k.high for k in kept]
        elif thin != _THIN["votes"]:
            t["key0"], t["key1"] = zip(*(k.key for k in kept), strict=True)
        if thin == _THIN["ranked"]:
            t["levels"] = [k.levels.data_ptr() for k in kept]

    def variances(self, places: Mapping[int, tuple[int, int]]) -> dict[int, torch.Tensor]:
        """Return the variances across models above zero that fall into one bin, unordered.

        Args:
            places: tensor's row -> the upper 16 bits of a float32 (see `MagnitudeTable`), and how
                many there are; rows are thinned by variance.
        """
        found = {
            row: torch.empty(size, dtype=torch.float32, device="cpu")
            for row, (_, size) in places.items()
        }
        self._pieces["bin"], self._pieces["inside"] = -1, 0
        for row, (index, size) in places.items():
            self._pieces["bin"][row], self._pieces["room"][row] = index, size
            self._pieces["found"][row] = found[row].data_ptr()
        self._survey(None)
        return {row: inside[: self._pieces["inside"][row]] for row, inside in found.items()}

    def share(self, rows: Sequence[int], how: Masked) -> None:
        """Multiply the weights of rows thinned by variance by the models' shares of energy."""
        energy = self._energies(rows)
        total = energy.sum(axis=1, keepdims=True)
        self._terms["weight"][rows] = how.weight * energy / np.where(total, total, 1.0)

    def _energies(self, rows: Sequence[int]) -> np.ndarray:
        """Return the sums of squares of what is kept by variance, (rows, models) float64."""
        sums = np.zeros((int(self._first[-1]), MOST))
        self._pieces["bin"] = -1
        self._pieces["bin"][rows] = 0
        self._survey(sums)
        of = (slice(*self._first[row : row + 2]) for row in rows)
        return np.array([sums[tiles].sum(axis=0) for tiles in of])[:, : self._terms.shape[1]]

    def _survey(self, sums: np.ndarray | None) -> None:
        library().evomerge_survey(
            self._pieces.ctypes.data,
            len(self._pieces),
            int(self._first[-1]),
            None if sums is None else sums.ctypes.data,
            torch.get_num_threads(),
        )

    def merge(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Merge all tensors, each in one pass, on torch's number of threads.

        Returns:
            The digests of each tensor's tiles (see `checksum`), and which are not finite.
        """
        self._pieces["broken"] = 0
        library().evomerge_merge(
            self._pieces.ctypes.data,
            len(self._pieces),
            int(self._first[-1]),
            digest_keys().ctypes.data,
            torch.get_num_threads(),
        )
        made = self._digests.copy()
        digests = [made[a:b] for a, b in itertools.pairwise(self._first)]
        return digests, self._pieces["broken"].astype(bool)


def _runs(
    sizes: list[int], cuts: Sequence[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, of each run: its tensor, its first element, and how many it has."""
    if cuts is None:
        return np.arange(len(sizes)), np.zeros(len(sizes), np.int64), np.array(sizes, np.int64)
    of = np.repeat(np.arange(len(sizes)), [len(c) for c in cuts])
    lengths = [np.diff(c, append=size) for c, size in zip(cuts, sizes, strict=True)]
    return of, np.concatenate(cuts).astype(np.int64), np.concatenate(lengths).astype(np.int64)


def _pointers(
    tensors: Sequence[Sequence[torch.Tensor]], of: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return where runs of tensors begin, and their dtypes, each (runs, models)."""
    data = np.array([[x.data_ptr() for x in row] for row in tensors], np.uint64)
    size = np.array([[x.element_size() for x in row] for row in tensors], np.uint64)
    kinds = np.array([[_DTYPES[x.dtype] for x in row] for row in tensors])
    return data[of] + size[of] * starts[:, None].astype(np.uint64), kinds[of]
