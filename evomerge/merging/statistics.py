"""What merges need that no genome changes: made once for each tensor, and kept."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from evomerge.kernels import eager
from evomerge.kernels.eager import Kept
from evomerge.kernels.magnitude_histogram import MagnitudeTable, ranked, sum_tables
from evomerge.kernels.masked import Masked
from evomerge.kernels.native import Batch
from evomerge.recipes.parameters import Recipe
from evomerge.sources.source import Source

_INFINITE = 0x7F80  # the upper 16 bits of infinity in float32; those of NaN are above


class Precomputed:
    """Gram matrices, magnitude tables and ranks of a set of sources."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        hashes: Mapping[str, str],
        tensor: Callable[[str, str], torch.Tensor],
    ):
        """
        Args:
            sources: by the name that recipes have for them.
            hashes: of their content; random masks hang on them.
            tensor: gives a source's tensor by both names.
        """
        self._sources, self._hashes, self._tensor = sources, hashes, tensor
        self._grams: dict[tuple, np.ndarray] = {}
        self._tables: dict[tuple, MagnitudeTable] = {}
        self._levels: dict[tuple, torch.Tensor] = {}
        self._varying: dict[tuple, int] = {}
        self._thresholds: dict[tuple, float] = {}

    @property
    def nbytes(self) -> int:
        kept = [*self._grams.values(), *self._levels.values()]
        return sum(x.nbytes for x in (*kept, *(t.minus_above for t in self._tables.values())))

    def forget_thresholds(self) -> None:
        """Drop what belongs to one recipe's densities, which seldom come again."""
        self._thresholds.clear()

    def gram(self, models: tuple[str, ...], base: str | None, name: str) -> np.ndarray:
        """Return the (models, models) Gram matrix of tensors, or of task vectors, in float64."""
        key = (models, base, name)
        if key not in self._grams:
            origin = None if base is None else self._tensor(base, name)
            self._grams[key] = eager.gram_matrix([self._tensor(m, name) for m in models], origin)
        return self._grams[key]

    def kept(self, recipe: Recipe, how: Masked, name: str) -> list[Kept]:
        """Return what thinning each model's task vector of one tensor needs."""
        if how.thin == "votes":
            return [Kept()] * len(recipe.models)
        if how.thin == "variance":
            return [self._variance(recipe, name, float(how.density[0]))] * len(recipe.models)
        return [self._one(recipe, how, i, name) for i in range(len(recipe.models))]

    def _one(self, recipe: Recipe, how: Masked, i: int, name: str) -> Kept:
        base, model, density = recipe.base, recipe.models[i], float(how.density[i])
        if how.thin in ("random", "ranked"):
            key = mask_key(recipe.seed, self._hashes[model], name)
            levels = self._ranks(base, model, name) if how.thin == "ranked" else None
            return Kept(key=key, levels=levels)
        if how.whole:
            return Kept(self._whole_threshold(base, model, density))
        size = self._sources[base].tensors[name].elements
        if how.thin == "magnitude":
            return Kept(self._least(base, model, name, int(density * size)))
        outliers = int(float(how.gamma[i]) * size)
        last = min(int(density * size) + outliers, size)
        if last <= outliers:
            return Kept(float("inf"))
        low = self._least(base, model, name, last)
        return Kept(low, self._largest(base, model, name, outliers + 1))

    def _least(self, base: str, model: str, name: str, k: int) -> float:
        """Return the least magnitude kept when the k largest are."""
        size = self._sources[base].tensors[name].elements
        return 0.0 if k >= size else self._largest(base, model, name, k)

    def _largest(self, base: str, model: str, name: str, k: int) -> float:
        """Return the k-th largest magnitude of a task vector."""
        key = (base, model, name)
        if key not in self._tables:
            self._tables[key] = MagnitudeTable(self._tau(*key))
        table = self._tables[key]
        return table.largest(torch.empty(0) if table.exact else self._tau(*key), k)

    def _ranks(self, base: str, model: str, name: str) -> torch.Tensor:
        key = (base, model, name)
        if key not in self._levels:
            self._levels[key] = eager.rank_levels(self._tau(*key))
        return self._levels[key]

    def vary(self, recipe: Recipe, how: Masked, batch: Batch, rows: Mapping[str, int]) -> None:
        """Set what a batch needs to thin tensors by variance, as `kept` and the kernels have it.

        Args:
            recipe: whose base and models.
            how: of all these tensors.
            batch: thinned by it.
            rows: tensor's name -> its row of the batch.
        """
        density = float(how.density[0])
        found, places, ranks = {}, {}, {}
        for name, row in rows.items():
            table, varying = self._variances(recipe, name)
            k = int(density * varying)
            if density >= 1.0 or k < 1:
                found[row] = 0.0 if density >= 1.0 else float("inf")
            else:
                index, rank, size = table.place(k)
                if index > _INFINITE:  # differences that overflowed; nothing is at least NaN
                    found[row] = float("nan")
                else:
                    places[row], ranks[row] = (index, size), rank
        inside = batch.variances(places) if places else {}
        found |= {row: ranked(inside[row], rank) for row, rank in ranks.items()}
        for row, low in found.items():
            batch.keep(row, [Kept(low)] * len(recipe.models))
        if how.energy:
            batch.share(list(rows.values()), how)

    def _variance(self, recipe: Recipe, name: str, density: float) -> Kept:
        """Return the least variance across models kept at `density` of those above zero."""
        table, varying = self._variances(recipe, name)
        if density >= 1.0:
            return Kept(0.0)
        return Kept(table.largest(self._spread(recipe, name), int(density * varying)))

    def _variances(self, recipe: Recipe, name: str) -> tuple[MagnitudeTable, int]:
        """Return a table of the variances across models, and how many are above zero."""
        key = (recipe.base, recipe.models, name)
        if key not in self._tables:
            spread = self._spread(recipe, name)
            self._tables[key] = MagnitudeTable(spread)
            self._varying[key] = int((spread > 0).sum())
        return self._tables[key], self._varying[key]

    def _spread(self, recipe: Recipe, name: str) -> torch.Tensor:
        taus = [self._tau(recipe.base, model, name).float() for model in recipe.models]
        return eager.variance(taus)

    def _whole_threshold(self, base: str, model: str, density: float) -> float:
        """Return the least magnitude kept of a whole task vector, all its tensors together."""
        key = ("whole", base, model, density)
        if key not in self._thresholds:
            names = list(self._sources[base].tensors)

            def taus() -> Iterator[torch.Tensor]:
                return (self._tau(base, model, name) for name in names)

            if key[:3] not in self._tables:
                self._tables[key[:3]] = sum_tables(map(MagnitudeTable, taus()))
            table = self._tables[key[:3]]
            k = int(density * table.size)
            self._thresholds[key] = 0.0 if k >= table.size else table.largest_of(taus, k)
        return self._thresholds[key]

    def _tau(self, base: str, model: str, name: str) -> torch.Tensor:
        return eager.task_vector(self._tensor(base, name), self._tensor(model, name))


@functools.lru_cache(maxsize=1 << 16)
def mask_key(seed: int, model_hash: str, tensor: str) -> tuple[int, int]:
    """Return the random generator's key for one model's tensor: two 32-bit words."""
    digest = hashlib.sha256(f"{seed}/{model_hash}/{tensor}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
