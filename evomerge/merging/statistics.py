"""What merges need that no genome changes: made once for each tensor, and kept."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from evomerge.kernels.chances import rank_levels
from evomerge.kernels.magnitude_histogram import INFINITE_BIN, MagnitudeHistogram, histogram_of
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import Kept
from evomerge.kernels.task_vector import gram_matrix, task_vector, variance
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.sources.source import Source


class _Variances(NamedTuple):
    histogram: MagnitudeHistogram
    above_zero: int


class Statistics:
    """Gram matrices, histograms of magnitudes and ranks of a set of sources' tensors.

    >>> tensors = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 1.0])}
    >>> statistics = Statistics({}, {}, lambda source, name: tensors[source])
    >>> statistics.gram(("a", "b"), None, "norm.weight")
    array([[25.,  4.],
           [ 4.,  1.]])
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        hashes: Mapping[str, str],
        tensor: Callable[[str, str], torch.Tensor],
    ):
        """
        Args:
            sources: by the name that recipes have for them.
            hashes: of their content; random masks depend on them.
            tensor: gives a source's tensor by both names.
        """
        self._sources, self._hashes, self._tensor = sources, hashes, tensor
        self._grams: dict[tuple[tuple[str, ...], str | None, str], np.ndarray] = {}
        self._magnitudes: dict[tuple[str, str, str], MagnitudeHistogram] = {}
        self._of_whole: dict[tuple[str, str], MagnitudeHistogram] = {}
        self._variances: dict[tuple[str, tuple[str, ...], str], _Variances] = {}
        self._levels: dict[tuple[str, str, str], torch.Tensor] = {}
        self._thresholds: dict[tuple[str, str, float], float] = {}

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        histograms = [*self._magnitudes.values(), *self._of_whole.values()]
        histograms += [variances.histogram for variances in self._variances.values()]
        total = sum(histogram.minus_above.nbytes for histogram in histograms)
        total += sum(gram.nbytes for gram in self._grams.values())
        return total + sum(levels.nbytes for levels in self._levels.values())

    def forget_thresholds(self) -> None:
        """Drop what belongs to one recipe's densities, which seldom come again."""
        self._thresholds.clear()

    def gram(self, models: tuple[str, ...], base: str | None, name: str) -> np.ndarray:
        """Return the (models, models) Gram matrix of tensors, or of task vectors, in float64."""
        key = (models, base, name)
        if key not in self._grams:
            origin = None if base is None else self._tensor(base, name)
            self._grams[key] = gram_matrix([self._tensor(m, name) for m in models], origin)
        return self._grams[key]

    def kept(
        self, recipe: ParametersRecipe, base: str, masked: Masked, name: str
    ) -> tuple[Kept, ...]:
        """Return what thinning one tensor's task vectors needs, as `MaskedSums.kept` has it."""
        if masked.thin == "votes":
            return ()
        if masked.thin == "variance":
            return (self._least_variance(recipe, base, name, float(masked.density[0])),)
        kept = []
        for i, model in enumerate(recipe.models):
            if masked.thin in ("magnitude", "band"):
                kept.append(self._largest_kept(base, model, name, masked, i))
                continue
            assert recipe.seed is not None, "whoever merges asks `method_of` first"
            key = mask_key(recipe.seed, self._hashes[model], name)
            levels = self._ranks(base, model, name) if masked.thin == "ranked" else None
            kept.append(Kept(key=key, levels=levels))
        return tuple(kept)

    def _largest_kept(self, base: str, model: str, name: str, masked: Masked, i: int) -> Kept:
        """Return which magnitudes of the i-th model's task vector are kept."""
        density = float(masked.density[i])
        if masked.whole:
            return Kept(self._whole_threshold(base, model, density))
        size = self._sources[base].tensors[name].elements
        if masked.gamma is None:  # "magnitude"; else "band"
            return Kept(self._least(base, model, name, int(density * size)))
        outliers = int(float(masked.gamma[i]) * size)
        last = min(int(density * size) + outliers, size)
        if last <= outliers:
            return Kept(float("inf"))
        low = self._least(base, model, name, last)
        return Kept(low, self._kth_largest(base, model, name, outliers + 1))

    def _least(self, base: str, model: str, name: str, k: int) -> float:
        """Return the least magnitude kept when the k largest are."""
        size = self._sources[base].tensors[name].elements
        return 0.0 if k >= size else self._kth_largest(base, model, name, k)

    def _kth_largest(self, base: str, model: str, name: str, k: int) -> float:
        """Return the k-th largest magnitude of a task vector."""
        key = (base, model, name)
        if key not in self._magnitudes:
            self._magnitudes[key] = MagnitudeHistogram(self._tau(*key))
        return self._magnitudes[key].largest_of(lambda: [self._tau(*key)], k)

    def _ranks(self, base: str, model: str, name: str) -> torch.Tensor:
        key = (base, model, name)
        if key not in self._levels:
            self._levels[key] = rank_levels(self._tau(*key))
        return self._levels[key]

    def _least_variance(
        self, recipe: ParametersRecipe, base: str, name: str, density: float
    ) -> Kept:
        """Return the least variance across models kept at `density` of those above zero."""
        if density >= 1.0:
            return Kept(0.0)
        key = (base, recipe.models, name)
        if key not in self._variances:
            taus = [self._tau(base, model, name).float() for model in recipe.models]
            spread = variance(taus)
            above_zero = int((spread > 0).sum())
            self._variances[key] = _Variances(MagnitudeHistogram(spread), above_zero)
        histogram, above_zero = self._variances[key]
        k = int(density * above_zero)
        if k < 1:
            return Kept(float("inf"))
        found = histogram.place(k)
        # Differences that overflowed are NaN, and nothing is at least that.
        return Kept(float("nan")) if found.bin > INFINITE_BIN else Kept(place=found)

    def _whole_threshold(self, base: str, model: str, density: float) -> float:
        """Return the least magnitude kept of a whole task vector, all its tensors together."""
        key = (base, model, density)
        if key not in self._thresholds:

            def taus() -> Iterator[torch.Tensor]:
                return (self._tau(base, model, name) for name in self._sources[base].tensors)

            if key[:2] not in self._of_whole:
                self._of_whole[key[:2]] = histogram_of(taus())
            histogram = self._of_whole[key[:2]]
            k = int(density * histogram.size)
            everything = k >= histogram.size
            self._thresholds[key] = 0.0 if everything else histogram.largest_of(taus, k)
        return self._thresholds[key]

    def _tau(self, base: str, model: str, name: str) -> torch.Tensor:
        return task_vector(self._tensor(base, name), self._tensor(model, name))


@functools.lru_cache(maxsize=1 << 16)  # keys of a recipe's models and tensors
def mask_key(seed: int, model_hash: str, tensor: str) -> tuple[int, int]:
    """Return the random generator's key for one model's tensor: two 32-bit words.

    >>> mask_key(7, "hash of the model", "norm.weight") == mask_key(7, "another", "norm.weight")
    False
    """
    digest = hashlib.sha256(f"{seed}/{model_hash}/{tensor}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
