"""The back end in C++ for a processor: one pass over memory where eager torch makes many.

`native.cpp` says the same as `eager.py`, operation by operation, and gives the same bits of finite
task vectors (energies are summed in another order, in float64). It reads tables of addresses and
numbers; those of addresses are kept from merge to merge: for 25 million parameters they take 1.5 ms
to make, and a weighted sum 6 ms.
"""

import functools
import itertools
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from evomerge.kernels.chances import chances_of_rank, keep_by_chance
from evomerge.kernels.checksum import TILE_BYTES, digest_keys
from evomerge.kernels.magnitude_histogram import HistogramPlace, ranked
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import (
    MaskedSums,
    MergePlan,
    Operands,
    SegmentedSums,
    Sums,
    WeightedSums,
    not_finite,
    run_starts,
)
from evomerge.kernels.native_addresses import DTYPES, SIGNS, Addresses, memory_of
from evomerge.kernels.native_library import MOST, PIECE, TERM, library

_SIGNED = 7  # among those of `_THIN`: a weighted sum with signs among its operands

_THIN = {"magnitude": 1, "band": 2, "random": 3, "ranked": 4, "votes": 5, "variance": 6}

_JOIN = {"sum": 0, "elect": 1, "largest": 2}

_NOT_SURVEYED = -1  # as the `bin` of a piece


class NativeKernels:
    """Merges all tensors of a plan in one call; see `merge_plan.MergeKernels`.

    >>> operands = Operands({"w": (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))})
    >>> plan = MergePlan(operands, torch.float32, (WeightedSums(("w",), np.array([0.5, 0.5])),))
    >>> live, kernels = {"w": torch.zeros(2)}, NativeKernels()
    >>> if kernels.takes(plan, live):  # not on a machine without a compiler
    ...     digests = kernels.merge(plan, live)
    """

    def __init__(self) -> None:
        # by the operands, which live as long as whoever merges them again and again wants
        self._places: weakref.WeakKeyDictionary[Operands, _Places] = weakref.WeakKeyDictionary()

    @property
    def nbytes(self) -> int:
        """The memory that the tables take."""
        return sum(places.nbytes for places in self._places.values())

    def takes(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]) -> bool:
        """Tell whether `merge` can merge a plan into tensors."""
        if not all(map(_has_form, plan.groups)):
            return False
        if self._known(plan, targets) is not None:
            return True
        for group in plan.groups:
            is_weighted = isinstance(group, WeightedSums)
            if not is_weighted and any(map(plan.operands.has_signs, group.names)):
                return False
        rows = plan.operands.tensors.values()
        operands = [*itertools.chain.from_iterable(rows), *targets.values()]
        dtypes = {operand.dtype for operand in operands} | {plan.dtype}
        fits = max(map(len, rows), default=0) <= MOST and dtypes <= DTYPES.keys()
        tensors = map(memory_of, operands)
        if not fits or not all(t.is_contiguous() and t.device.type == "cpu" for t in tensors):
            return False
        native = library()  # asked for last: it may have to be compiled
        return native is not None and (
            torch.float16 not in dtypes or bool(native.evomerge_has_f16())
        )

    def merge(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """See `merge_plan.MergeKernels.merge`."""
        if not targets:
            return {}
        places = self._known(plan, targets)
        if places is None:
            places = self._places[plan.operands] = _Places(plan, targets)
        starts = run_starts(plan.groups)
        return self._merge_runs(plan, places, starts) if starts else places.tables.merge(plan)

    def _known(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]) -> "_Places | None":
        """Return the places of a plan's operands and of these targets, if they were found."""
        places = self._places.get(plan.operands)
        if places is None or places.targets is not targets or places.dtype != plan.dtype:
            return None
        return places

    def _merge_runs(
        self, plan: MergePlan, places: "_Places", starts: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Merge tensors of several runs, which have tiles across them: digested afterwards."""
        targets = places.targets
        several = [name for name, of_name in starts.items() if len(of_name) > 1]
        apart: dict[str, torch.Tensor] = {}
        for name in several:
            # digests are of what is merged, and a narrower target does not hold that
            if targets[name].dtype.itemsize < plan.dtype.itemsize:
                apart[name] = torch.empty_like(targets[name], dtype=plan.dtype)
        merged = {**targets, **apart} if apart else targets
        if apart:
            places = _Places(plan, merged)
        digests = _Tables(places, starts).merge(plan)
        for name in several:
            digests[name] = _digested(merged[name].to(plan.dtype))
        for name, tensor in apart.items():
            targets[name].copy_(tensor)
        return digests


def _has_form(group: Sums) -> bool:
    """Tell whether a group has a native form; energies have one beside variances alone."""
    if isinstance(group, MaskedSums):
        return group.masked.thin == "variance" or not group.masked.energy
    return True


def _digested(tensor: torch.Tensor) -> np.ndarray:
    """Return what `tile_digests` does, of a contiguous tensor on the processor."""
    native = library()
    assert native is not None, "whoever merges asks `takes` first"
    digests = np.empty(-(-tensor.nbytes // TILE_BYTES), np.uint64)
    keys = digest_keys().ctypes.data
    native.evomerge_digest(tensor.data_ptr(), tensor.nbytes, keys, digests.ctypes.data)
    return digests


class _Places:
    """Where a plan's operands lie, and the tensors that they are merged into, name by name.

    Found once for tensors that are merged again and again: of a small model that takes longer than
    to merge it.
    """

    def __init__(self, plan: MergePlan, targets: Mapping[str, torch.Tensor]):
        self.targets, self.dtype = targets, plan.dtype
        self._operands = plan.operands.tensors  # what the addresses point at stays alive
        self.operands = Addresses([self._operands[name] for name in targets])
        self.outs = Addresses([(target,) for target in targets.values()])
        self.sizes = np.array([target.numel() for target in targets.values()])

    @functools.cached_property
    def tables(self) -> "_Tables":
        """Those of whole tensors, to be merged again with other numbers."""
        return _Tables(self, {})

    @property
    def nbytes(self) -> int:
        return self.tables.nbytes if "tables" in vars(self) else 0


class _Tables:
    """Addresses, and room for numbers, of tensors that may be merged again with other numbers.

    A row is a run of one tensor's elements, nearly always all of them.
    """

    def __init__(self, places: _Places, starts: Mapping[str, np.ndarray]):
        """
        Args:
            places: of the tensors.
            starts: name -> where its runs begin, if it has any.
        """
        names, whole = list(places.targets), np.zeros(1, np.int64)
        runs = [starts.get(name, whole) for name in names]
        counts = np.array([len(of_name) for of_name in runs])
        ends = counts.cumsum()
        self._first: dict[str, int] = dict(zip(names, (ends - counts).tolist(), strict=True))
        of, begin = np.arange(len(names)).repeat(counts), np.concatenate(runs)
        size = np.empty_like(begin)
        size[:-1] = begin[1:]
        size[ends - 1] = places.sizes
        size -= begin
        operands, self._dtypes = places.operands.of_runs(of, begin)
        self._scales = places.operands.scales(of)
        is_signs = np.isin(self._dtypes, list(SIGNS.values()))
        self._thin_of_sums = np.where(is_signs.any(axis=1), _SIGNED, 0)
        outs, out_dtypes = places.outs.of_runs(of, begin)
        self._pieces = np.zeros(len(of), PIECE)
        self._terms = np.zeros(operands.shape, TERM)
        tiles = (size * places.dtype.itemsize + TILE_BYTES - 1) // TILE_BYTES
        self._tiles = np.zeros(len(of) + 1, np.int64)
        tiles.cumsum(out=self._tiles[1:])
        self._digests = np.empty(self._tiles[-1], np.uint64)
        pieces, terms = self._pieces, self._terms
        pieces["size"], pieces["dtype"] = size, DTYPES[places.dtype]
        pieces["out"], pieces["out_dtype"] = outs[:, 0], out_dtypes[:, 0]
        pieces["first_tile"] = self._tiles[:-1]
        pieces["digests"] = self._digests.ctypes.data + 8 * self._tiles[:-1].astype(np.uint64)
        terms["data"], terms["dtype"] = operands, self._dtypes
        self._rows = terms.ctypes.data + terms.strides[0] * np.arange(len(of), dtype=np.uint64)

    @property
    def nbytes(self) -> int:
        return self._pieces.nbytes + self._terms.nbytes + self._digests.nbytes

    def merge(self, plan: MergePlan) -> dict[str, np.ndarray]:
        """Merge all tensors, each in one pass, on torch's number of threads.

        Returns:
            name -> digests of its first run's tiles.
        """
        for group in plan.groups:
            if isinstance(group, WeightedSums):
                self._weigh(self._of(group.names), group.coefficients)
            elif isinstance(group, SegmentedSums):
                counts = np.array([len(rows) for rows in group.coefficients])
                # of each tensor its first row and those after it
                skipped = self._of(group.names) - (counts.cumsum() - counts)
                rows = skipped.repeat(counts) + np.arange(counts.sum())
                self._weigh(rows, np.concatenate(group.coefficients))
            else:
                self._thin(self._of(group.names), group)
        self._find_variances([g for g in plan.groups if isinstance(g, MaskedSums)])
        self._pieces["broken"] = 0
        native = library()
        assert native is not None, "whoever merges asks `takes` first"
        native.evomerge_merge(
            self._pieces.ctypes.data,
            len(self._pieces),
            len(self._digests),
            digest_keys().ctypes.data,
            torch.get_num_threads(),
        )
        if self._pieces["broken"].any():
            first_row = int(self._pieces["broken"].argmax())
            raise not_finite([name for name, row in self._first.items() if row <= first_row][-1])
        made = self._digests.copy()
        return {
            name: made[self._tiles[row] : self._tiles[row + 1]] for name, row in self._first.items()
        }

    def _of(self, names: Sequence[str]) -> np.ndarray:
        """Return the first rows of tensors."""
        return np.array([self._first[name] for name in names])

    def _weigh(self, rows: np.ndarray, coefficients: np.ndarray) -> None:
        """Set what a weighted sum needs: (operands,) coefficients, or (rows, operands)."""
        pieces, count = self._pieces, coefficients.shape[-1]
        pieces["base"][rows], pieces["thin"][rows] = 0, self._thin_of_sums[rows]
        pieces["terms"][rows], pieces["count"][rows] = self._rows[rows], count
        if self._scales is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # it is not finite, and is told
                coefficients = coefficients.astype(np.float32) * self._scales[rows, :count]
        self._terms["weight"][rows, :count] = coefficients

    def _thin(self, rows: np.ndarray, group: MaskedSums) -> None:
        """Set what a masked sum needs; of variances, what is known without a look at them."""
        pieces, masked, kept = self._pieces, group.masked, group.kept
        pieces["base"][rows] = self._terms["data"][rows, 0]
        pieces["base_dtype"][rows] = self._dtypes[rows, 0]
        # the models come after the base
        pieces["terms"][rows] = self._rows[rows] + np.uint64(TERM.itemsize)
        pieces["count"][rows] = len(masked.weight)
        pieces["thin"][rows], pieces["join"][rows] = _THIN[masked.thin], _JOIN[masked.join]
        pieces["normalize"][rows], pieces["scale"][rows] = masked.normalize, masked.scale
        pieces["least"][rows] = min(int(np.ceil(masked.least)), MOST + 1)
        terms = self._terms[:, 1 : 1 + len(masked.weight)]
        terms["weight"][rows] = masked.weight
        match masked.thin:
            case "magnitude" | "band":
                terms["low"][rows] = [[k.low for k in of_tensor] for of_tensor in kept]
                terms["high"][rows] = [[k.high for k in of_tensor] for of_tensor in kept]
            case "variance":
                terms["low"][rows] = [[of_tensor[0].low] for of_tensor in kept]
            case "votes":
                terms["low"][rows] = masked.threshold
            case "random" | "ranked":
                keys = np.array([[k.key for k in of_tensor] for of_tensor in kept], np.uint32)
                terms["key0"][rows], terms["key1"][rows] = keys[..., 0], keys[..., 1]
                self._set_chances(terms, rows, masked)
        if masked.thin == "ranked":
            terms["levels"][rows] = [
                [k.levels.data_ptr() for k in of_tensor if k.levels is not None]
                for of_tensor in kept
            ]

    def _set_chances(self, terms: np.ndarray, rows: np.ndarray, masked: Masked) -> None:
        for model, density in enumerate(masked.density):
            of_model = terms[:, model]
            if masked.thin == "random":
                threshold, inverse = keep_by_chance(density, masked)
                of_model["threshold"][rows], of_model["inverse"][rows] = threshold, inverse
            else:
                first, step = chances_of_rank(density, masked)
                of_model["low"][rows], of_model["high"][rows] = first, step
                of_model["inverse"][rows] = masked.rescale

    def _find_variances(self, groups: Sequence[MaskedSums]) -> None:
        """Look for the least variances that are kept, and for the energies of what is kept."""
        places: dict[int, HistogramPlace] = {}
        for group in groups:
            for name, kept in zip(group.names, group.kept, strict=True):
                if group.masked.thin == "variance" and kept[0].place is not None:
                    places[self._first[name]] = kept[0].place
        if places:
            for row, inside in self._in_bins(places).items():
                self._terms["low"][row, 1:] = ranked(inside, places[row].rank)
        for group in groups:
            if group.masked.energy:
                rows = self._of(group.names)
                energy = self._energies(rows)[:, : len(group.masked.weight)]
                total = energy.sum(axis=1, keepdims=True)
                share = energy / np.where(total, total, 1.0)
                self._terms["weight"][rows, 1 : 1 + energy.shape[1]] = group.masked.weight * share

    def _in_bins(self, places: Mapping[int, HistogramPlace]) -> dict[int, torch.Tensor]:
        """Return rows' variances across models that fall into one bin, without zeros, unordered."""
        pieces = self._pieces
        room = {row: torch.empty(place.size) for row, place in places.items()}
        pieces["bin"], pieces["inside"] = _NOT_SURVEYED, 0
        for row, place in places.items():
            pieces["bin"][row], pieces["room"][row] = place.bin, place.size
            pieces["variances"][row] = room[row].data_ptr()
        self._survey(None)
        return {row: variances[: pieces["inside"][row]] for row, variances in room.items()}

    def _energies(self, rows: np.ndarray) -> np.ndarray:
        """Return the sums of squares of what is kept by variance, (rows, MOST) float64."""
        sums = np.zeros((len(self._digests), MOST))
        self._pieces["bin"] = _NOT_SURVEYED
        self._pieces["bin"][rows] = 0
        self._survey(sums)
        return np.array([sums[self._tiles[r] : self._tiles[r + 1]].sum(axis=0) for r in rows])

    def _survey(self, sums: np.ndarray | None) -> None:
        native = library()
        assert native is not None, "whoever merges asks `takes` first"
        native.evomerge_survey(
            self._pieces.ctypes.data,
            len(self._pieces),
            len(self._digests),
            None if sums is None else sums.ctypes.data,
            torch.get_num_threads(),
        )
