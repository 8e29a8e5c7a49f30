"""From a recipe to a stream of merged tensors, which goes into a live model or a directory.

What does not depend on the genome (Gram matrices, magnitude tables) is
computed once per `Merger` and kept.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import safe_open

from evomerge import fast, kernels
from evomerge.checkpoints import Tensor
from evomerge.errors import BadInput, CandidateFailure, Fault, nearest
from evomerge.layout import place
from evomerge.magnitudes import MagnitudeTable, in_bin
from evomerge.operators import OPERATORS, Masked, Operator
from evomerge.recipe import Group, Recipe
from evomerge.sources import Source

COMPILE_FROM = 20_000_000  # parameters; smaller models are merged before anything is compiled


def plan(recipe: Recipe, file: str = "recipe") -> Operator:
    """Check a recipe against its method's signature and return the method.

    Raises:
        BadInput: with every fault.
    """
    operator = OPERATORS.get(recipe.method, file, "method")
    faults = []

    def fault(key: str, wrong: str, mend: str) -> None:
        faults.append(Fault(file, key, wrong, mend))

    if operator.needs_base and recipe.base is None:
        fault(
            "base", f"{operator.name} needs a base", "write the common ancestor's directory or id"
        )
    if operator.models and len(recipe.models) != operator.models:
        wrong = f"{operator.name} merges {operator.models} models, not {len(recipe.models)}"
        fault("models", wrong, f"list {operator.models}")
    if operator.draws and recipe.seed is None:
        fault("seed", f"{operator.name} draws random masks", "write a whole number")
    for name, value in recipe.options.items():
        if name not in operator.options:
            fault(f"options.{name}", "unknown option", nearest(name, operator.options))
        elif not isinstance(value, bool):
            fault(f"options.{name}", f"{value!r} is not true or false", "write true or false")
    for index, group in enumerate(recipe.groups):
        for name, wrong, mend in _value_faults(group, operator, len(recipe.models)):
            fault(f"groups.{index}.{name}", wrong, mend)
    if faults:
        raise BadInput(*faults)
    return operator


def _value_faults(group: Group, operator: Operator, models: int) -> Iterator[tuple[str, str, str]]:
    for name, value in group.values.items():
        if name not in operator.parameter:
            yield name, f"{operator.name} has no '{name}'", nearest(name, operator.parameter)
            continue
        axis = operator.parameter[name].axis
        if axis.per_model != isinstance(value, tuple) or (axis.per_model and len(value) != models):
            wanted = f"a list of {models} numbers, one per model" if axis.per_model else "a number"
            yield name, f"{value!r} is not {wanted}", f"write {wanted}"
        elif not all(axis.low <= v <= axis.high for v in np.atleast_1d(value)):
            yield name, f"{value!r} is out of range", f"stay within {axis.low:g} to {axis.high:g}"
    for parameter in operator.parameters:
        if parameter.default is None and parameter.name not in group.values:
            yield parameter.name, "is missing", f"{operator.name} needs it in every group"


class Merger:
    """Merges recipes over one set of opened sources, again and again.

    Weights are read through the operating system's page cache, which the workers of a node
    share; on a GPU each source is copied to it once.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        hashes: Mapping[str, str],
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            sources: every source that a recipe may name, by that name.
            hashes: their content hashes.
            device: where tensors are merged.
        """
        self.sources, self.hashes, self.device = dict(sources), dict(hashes), torch.device(device)
        size = sum(t.elements for t in next(iter(self.sources.values())).tensors.values())
        self._kernels = fast if size >= COMPILE_FROM else kernels
        self._files: dict = {}
        self._on_device: dict[tuple, torch.Tensor] = {}
        self._grams: dict[tuple, np.ndarray] = {}
        self._tables: dict[tuple, MagnitudeTable] = {}
        self._thresholds: dict[tuple, float] = {}

    def tensor(self, source: str, name: str) -> torch.Tensor:
        """Return one tensor of a source on the merger's device.

        In its own dtype; where an adapter adds to it, W + scale * B A in float32, unrounded.
        """
        opened = self.sources[source]
        adapter = opened.adapter
        replaced = adapter.replaced if adapter else {}
        tensor = self._stored(replaced.get(name, opened.tensors[name]))
        if adapter is None or name not in adapter.factors:
            return tensor
        factor = adapter.factors[name]
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        a, b = self._stored(factor.a).to(dtype), self._stored(factor.b).to(dtype)
        left, right = (a.T, b.T) if factor.transposed else (b, a)
        return torch.addmm(tensor.to(dtype), left, right, alpha=factor.scale)

    def _stored(self, stored: Tensor) -> torch.Tensor:
        """Read a stored tensor: from the page cache, or from the device if it is another."""
        where = (stored.file, stored.key)
        if where in self._on_device:
            return self._on_device[where]
        if stored.file not in self._files:
            self._files[stored.file] = safe_open(stored.file, framework="pt", device="cpu")
        tensor = self._files[stored.file].get_tensor(stored.key)
        if self.device.type != "cpu":
            tensor = self._on_device[where] = tensor.to(self.device)
        return tensor

    def stream(self, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, merged tensor) in canonical order, in the recipe's dtype.

        Raises:
            CandidateFailure: a merged tensor is not finite, or no group holds a tensor.
        """
        operator = plan(recipe)
        dtype = getattr(torch, recipe.dtype)
        self._thresholds.clear()  # of the recipe before: densities seldom come again
        resolved: dict[int, Any] = {}  # of each group: the method's answer, or its values
        for name in self.sources[recipe.sources[0]].tensors:
            group = group_of(recipe, name)
            if id(group) not in resolved:
                values = _values(recipe, operator, group)
                resolved[id(group)] = values if operator.needs_gram else operator.function(**values)
            merged = self._merge(recipe, operator, resolved[id(group)], name, dtype)
            if merged.numel() and not torch.stack(torch.aminmax(merged)).isfinite().all():
                raise CandidateFailure(f"merged tensor {name} is not finite")
            yield name, merged

    def _merge(
        self, recipe: Recipe, operator: Operator, how: Any, name: str, dtype: torch.dtype
    ) -> torch.Tensor:
        based = operator.takes_base and recipe.base is not None
        named = ((recipe.base,) if based else ()) + recipe.models
        tensors = [self.tensor(source, name) for source in named]
        if operator.family == "linear":
            if operator.needs_gram:
                how = operator.function(self._gram(named, name, tensors, based), **how)
            if based:
                how = np.concatenate([[1.0 - how.sum()], how])
            return self._kernels.weighted_sum(tensors, how, dtype)
        base, *models = tensors
        kept = [self._kept(recipe, how, i, name, base, models) for i in range(len(models))]
        return self._kernels.masked_sum(base, models, how, kept, dtype)

    def _kept(
        self, recipe: Recipe, how: Masked, i: int, name: str, base: torch.Tensor, models: list
    ) -> kernels.Kept:
        """Return what thinning the i-th model's tensor needs, from tables made once."""
        source, density = recipe.models[i], float(how.density[i])
        if how.thin in ("random", "ranked"):
            return kernels.Kept(key=mask_key(recipe.seed, self.hashes[source], name))
        if how.thin == "variance":
            return kernels.Kept(low=self._variance(recipe, name, base, models, density))
        if how.thin == "votes":
            return kernels.Kept()
        if how.whole:
            return kernels.Kept(low=self._whole_threshold(recipe.base, source, density))
        tensors = base, models[i]
        key = (recipe.base, source, name)
        if how.thin == "magnitude":
            k = int(density * base.numel())
            return kernels.Kept(low=self._least(key, tensors, k))
        outliers = int(float(how.gamma[i]) * base.numel())
        last = min(int(density * base.numel()) + outliers, base.numel())
        if last <= outliers:
            return kernels.Kept(low=float("inf"))
        low = self._least(key, tensors, last)
        return kernels.Kept(low, self._largest(key, tensors, outliers + 1))

    def _least(self, key: tuple, tensors: tuple[torch.Tensor, torch.Tensor], k: int) -> float:
        """Return the least magnitude kept when the k largest are."""
        return 0.0 if k >= tensors[0].numel() else self._largest(key, tensors, k)

    def _largest(self, key: tuple, tensors: tuple[torch.Tensor, torch.Tensor], k: int) -> float:
        """Return the k-th largest magnitude of a task vector."""
        if key not in self._tables:
            self._tables[key] = MagnitudeTable(kernels.task_vector(*tensors))
        table = self._tables[key]
        return table.largest(torch.empty(0) if table.exact else kernels.task_vector(*tensors), k)

    def _variance(
        self, recipe: Recipe, name: str, base: torch.Tensor, models: list, density: float
    ) -> float:
        """Return the least variance across models kept at `density` of those above zero."""
        spread = kernels.variance([kernels.task_vector(base, m).float() for m in models])
        key = ("variance", recipe.base, recipe.models, name)
        if key not in self._tables:
            self._tables[key] = MagnitudeTable(spread)
        k = int(density * int((spread > 0).sum()))
        return 0.0 if density >= 1.0 else self._tables[key].largest(spread, k)

    def _whole_threshold(self, base: str, model: str, density: float) -> float:
        """Return the least magnitude kept of a whole task vector, all its tensors together."""
        key = ("whole", base, model, density)
        if key not in self._thresholds:
            names = list(self.sources[base].tensors)
            if key[:3] not in self._tables:
                first, *others = (MagnitudeTable(self._tau(base, model, n)) for n in names)
                self._tables[key[:3]] = sum(others, start=first)
            table = self._tables[key[:3]]
            k = int(density * table.size)
            if k < 1 or k >= table.size or table.exact:
                found = 0.0 if k >= table.size else table.largest(torch.empty(0), k)
            else:
                index, rank = table.place(k)
                inside = [in_bin(self._tau(base, model, n), index) for n in names]
                found = float(torch.topk(torch.cat(inside), rank).values[-1])
            self._thresholds[key] = found
        return self._thresholds[key]

    def _tau(self, base: str, model: str, name: str) -> torch.Tensor:
        return kernels.task_vector(self.tensor(base, name), self.tensor(model, name))

    def _gram(self, named: tuple[str, ...], name: str, tensors: list, based: bool) -> np.ndarray:
        """Return the Gram matrix of the models' tensors, or of their task vectors."""
        if (named, name, based) not in self._grams:
            base, models = (tensors[0], tensors[1:]) if based else (None, tensors)
            self._grams[named, name, based] = kernels.gram_matrix(models, base)
        return self._grams[named, name, based]


def _values(recipe: Recipe, operator: Operator, group: Group) -> dict[str, Any]:
    """Return a method's arguments in a group: float64 arrays, and the recipe's options."""
    values = {
        p.name: np.asarray(group.values[p.name], float)
        if p.name in group.values
        else np.full(len(recipe.models) if p.axis.per_model else (), p.default, float)
        for p in operator.parameters
    }
    return values | dict(recipe.options)


def group_of(recipe: Recipe, name: str) -> Group:
    """Return the first group of `recipe` that holds the tensor `name`."""
    where = place(name)
    for group in recipe.groups:
        if group.holds(name, where):
            return group
    raise CandidateFailure(f"no group of the recipe holds tensor {name}")


def mask_key(seed: int, model_hash: str, tensor: str) -> tuple[int, int]:
    """Return the random generator's key for one model's tensor: two 32-bit words."""
    digest = hashlib.sha256(f"{seed}/{model_hash}/{tensor}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


class Checksum:
    """XXH3-128 over the names, dtypes, shapes and bytes of a stream of tensors."""

    def __init__(self):
        self._hash = xxhash.xxh3_128()

    def update(self, name: str, tensor: torch.Tensor) -> None:
        self._hash.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        self._hash.update(flat.numpy().data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
