"""From a recipe to merged tensors: one after the other, or all at once into a live model."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from evomerge.errors import CandidateFailure
from evomerge.kernels.backends import Kernels
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.merge_plan import MergePlan
from evomerge.merging.ahead import ahead
from evomerge.merging.lineage_weights import weights_of
from evomerge.merging.method_merge import MethodMerge, MethodMerger
from evomerge.merging.mixture_merge import MixtureMerge
from evomerge.merging.routed_checkpoint import routed_stream, routed_tensors
from evomerge.merging.source_weights import SourceWeights, flattened
from evomerge.node.phases import Steps, phase
from evomerge.recipes.lineage import ExplicitRecipe
from evomerge.recipes.mixture import MixtureRecipe
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.sources.source import Source

# Elements merged at a time where operands are read anew: at most 64 MiB each in float32.
_REMADE = 1 << 24


# Targets, the dtype of a recipe that fills them, and both parted by the dtypes of its tensors.
_Parted = tuple[
    Mapping[str, torch.Tensor], str, list[tuple[torch.dtype, Mapping[str, torch.Tensor]]]
]


class _PlannedMerge(Protocol):
    """A recipe that the kernels merge."""

    dtype: torch.dtype

    @property
    def remade(self) -> bool: ...

    def plan(self, names: Sequence[str], again: bool = False) -> MergePlan: ...


class Merger:
    """Merges recipes over one set of opened sources, again and again.

    What does not depend on the genome is computed once and kept.

    Attributes:
        sources: by the name that recipes have for them.
        hashes: of their content.
        device: where tensors are merged.
        weights: of the sources.

    >>> import tempfile
    >>> from evomerge.recipes.parameters import single
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     merger = Merger({"a": open_source(str(tiny_llama(folder, 0)))}, {"a": "its hash"})
    ...     name, tensor = next(merger.stream(single("a", "float32")))
    >>> name, tensor.shape
    ('model.embed_tokens.weight', torch.Size([32, 16]))
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        hashes: Mapping[str, str],
        device: torch.device | str = "cpu",
        room: int | None = None,
    ):
        """
        Args:
            sources: every source that a recipe may name, by that name.
            hashes: their content hashes.
            device: where tensors are merged.
            room: bytes of sources' tensors that stay there for the next recipe; None for all.
                The others are read again for every recipe, while it is merged.
        """
        self.sources, self.hashes, self.device = dict(sources), dict(hashes), torch.device(device)
        self._kernels = Kernels(self.device)
        self.weights = SourceWeights(self.sources, self.device, room)
        self._methods = MethodMerger(self.sources, self.hashes, self.weights)
        self._indices: dict[str, ParameterIndex] = {}
        self._wider_by_frame: dict[tuple[str, str], dict[str, str]] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self._dtypes: dict[tuple[str, str, bool], dict[str, str]] = {}
        self._parted: _Parted = {}, "", []

    def bytes_kept(self) -> int:
        """Return the memory that what is computed once takes, sources not counted."""
        kept = self._methods.statistics.nbytes + self._methods.factored.nbytes
        return kept + self._kernels.nbytes

    def prepare(self, recipes: Sequence[Recipe]) -> None:
        """Do what is done once, for recipes that stand for all that may come.

        Kernels are compiled, task vectors transformed where methods ask for it, and statistics of
        tensors made. A worker that has not done it would spend candidates' seconds on it.
        """
        self._kernels.prepare()
        for recipe in recipes:
            if isinstance(recipe, ParametersRecipe):
                merge, names = self._methods.resolve(recipe), list(self.shapes(recipe))
                doing = f"preparing merges by {', '.join(recipe.methods)}"
                phase(doing)
                merge.survey(names, Steps(doing, "tensors", len(names)))

    def shapes(self, recipe: Recipe) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of a recipe's tensors, in canonical order."""
        if isinstance(recipe, RoutingRecipe):
            origins = routed_tensors(recipe, self.sources)
            return {name: origin.shape for name, origin in origins.items()}
        frame = recipe.sources[0]
        if frame not in self._shapes:
            tensors = self.sources[frame].tensors
            self._shapes[frame] = {name: tensor.shape for name, tensor in tensors.items()}
        return self._shapes[frame]

    def dtypes(self, recipe: Recipe) -> Mapping[str, str]:
        """Return name -> dtype of a recipe's tensors, in canonical order: see `Source.dtype_of`."""
        if isinstance(recipe, RoutingRecipe):
            dtypes = {}
            for name, origin in routed_tensors(recipe, self.sources).items():
                dtypes[name] = self.sources[origin.source].dtype_of(origin.name, recipe.dtype)
            return dtypes
        is_flat = isinstance(recipe, ExplicitRecipe)  # all is one vector, of one dtype
        key = (recipe.sources[0], recipe.dtype, is_flat)
        if key not in self._dtypes:
            dtypes = dict.fromkeys(self.shapes(recipe), recipe.dtype)
            self._dtypes[key] = dtypes if is_flat else dtypes | self._wider(recipe)
        return self._dtypes[key]

    def _wider(self, recipe: Recipe) -> dict[str, str]:
        """Return the dtypes of a recipe's tensors that are not its own, by name."""
        key = (recipe.sources[0], recipe.dtype)
        if key not in self._wider_by_frame:
            frame = self.sources[recipe.sources[0]]
            dtypes = {name: frame.dtype_of(name, recipe.dtype) for name in frame.tensors}
            wider = {name: dtype for name, dtype in dtypes.items() if dtype != recipe.dtype}
            self._wider_by_frame[key] = wider
        return self._wider_by_frame[key]

    def resolved(self, recipe: ParametersRecipe) -> MethodMerge:
        """Return the merge of a recipe, which can be asked for what makes up single tensors.

        Raises:
            BadInput: with every fault of the recipe.
        """
        return self._methods.resolve(recipe)

    def stream(
        self,
        recipe: Recipe,
        names: Iterable[str] | None = None,
        digests: dict[str, np.ndarray] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, merged tensor) in canonical order, or that of `names`, in its dtype.

        Args:
            recipe: what to merge.
            names: of some of its tensors.
            digests: gets what `fill` returns, of each tensor before it is yielded.

        Raises:
            CandidateFailure: a merged tensor is not finite, or no group holds a tensor.
        """
        shapes = self.shapes(recipe)
        wanted = list(shapes if names is None else names)
        if isinstance(recipe, ParametersRecipe | MixtureRecipe):
            yield from self._merged(recipe, wanted, {} if digests is None else digests)
            return
        assert isinstance(recipe, RoutingRecipe | ExplicitRecipe)
        for name, tensor in self._copied(recipe, wanted):
            if digests is not None:
                digests[name] = tile_digests(tensor)
            yield name, tensor

    def _merged(
        self,
        recipe: ParametersRecipe | MixtureRecipe,
        names: list[str],
        digests: dict[str, np.ndarray],
        targets: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what the kernels merge, a few tensors at a time, into `targets` or new tensors."""
        merge, wider, shapes = self._planned(recipe), self._wider(recipe), self.shapes(recipe)
        dtypes = {name: getattr(torch, wider.get(name, recipe.dtype)) for name in names}
        sizes = {name: math.prod(shapes[name]) for name in names}
        parts = _parts(sizes, dtypes)
        for part, plan in ahead(((part, merge.plan(part)) for part in parts), self.device):
            dtype, out = dtypes[part[0]], {}
            for name in part:
                if targets is None:
                    out[name] = torch.empty(shapes[name], dtype=dtype, device=self.device)
                else:
                    out[name] = targets[name]
            digests |= self._kernels.merge(replace(plan, dtype=dtype), out)
            for name in part:
                yield name, out.pop(name)

    def _copied(
        self, recipe: RoutingRecipe | ExplicitRecipe, names: list[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what is taken from sources or from evolved weights as it is."""
        match recipe:
            case RoutingRecipe():
                yield from routed_stream(recipe, self.sources, self.weights.tensor, names)
            case ExplicitRecipe():
                flat = weights_of(recipe, lambda model: flattened(self.sources[model]))
                if not np.isfinite(flat).all():
                    raise CandidateFailure("a merged weight is not finite")
                span, shapes = self._index(recipe).span, self.shapes(recipe)
                for name in names:
                    first, last = span[name]
                    yield name, torch.from_numpy(flat[first:last]).view(shapes[name])

    def fill(self, recipe: Recipe, targets: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Overwrite tensors with merged ones; the quickest way, if `targets` stays one object.

        Args:
            recipe: what to merge.
            targets: checkpoint name -> contiguous tensor of its shape, on the merger's device,
                which gets the values as rounded to the recipe's dtype.

        Returns:
            name -> digests of its tiles in the recipe's dtype, see `checksum`.

        Raises:
            CandidateFailure: as `stream`; some targets are overwritten then.
        """
        digests: dict[str, np.ndarray] = {}
        if not isinstance(recipe, ParametersRecipe | MixtureRecipe):
            for name, tensor in self.stream(recipe, targets, digests):
                targets[name].copy_(tensor)
            return digests
        merge = self._planned(recipe)
        if merge.remade:
            for _ in self._merged(recipe, list(targets), digests, targets):
                pass  # each part is overwritten when it is its turn
            return digests
        for dtype, alike in self._by_dtype(recipe, targets):
            plan = merge.plan(list(alike), again=True)
            digests |= self._kernels.merge(replace(plan, dtype=dtype), alike)
        return digests

    def _by_dtype(
        self, recipe: Recipe, targets: Mapping[str, torch.Tensor]
    ) -> list[tuple[torch.dtype, Mapping[str, torch.Tensor]]]:
        """Part tensors by the dtype of their merges; the same objects for the same targets."""
        wider = self._wider(recipe)
        if not wider:
            return [(getattr(torch, recipe.dtype), targets)]
        before, dtype, parts = self._parted
        if before is not targets or dtype != recipe.dtype:
            by_name: dict[str, dict[str, torch.Tensor]] = {}
            for name, tensor in targets.items():
                by_name.setdefault(wider.get(name, recipe.dtype), {})[name] = tensor
            parts = [(getattr(torch, some), part) for some, part in by_name.items()]
            self._parted = targets, recipe.dtype, parts
        return parts

    def _planned(self, recipe: ParametersRecipe | MixtureRecipe) -> _PlannedMerge:
        if isinstance(recipe, MixtureRecipe):
            return MixtureMerge(recipe, self._index(recipe), self.weights)
        return self._methods.resolve(recipe)

    def _index(self, recipe: MixtureRecipe | ExplicitRecipe) -> ParameterIndex:
        first = recipe.models[0]
        if first not in self._indices:
            tensors = self.sources[first].tensors
            sizes = {name: tensor.elements for name, tensor in tensors.items()}
            self._indices[first] = ParameterIndex(sizes)
        return self._indices[first]


def _parts(sizes: Mapping[str, int], dtypes: Mapping[str, torch.dtype]) -> Iterator[list[str]]:
    """Split names into runs of one dtype, of at most so many elements or of one larger tensor."""
    part: list[str] = []
    elements = 0
    for name, size in sizes.items():
        if part and (elements + size > _REMADE or dtypes[name] != dtypes[part[0]]):
            yield part
            part, elements = [], 0
        part.append(name)
        elements += size
    if part:
        yield part
