"""From a recipe to merged tensors: one after the other, or all at once into a live model."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from evomerge.canonical import canonical_json
from evomerge.errors import CandidateFailure
from evomerge.kernels import compiled, eager, native
from evomerge.kernels.checksum import tile_digests
from evomerge.kernels.masked import Masked
from evomerge.merging.lineage_weights import weights_of
from evomerge.merging.methods import Operator
from evomerge.merging.mixture_merge import mix
from evomerge.merging.routed_checkpoint import routed_stream, routed_tensors
from evomerge.merging.source_weights import Weights, finite, flattened
from evomerge.merging.statistics import Precomputed
from evomerge.merging.task_vectors import prepared
from evomerge.merging.validation import by_method, group_of, method_of, values_in
from evomerge.recipes.lineage import Explicit
from evomerge.recipes.mixture import Layout, Mixture
from evomerge.recipes.parameters import Group, Recipe
from evomerge.sources.source import Source

COMPILE_FROM = 20_000_000  # parameters; on a GPU smaller models are merged before a kernel compiles


class Merger:
    """Merges recipes over one set of opened sources, again and again.

    What does not depend on the genome is computed once and kept.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        hashes: Mapping[str, str],
        device: torch.device | str = "cpu",
        keep: bool = True,
    ):
        """
        Args:
            sources: every source that a recipe may name, by that name.
            hashes: their content hashes.
            device: where tensors are merged.
            keep: leave sources' tensors there for the next recipe.
        """
        self.sources, self.hashes, self.device = dict(sources), dict(hashes), torch.device(device)
        size = sum(t.elements for t in next(iter(self.sources.values())).tensors.values())
        large = self.device.type != "cpu" and size >= COMPILE_FROM
        self._kernels = compiled if large else eager
        self._weights = Weights(self.sources, self.device, keep)
        self._known = Precomputed(self.sources, self.hashes, self._weights.tensor)
        self._prepared: dict[tuple, tuple[str, ...]] = {}
        self._layouts: dict[str, Layout] = {}
        self._batches: dict[tuple, tuple[Mapping[str, torch.Tensor], native.Batch]] = {}

    def bytes_kept(self) -> int:
        """Return the memory that what is computed once takes, sources not counted."""
        return self._known.nbytes + sum(batch.nbytes for _, batch in self._batches.values())

    def stream(
        self, recipe: Recipe, names: Iterable[str] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, merged tensor) in canonical order, or that of `names`, in its dtype.

        Raises:
            CandidateFailure: a merged tensor is not finite, or no group holds a tensor.
        """
        if recipe.kind == "routing":
            tensor = self._weights.tensor
            yield from finite(routed_stream(recipe, self.sources, tensor, names))
            return
        tensors = self.sources[recipe.sources[0]].tensors
        names = tensors if names is None else names
        if recipe.kind == "explicit":
            flat = weights_of(recipe, lambda model: flattened(self.sources[model]))
            layout = self._layout(recipe)
            if not np.isfinite(flat).all():
                raise CandidateFailure("a merged weight is not finite")
            for name in names:
                first, last = layout.span[name]
                yield name, torch.from_numpy(flat[first:last]).view(tensors[name].shape)
            return
        if recipe.kind == "mixture":
            for name in names:
                dtype = getattr(torch, recipe.dtype)
                out = torch.empty(tensors[name].shape, dtype=dtype, device=self.device)
                mix(recipe, {name: out}, self._weights, self._layout(recipe), self._kernels)
                yield name, out
            return
        parts = {m: self._resolve(part) for m, part in by_method(recipe).items()}
        if len(parts) == 1:
            yield from self._stream(*parts.values(), names)
            return
        for name in names:
            yield from self._stream(parts[group_of(recipe, name).method or recipe.method], [name])

    def _stream(
        self, resolved: "_Resolved", names: Iterable[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        tensors = self.sources[resolved.recipe.sources[0]].tensors
        for name in names:
            out = torch.empty(tensors[name].shape, dtype=resolved.dtype, device=self.device)
            if not self._natively(resolved, {name: out}):
                ((_, out),) = finite([(name, self._merge(resolved, name))])
            yield name, out

    def shapes(self, recipe: Any) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of a recipe's tensors, in canonical order."""
        if recipe.kind == "routing":
            return {n: origin.shape for n, origin in routed_tensors(recipe, self.sources).items()}
        return {n: t.shape for n, t in self.sources[recipe.sources[0]].tensors.items()}

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
        found: dict[str, np.ndarray] = {}
        if recipe.kind == "mixture":
            adapted = self._weights.adapted(recipe.models)
            for part in _parts(targets) if adapted else [targets]:
                found |= mix(recipe, part, self._weights, self._layout(recipe), self._kernels)
            return found
        parts = by_method(recipe)
        if len(parts) > 1:
            for method, part in parts.items():
                mine = [
                    n for n in targets if (group_of(recipe, n).method or recipe.method) == method
                ]
                found |= self.fill(part, {name: targets[name] for name in mine})
            return found
        resolved = self._resolve(*parts.values())
        if not targets:
            return found
        if not self._weights.adapted(resolved.named):
            found = self._natively(resolved, targets, keep=True) or {}
        else:
            for part in _parts(targets):  # what is made of factors is made anew, some at a time
                found |= self._natively(resolved, part) or {}
        for name, tensor in self._stream(resolved, [n for n in targets if n not in found]):
            found[name] = tile_digests(tensor)
            targets[name].copy_(tensor)
        return found

    def prepare(self, recipe: Any) -> None:
        """Transform the task vectors where a recipe's methods ask for it, once."""
        if recipe.kind == "parameters":
            for part in by_method(recipe).values():
                self._prepare(method_of(part), part)

    def _prepare(self, operator: Operator, recipe: Recipe) -> tuple[str, ...]:
        if not operator.prepare:
            return recipe.models
        options = canonical_json(dict(recipe.options))
        key = (operator.name, options, recipe.base, recipe.models)
        if key not in self._prepared:
            with self._weights.read_once():  # on a device; they are merged never
                found = prepared(
                    operator,
                    recipe.options,
                    recipe.base,
                    recipe.models,
                    self.sources,
                    self.hashes,
                    self._weights.tensor,
                )
            self.sources |= {source.name: source for source in found}
            self._prepared[key] = tuple(source.name for source in found)
        return self._prepared[key]

    def _resolve(self, recipe: Recipe) -> "_Resolved":
        operator = method_of(recipe)
        models = self._prepare(operator, recipe)
        self._known.forget_thresholds()
        base = recipe.base if operator.takes_base else None
        named = ((base,) if base is not None else ()) + models
        return _Resolved(recipe, operator, getattr(torch, recipe.dtype), base, named, {})

    def _natively(
        self, resolved: "_Resolved", targets: Mapping[str, torch.Tensor], keep: bool = False
    ) -> dict[str, np.ndarray] | None:
        """Merge into `targets` by the kernels in C++; None where they do not go."""
        if self.device.type != "cpu":
            return None
        if resolved.operator.family != "masked" and self._weights.adapted(resolved.named):
            return self._sums(resolved, targets)
        if (batch := self._batch(resolved, targets, keep)) is None:
            return None
        rows: dict[int, tuple[Group, list[int]]] = {}
        for row, name in enumerate(targets):
            group = group_of(resolved.recipe, name)
            rows.setdefault(id(group), (group, []))[1].append(row)
        names = list(targets)
        for group, at in rows.values():
            how = resolved.how(group)
            if isinstance(how, Masked):
                if not native.does(how):
                    return None
                batch.thin(at, how)
                if how.thin == "variance":
                    self._known.vary(resolved.recipe, how, batch, {names[row]: row for row in at})
                    continue
                for row in at:
                    batch.keep(row, self._known.kept(resolved.recipe, how, names[row]))
            elif resolved.operator.needs_gram:
                for row in at:
                    batch.weigh(row, self._coefficients(resolved, how, names[row]))
            else:
                batch.weigh(at, self._coefficients(resolved, how, ""))
        return _merged(batch, names)

    def _sums(
        self, resolved: "_Resolved", targets: Mapping[str, torch.Tensor]
    ) -> dict[str, np.ndarray] | None:
        """Weighted sums over sources with adapters."""
        rows = [self._terms(resolved, name) for name in targets]
        most = max(len(tensors) for tensors, _ in rows)
        tensors = [row + row[:1] * (most - len(row)) for row, _ in rows]  # beside weight 0
        weights = [np.pad(w, (0, most - len(w))) for _, w in rows]
        outs = list(targets.values())
        every = [t for row in (*tensors, outs) for t in row]
        if most > native.MOST or not native.takes(every, resolved.dtype):
            return None
        batch = native.Batch(None, tensors, outs, resolved.dtype)
        batch.weigh(slice(None), np.array(weights))
        return _merged(batch, list(targets))

    def _layout(self, recipe: Mixture | Explicit) -> Layout:
        first = recipe.models[0]
        if first not in self._layouts:
            tensors = self.sources[first].tensors
            self._layouts[first] = Layout({n: t.elements for n, t in tensors.items()})
        return self._layouts[first]

    def _terms(self, resolved: "_Resolved", name: str) -> tuple[list[torch.Tensor], np.ndarray]:
        """Return the tensors and the coefficients of a weighted sum over adapters."""
        how = resolved.how(group_of(resolved.recipe, name))
        coefficients = self._coefficients(resolved, how, name)
        return self._weights.joined(resolved.named, name, coefficients)

    def _batch(
        self, resolved: "_Resolved", targets: Mapping[str, torch.Tensor], keep: bool
    ) -> native.Batch | None:
        key = (resolved.named, resolved.operator.family, resolved.dtype)
        if keep and key in self._batches and self._batches[key][0] is targets:
            return self._batches[key][1]
        if len(resolved.named) > native.MOST:
            return None
        tensors = [[self._weights.tensor(s, name) for s in resolved.named] for name in targets]
        outs = list(targets.values())
        if not native.takes([t for row in (*tensors, outs) for t in row], resolved.dtype):
            return None
        masked = resolved.operator.family == "masked"
        batch = native.Batch(
            [row[0] for row in tensors] if masked else None,
            [row[1:] for row in tensors] if masked else tensors,
            outs,
            resolved.dtype,
        )
        if keep:
            self._batches[key] = (targets, batch)
        return batch

    def _merge(self, resolved: "_Resolved", name: str) -> torch.Tensor:
        if resolved.operator.family != "masked" and self._weights.adapted(resolved.named):
            return self._kernels.weighted_sum(*self._terms(resolved, name), resolved.dtype)
        how = resolved.how(group_of(resolved.recipe, name))
        tensors = [self._weights.tensor(source, name) for source in resolved.named]
        if not isinstance(how, Masked):
            coefficients = self._coefficients(resolved, how, name)
            return self._kernels.weighted_sum(tensors, coefficients, resolved.dtype)
        kept = self._known.kept(resolved.recipe, how, name)
        return self._kernels.masked_sum(tensors[0], tensors[1:], how, kept, resolved.dtype)

    def _coefficients(self, resolved: "_Resolved", how: Any, name: str) -> np.ndarray:
        """Return a weighted sum's coefficients, that of the base first where it is merged too."""
        if resolved.operator.prepare:
            return np.concatenate([[1.0], how])
        if resolved.operator.needs_gram:
            gram = self._known.gram(resolved.recipe.models, resolved.base, name)
            how = resolved.operator.function(gram, **how)
        return how if resolved.base is None else np.concatenate([[1.0 - how.sum()], how])


class _Resolved(NamedTuple):
    """A recipe with what its groups' values come to."""

    recipe: Recipe
    operator: Operator
    dtype: torch.dtype
    base: str | None  # where the method merges task vectors
    named: tuple[str, ...]  # the sources that are read, the base first
    known: dict[int, Any]

    def how(self, group: Group) -> Any:
        """Return the method's answer in a group, or its arguments where it needs a Gram matrix."""
        if id(group) not in self.known:
            values = values_in(self.recipe, self.operator, group)
            gram = self.operator.needs_gram
            self.known[id(group)] = values if gram else self.operator.function(**values)
        return self.known[id(group)]


def _merged(batch: native.Batch, names: list[str]) -> dict[str, np.ndarray]:
    """Merge a batch and return each tensor's digests.

    Raises:
        CandidateFailure: a merged tensor is not finite.
    """
    digests, broken = batch.merge()
    if broken.any():
        raise CandidateFailure(f"merged tensor {names[int(broken.argmax())]} is not finite")
    return dict(zip(names, digests, strict=True))


def _parts(
    targets: Mapping[str, torch.Tensor], most: int = 1 << 24
) -> Iterator[dict[str, torch.Tensor]]:
    """Split tensors into runs of at most so many elements, or of a single larger tensor."""
    part: dict[str, torch.Tensor] = {}
    for name, tensor in targets.items():
        if part and sum(t.numel() for t in part.values()) + tensor.numel() > most:
            yield part
            part = {}
        part[name] = tensor
    yield part
