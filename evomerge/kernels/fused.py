"""The back end for a GPU: one pass over memory where eager torch makes many.

`triton_programs` says what is computed; here are the tables of addresses and numbers that it reads.
Those of addresses are kept from merge to merge, so that a candidate costs one copy of numbers, one
launch for each way of merging that its tensors have, and one copy of digests back.
"""

import contextlib
import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from evomerge.kernels.chances import chances_of_rank, keep_by_chance
from evomerge.kernels.checksum import TILE_BYTES, digest_keys, tile_digests
from evomerge.kernels.eager import EagerKernels
from evomerge.kernels.fused_forms import DTYPES, SIGNED, THIN, has_form, parted
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import (
    Kept,
    MaskedSums,
    MergePlan,
    Operands,
    SegmentedSums,
    Sums,
    WeightedSums,
    not_finite,
    run_starts,
)
from evomerge.kernels.signs import Signs

_JOIN = {"sum": 0, "elect": 1, "largest": 2}

_NUMBERS, _WORDS = 4, 3  # of an operand in the tables, see `triton_programs.merge`

_BLOCK = 2048  # elements that a program holds at a time: sixteen for each of its threads


class _Form(NamedTuple):
    """What a launch has compiled in; see `triton_programs.merge`."""

    operands: int
    dtypes: int
    out: int
    thin: int
    join: int
    normalize: bool
    aligned: bool


class FusedKernels:
    """Merges a plan in as many launches as it has ways of merging; see `merge_plan.MergeKernels`.

    What has no fused form (double precision, variances, energies, forty dense tensors and more) is
    merged by eager torch.

    >>> FusedKernels().nbytes  # nothing was merged yet
    0
    """

    def __init__(self, block: int = _BLOCK):
        """
        Args:
            block: elements that a program holds at a time, a power of two from 128 on.
        """
        self._block, self._eager = block, EagerKernels()
        # by the operands, which live as long as whoever merges them again and again wants
        self._tables: weakref.WeakKeyDictionary[Operands, _Tables] = weakref.WeakKeyDictionary()

    @property
    def nbytes(self) -> int:
        """The memory that the tables take, on the device."""
        return sum(tables.nbytes for tables in self._tables.values())

    def merge(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """See `merge_plan.MergeKernels.merge`."""
        fused: list[Sums] = []
        others: list[Sums] = []
        for group in plan.groups:
            for alike in parted(plan.operands, group):
                (fused if has_form(plan, alike, targets) else others).append(alike)
        digests: dict[str, np.ndarray] = {}
        if fused:
            digests |= self._merge_fused(plan, fused, targets)
        for group in others:
            part = MergePlan(plan.operands, plan.dtype, (group,))
            digests |= self._eager.merge(part, targets)
        return digests

    def _merge_fused(
        self, plan: MergePlan, groups: Sequence[Sums], targets: Mapping[str, torch.Tensor]
    ) -> dict[str, np.ndarray]:
        names = [name for group in groups for name in group.names]
        starts = run_starts(groups)
        if starts:
            return _merge_runs(plan, groups, names, targets, starts, self._block)
        tables = self._tables.get(plan.operands)
        if tables is None or not tables.serves(names, targets, plan.dtype):
            tables = _Tables(plan, names, targets, {}, self._block)
            self._tables[plan.operands] = tables
        return tables.merge(groups)


def _merge_runs(
    plan: MergePlan,
    groups: Sequence[Sums],
    names: Sequence[str],
    targets: Mapping[str, torch.Tensor],
    starts: Mapping[str, np.ndarray],
    block: int,
) -> dict[str, np.ndarray]:
    """Merge tensors of several runs, which have tiles across them: digested afterwards."""
    several = [name for name in names if len(starts.get(name, ())) > 1]
    merged = dict(targets)
    for name in several:
        # digests are of what is merged, and a narrower target does not hold that
        if targets[name].dtype.itemsize < plan.dtype.itemsize:
            merged[name] = torch.empty_like(targets[name], dtype=plan.dtype)
    digests = _Tables(plan, names, merged, starts, block).merge(groups)
    for name in several:
        digests[name] = tile_digests(merged[name].to(plan.dtype))
        if merged[name] is not targets[name]:
            targets[name].copy_(merged[name])
    return digests


class _Tables:
    """Addresses, and room for numbers, of tensors that may be merged again with other numbers.

    A row is a run of one tensor's elements, nearly always all of them.
    """

    def __init__(
        self,
        plan: MergePlan,
        names: Sequence[str],
        targets: Mapping[str, torch.Tensor],
        starts: Mapping[str, np.ndarray],
        block: int,
    ):
        self._names, self._targets, self._dtype = list(names), targets, plan.dtype
        self._operands = plan.operands.tensors  # what the addresses point at stays alive
        self._device = targets[self._names[0]].device
        self._tile, self._block = TILE_BYTES // plan.dtype.itemsize, block
        rows = list(self._rows(starts))
        counts = np.array([len(starts.get(name, (0,))) for name in self._names])
        firsts = (np.cumsum(counts) - counts).tolist()
        self._first: dict[str, int] = dict(zip(self._names, firsts, strict=True))
        width = max(len(row.addresses) for row in rows)
        addresses = np.zeros((len(rows), width), np.int64)
        for index, row in enumerate(rows):
            addresses[index, : len(row.addresses)] = row.addresses
        sizes = np.array([row.size for row in rows], np.int64)
        self._codes = np.zeros((len(rows), width), np.int64)
        for index, row in enumerate(rows):
            self._codes[index, : len(row.dtypes)] = row.dtypes
        self._bits = np.zeros((len(rows), width), np.int64)  # of signs
        self._scales = np.ones((len(rows), width), np.float32)
        for name, first in self._first.items():
            for column, operand in enumerate(self._operands[name]):
                if isinstance(operand, Signs):
                    self._bits[first, column] = operand.bits
                    self._scales[first, column] = operand.scale
        self._is_signed: np.ndarray = self._bits.max(axis=1) > 0
        self._out_codes = np.array([row.out_dtype for row in rows], np.int64)
        outs = np.array([row.out for row in rows], np.int64)
        self._aligned = ~((addresses % 16).any(axis=1) | (outs % 16 != 0))
        tiles = (sizes + self._tile - 1) // self._tile
        self._tiles = np.concatenate([[0], np.cumsum(tiles)])
        self._addresses, self._outs = self._sent(addresses), self._sent(outs)
        self._sizes, self._keys = self._sent(sizes), _keys_on(self._device)
        self._numbers = _Staged((len(rows), width, _NUMBERS), torch.float32, self._device)
        self._words = _Staged((len(rows), width, _WORDS), torch.int64, self._device)
        self._results = torch.zeros((2, self._tiles[-1]), dtype=torch.int64, device=self._device)
        self._launches: dict[bytes, torch.Tensor] = {}  # rows -> their tiles

    def _rows(self, starts: Mapping[str, np.ndarray]) -> "Sequence[_Row]":
        rows = []
        for name in self._names:
            operands, target = self._operands[name], self._targets[name]
            memory = [one.codes if isinstance(one, Signs) else one for one in operands]
            # of signs the program asks for no dtype
            codes = tuple(0 if isinstance(t, Signs) else DTYPES[t.dtype] for t in operands)
            begins = [int(start) for start in starts.get(name, (0,))]
            for begin, end in zip(begins, [*begins[1:], target.numel()], strict=True):
                addresses = [t.data_ptr() + begin * t.element_size() for t in memory]
                out = target.data_ptr() + begin * target.element_size()
                rows.append(_Row(addresses, codes, out, DTYPES[target.dtype], end - begin))
        return rows

    def _sent(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    @property
    def nbytes(self) -> int:
        kept = [self._addresses, self._outs, self._sizes, self._results, *self._launches.values()]
        kept += [self._numbers.there, self._words.there]
        return sum(tensor.nbytes for tensor in kept)

    def serves(
        self, names: Sequence[str], targets: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> bool:
        """Tell whether the tables are of these names and of these very targets."""
        return targets is self._targets and dtype == self._dtype and names == self._names

    def merge(self, groups: Sequence[Sums]) -> dict[str, np.ndarray]:
        """Merge all tensors, each in one pass; return name -> digests of its first run's tiles."""
        forms: dict[_Form, list[np.ndarray]] = {}
        for group in groups:
            if isinstance(group, MaskedSums):
                rows = self._of(group.names)
                self._thin(rows, group.masked, group.kept)
                masked = group.masked
                how = (THIN[masked.thin], _JOIN[masked.join], masked.normalize)
                count = 1 + len(masked.weight)
            else:
                rows, coefficients = self._weights(group)
                count = coefficients.shape[-1]
                is_signed = self._is_signed[rows[0]]  # all of a part are, or none
                if is_signed:
                    coefficients = self._signed(rows, coefficients)
                self._numbers.here[rows, :count, 0] = coefficients
                how = (SIGNED if is_signed else 0, 0, False)
            # to the base of three, the first operand's lowest
            dtypes = self._codes[rows, :count] @ 3 ** np.arange(count)
            kinds = np.stack([dtypes, self._out_codes[rows], self._aligned[rows]], axis=1)
            for kind in np.unique(kinds, axis=0):
                form = _Form(count, int(kind[0]), int(kind[1]), *how, bool(kind[2]))
                forms.setdefault(form, []).append(rows[(kinds == kind).all(axis=1)])
        self._numbers.send()
        self._words.send()
        for form, of_form in forms.items():
            self._launch(form, np.concatenate(of_form))
        made, broken = self._results.cpu().numpy()
        if broken.any():
            row = int(np.searchsorted(self._tiles, broken.argmax(), side="right")) - 1
            raise not_finite([name for name, first in self._first.items() if first <= row][-1])
        digests, tiles = made.view(np.uint64), self._tiles.tolist()
        return {name: digests[tiles[row] : tiles[row + 1]] for name, row in self._first.items()}

    def _signed(self, rows: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Set the bits of signs; return the coefficients times their scales."""
        count = coefficients.shape[-1]
        self._words.here[rows, :count, 0] = self._bits[rows, :count]
        with np.errstate(over="ignore", invalid="ignore"):  # it is not finite, and is told
            return coefficients.astype(np.float32) * self._scales[rows, :count]

    def _of(self, names: Sequence[str]) -> np.ndarray:
        """Return the first rows of tensors."""
        return np.array([self._first[name] for name in names])

    def _weights(self, group: WeightedSums | SegmentedSums) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and their coefficients, (rows, operands), or (operands,) of all."""
        if isinstance(group, WeightedSums):
            return self._of(group.names), group.coefficients
        rows = []
        for name, coefficients in zip(group.names, group.coefficients, strict=True):
            first = self._first[name]
            rows.append(np.arange(first, first + len(coefficients)))
        return np.concatenate(rows), np.concatenate(group.coefficients)

    def _thin(self, rows: np.ndarray, masked: Masked, kept: Sequence[tuple[Kept, ...]]) -> None:
        """Set the numbers of a masked sum, the models' after the base's."""
        numbers, words, count = self._numbers.here, self._words.here, len(masked.weight)
        numbers[rows, 0, 0], numbers[rows, 0, 1] = masked.scale, masked.least
        models = slice(1, 1 + count)
        numbers[rows, models, 0] = masked.weight
        if masked.thin in ("magnitude", "band"):
            numbers[rows, models, 1] = [[k.low for k in of_tensor] for of_tensor in kept]
            numbers[rows, models, 2] = [[k.high for k in of_tensor] for of_tensor in kept]
        elif masked.thin == "votes":
            numbers[rows, models, 1] = masked.threshold
        else:
            words[rows, models, :2] = [[k.key for k in of_tensor] for of_tensor in kept]
            for model, density in enumerate(masked.density, start=1):
                if masked.thin == "random":
                    threshold, inverse = keep_by_chance(density, masked)
                    words[rows, model, 2], numbers[rows, model, 1] = threshold, inverse
                else:
                    first, step = chances_of_rank(density, masked)
                    numbers[rows, model, 1:] = first, step, float(masked.rescale)
        if masked.thin == "ranked":
            words[rows, models, 2] = [
                [k.levels.data_ptr() for k in of_tensor if k.levels is not None]
                for of_tensor in kept
            ]

    def _launch(self, form: _Form, rows: np.ndarray) -> None:
        from evomerge.kernels import triton_programs

        key = rows.tobytes()
        if key not in self._launches:
            counts = self._tiles[rows + 1] - self._tiles[rows]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            of = np.repeat(rows, counts)
            tiles = np.stack([of, within * self._tile, self._tiles[of] + within], axis=1)
            self._launches[key] = self._sent(tiles)
        launched = self._launches[key]
        if not len(launched):
            return
        on_device = torch.cuda.device(self._device) if self._device.type == "cuda" else None
        with on_device or contextlib.nullcontext():
            triton_programs.merge[(len(launched),)](
                launched,
                self._addresses,
                self._outs,
                self._sizes,
                self._numbers.there,
                self._words.there,
                self._keys,
                self._results[0],
                self._results[1],
                self._numbers.there.shape[1],
                COUNT=form.operands,
                DTYPES=form.dtypes,
                PLAN=DTYPES[self._dtype],
                OUT=form.out,
                THIN=form.thin,
                JOIN=form.join,
                NORMALIZE=form.normalize,
                ALIGNED=form.aligned,
                TILE=self._tile,
                BLOCK=self._block,
                num_warps=4,
                enable_fp_fusion=False,  # a product and a sum stay two operations
            )


class _Row(NamedTuple):
    """A run of one tensor's elements: where its operands lie, and where it goes."""

    addresses: list[int]
    dtypes: tuple[int, ...]
    out: int
    out_dtype: int
    size: int


class _Staged:
    """Numbers that are written here and read on the device."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        pinned = device.type == "cuda"
        self._staging = torch.zeros(shape, dtype=dtype, pin_memory=pinned)
        self.here = self._staging.numpy()
        self.there = torch.zeros(shape, dtype=dtype, device=device)

    def send(self) -> None:
        # whoever writes here again has waited for the launch that reads it
        self.there.copy_(self._staging, non_blocking=True)


@functools.cache
def _keys_on(device: torch.device) -> torch.Tensor:
    """Return the digest's keys on a device, as uint32."""
    return torch.from_numpy(digest_keys()).to(device)
