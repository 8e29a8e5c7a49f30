"""Merges of LoRA adapters within their factors: what a merge adds to a weight, as factors."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from evomerge.canonical import canonical_json
from evomerge.dtypes import STORED_DTYPES
from evomerge.merging.methods import MergeMethod
from evomerge.merging.source_weights import SourceWeights
from evomerge.merging.statistics import mask_key
from evomerge.merging.update import Update
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.sources.lora import LowRank
from evomerge.sources.source import Source


class Composed(NamedTuple):
    """What a merge adds to one weight.

    Attributes:
        update: in the adapters' orientation, left (out, rank) and right (rank, in); scale 1.
        like: what one of the models adds there, whose module and orientation are the merge's.

    >>> Composed._fields
    ('update', 'like')
    """

    update: Update
    like: LowRank

    def product(self) -> torch.Tensor:
        """Return what is added, in the weight's own shape."""
        left, right = self.update.left, self.update.right
        if self.like.transposed:
            left, right = right.T.contiguous(), left.T.contiguous()
        return left @ right


class FactoredMerger:
    """Composes adapters by methods of the factored family; keeps what no genome changes.

    >>> FactoredMerger({}, {}, SourceWeights({}, torch.device("cpu"))).nbytes
    0
    """

    def __init__(
        self, sources: Mapping[str, Source], hashes: Mapping[str, str], weights: SourceWeights
    ):
        """
        Args:
            sources: by name.
            hashes: of their content, on which random masks depend.
            weights: of these sources.
        """
        self._sources, self._hashes, self._weights = sources, hashes, weights
        self._found: dict[tuple[str, str], object] = {}

    @property
    def nbytes(self) -> int:
        """The memory that takes what is kept."""
        return sum(_bytes(found) for found in self._found.values())

    def analysed(self, method: MergeMethod, recipe: ParametersRecipe, name: str) -> object:
        """Return what a method finds once in the factors of a weight; None if nobody changes it."""
        updates = self._updates(recipe, name)
        return self._analysed(method, recipe, name, updates) if updates else None

    def composed(
        self,
        method: MergeMethod,
        recipe: ParametersRecipe,
        name: str,
        values: Mapping[str, object],
    ) -> Composed | None:
        """Return what a merge adds to a weight, None if it adds nothing.

        Args:
            method: of the factored family.
            recipe: of this method; its models are adapters of its base.
            name: of the weight.
            values: the method's arguments there.
        """
        updates = self._updates(recipe, name)
        if not updates:
            return None
        found = self._analysed(method, recipe, name, updates)
        keys = []
        if method.draws:
            assert recipe.seed is not None, "whoever merges asks `method_of` first"
            seed = recipe.seed
            keys.append([mask_key(seed, self._hashes[model], name) for model in recipe.models])
        made = method.function(found, updates, *keys, **values)
        assert isinstance(made, Update), "a method is of one family"
        if not made.rank:
            return None
        like = next(pair for _, pair in self._pairs(recipe, name) if pair is not None)
        left = made.left if made.scale == 1.0 else made.left * made.scale
        return Composed(Update(left.contiguous(), made.right.contiguous()), like)

    def _pairs(self, recipe: ParametersRecipe, name: str) -> Iterator[tuple[str, LowRank | None]]:
        """Yield each model with what its adapter adds to a weight."""
        for model in recipe.models:
            adapter = self._sources[model].adapter
            yield model, adapter.factors.get(name) if adapter else None

    def _updates(self, recipe: ParametersRecipe, name: str) -> tuple[Update, ...]:
        """Return an update a model, of rank 0 where it adds nothing; none if nobody does."""
        pairs = [pair for _, pair in self._pairs(recipe, name)]
        some = next((pair for pair in pairs if pair is not None), None)
        if some is None:
            return ()
        assert recipe.base is not None, "`method_of` has checked it"
        stored = self._sources[recipe.base].tensors[name]
        dtype = torch.promote_types(getattr(torch, STORED_DTYPES[stored.dtype]), torch.float32)
        updates = []
        for pair in pairs:
            if pair is None:
                a, b = self._weights.factors(some, dtype)
                updates.append(Update(b[:, :0], a[:0]))
            else:
                a, b = self._weights.factors(pair, dtype)
                updates.append(Update(b, a, pair.scale))
        return tuple(updates)

    def _analysed(
        self,
        method: MergeMethod,
        recipe: ParametersRecipe,
        name: str,
        updates: tuple[Update, ...],
    ) -> object:
        assert method.analyse is not None, "factored methods analyse"
        options = {key: recipe.options.get(key, value) for key, value in method.prepares.items()}
        # by the function, which methods may share
        function = f"{method.analyse.__module__}.{method.analyse.__qualname__}"
        key = (canonical_json([function, options, recipe.models]), name)
        if key not in self._found:
            threads = torch.get_num_threads()
            try:
                torch.set_num_threads(1)  # a decomposition's last bits depend on their number
                self._found[key] = method.analyse(updates, **options)
            finally:
                torch.set_num_threads(threads)
        return self._found[key]


def _bytes(found: object) -> int:
    """Return the bytes of the tensors and arrays in tuples of them."""
    if isinstance(found, tuple):
        return sum(map(_bytes, found))
    return found.nbytes if isinstance(found, torch.Tensor | np.ndarray) else 0
