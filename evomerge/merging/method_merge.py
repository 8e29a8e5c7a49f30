"""A recipe of merge methods as a merge plan: its groups' values become the kernels' numbers."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from evomerge.canonical import canonical_json
from evomerge.kernels.masked import Masked
from evomerge.kernels.merge_plan import (
    MaskedSums,
    MergePlan,
    Operand,
    Operands,
    Sums,
    WeightedSums,
)
from evomerge.merging.adapters import check_factored
from evomerge.merging.factored_merge import Composed, FactoredMerger
from evomerge.merging.methods import MergeMethod
from evomerge.merging.source_weights import SourceWeights
from evomerge.merging.statistics import Statistics
from evomerge.merging.task_vectors import prepared
from evomerge.merging.update import Update
from evomerge.merging.validation import by_method, group_index, method_of, values_in
from evomerge.node.phases import Steps
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.sources.source import Source


class MethodMerger:
    """Plans merges by methods over one set of sources; keeps what does not depend on a genome.

    Attributes:
        weights: of the sources.
        statistics: of their tensors.
        factored: composes adapters within their factors.

    >>> import tempfile
    >>> from evomerge.recipes.parameters import uniform
    >>> from evomerge.sources.source import open_source
    >>> from evomerge.testing import tiny_llama
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sources = {"a": open_source(str(tiny_llama(folder, 0)))}
    ...     weights = SourceWeights(sources, torch.device("cpu"))
    ...     merge = MethodMerger(sources, {"a": ""}, weights).resolve(uniform(("a",), "float32"))
    ...     plan = merge.plan(["model.norm.weight"])
    >>> plan.groups
    (WeightedSums(names=('model.norm.weight',), coefficients=array([1.])),)
    """

    def __init__(
        self, sources: Mapping[str, Source], hashes: Mapping[str, str], weights: SourceWeights
    ):
        """
        Args:
            sources: by name.
            hashes: of their content, by name.
            weights: of these sources.
        """
        self._sources, self._hashes, self.weights = sources, hashes, weights
        self.statistics = Statistics(sources, hashes, weights.tensor)
        self.factored = FactoredMerger(sources, hashes, weights)
        self._directions: dict[str, tuple[str, ...]] = {}

    def resolve(self, recipe: ParametersRecipe) -> "MethodMerge":
        """Return the merge of a recipe; transform task vectors where its methods ask for it.

        Raises:
            BadInput: with every fault of the recipe, and of sources that its methods cannot merge.
        """
        self.statistics.forget_thresholds()
        parts = {}
        for name, part in by_method(recipe).items():
            method = method_of(part)
            if method.family == "factored":
                check_factored(part, self._sources)
            parts[name] = _Part(part, method, self._sources_of(method, part), self)
        return MethodMerge(recipe, parts, self)

    def _sources_of(self, method: MergeMethod, recipe: ParametersRecipe) -> tuple[str, ...]:
        """Return the sources that a method merges: the models, or their prepared directions."""
        if method.prepare is None:
            return recipe.models
        assert recipe.base is not None, "`method_of` has checked it"
        key = canonical_json([method.name, dict(recipe.options), recipe.base, recipe.models])
        if key not in self._directions:
            with self.weights.read_once():  # the models themselves are never merged
                directions = prepared(
                    method,
                    recipe.options,
                    recipe.base,
                    recipe.models,
                    self._sources,
                    self._hashes,
                    self.weights.tensor,
                )
            self.weights.add({source.name: source for source in directions})
            self._directions[key] = tuple(source.name for source in directions)
        return self._directions[key]


class MethodMerge:
    """Plans the merges of one recipe's tensors; made by `MethodMerger.resolve`.

    Attributes:
        dtype: of merged tensors.

    >>> MethodMerge(ParametersRecipe("linear", ("a",), (), dtype="float32"), {}, None).dtype
    torch.float32
    """

    def __init__(
        self, recipe: ParametersRecipe, parts: Mapping[str, "_Part"], merger: MethodMerger
    ):
        """
        Args:
            recipe: what to merge.
            parts: of each of its methods.
            merger: keeps what other recipes use too.
        """
        self._recipe, self._parts, self._merger = recipe, parts, merger
        self.dtype: torch.dtype = getattr(torch, recipe.dtype)

    @property
    def remade(self) -> bool:
        """Whether operands are made anew for each merge, and so should be few at a time."""
        adapted = any(part.adapted for part in self._parts.values())
        reads = itertools.chain.from_iterable(part.reads for part in self._parts.values())
        return adapted or not self._merger.weights.keeps(reads)

    def survey(self, names: Sequence[str], steps: Steps) -> None:
        """Make what merges of some tensors need that no genome changes: see `Statistics`.

        Args:
            names: of the tensors.
            steps: hears of how many are done.
        """
        for number, name in enumerate(names):
            steps.done(number)
            index = group_index(self._recipe, name)
            group = self._recipe.groups[index]
            self._parts[group.method or self._recipe.method].survey(index, group, name)

    def is_composed(self, name: str) -> bool:
        """Whether a tensor is merged within adapters' factors; see `composed`.

        Raises:
            CandidateFailure: no group holds it.
        """
        group = self._recipe.groups[group_index(self._recipe, name)]
        return self._parts[group.method or self._recipe.method].method.family == "factored"

    def composed(self, name: str) -> Composed | None:
        """Return what the merge adds to the base in a tensor, None if it adds nothing.

        Args:
            name: of the tensor, whose method is of the factored family.
        """
        index = group_index(self._recipe, name)
        group = self._recipe.groups[index]
        return self._parts[group.method or self._recipe.method].composed(index, group, name)

    def weighted(self, name: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the sources of which a tensor is a weighted sum, and their coefficients.

        Args:
            name: of the tensor, whose method is of the linear or the prepared family.

        Raises:
            CandidateFailure: no group holds it.
        """
        index = group_index(self._recipe, name)
        group = self._recipe.groups[index]
        part = self._parts[group.method or self._recipe.method]
        return part.reads, part.coefficients(index, group, name)

    def plan(self, names: Sequence[str], again: bool = False) -> MergePlan:
        """Return the plan by which some tensors are merged.

        Args:
            names: of the tensors.
            again: whether these very tensors will be merged again by other recipes.

        Raises:
            CandidateFailure: no group holds a tensor.
        """
        held: dict[int, list[str]] = {}
        for name in names:
            held.setdefault(group_index(self._recipe, name), []).append(name)
        groups: list[Sums] = []
        reads: dict[str, tuple[str, ...]] = {}
        joined: dict[str, tuple[Operand, ...]] = {}
        for index, of_group in held.items():
            group = self._recipe.groups[index]
            part = self._parts[group.method or self._recipe.method]
            if part.adapted and part.method.family != "masked":
                groups.append(part.joined(index, group, of_group, joined))
            else:
                groups.append(part.sums(index, group, of_group))
                reads |= dict.fromkeys(of_group, part.reads)
        operands = self._merger.weights.operands(reads, keep=again and not joined)
        if joined:
            operands = Operands({**operands.tensors, **joined})
        return MergePlan(operands, self.dtype, tuple(groups))


class _Part:
    """One method's share of a recipe.

    Attributes:
        method: the method.
        reads: the sources that it reads, the base first where there is one.
        adapted: whether one of them has an adapter.
    """

    def __init__(
        self,
        recipe: ParametersRecipe,
        method: MergeMethod,
        sources: tuple[str, ...],
        merger: MethodMerger,
    ):
        self.method = method
        self._recipe, self._statistics, self._weights = recipe, merger.statistics, merger.weights
        self._factored = merger.factored
        self._base = recipe.base if method.takes_base else None
        self.reads = sources if self._base is None else (self._base, *sources)
        self.adapted = merger.weights.adapted(self.reads)
        self._values: dict[int, dict[str, object]] = {}
        self._answers: dict[int, Masked | np.ndarray] = {}

    def survey(self, index: int, group: Group, name: str) -> None:
        """Make what merges of a tensor need that no genome changes."""
        if self.method.family == "factored":
            self._factored.analysed(self.method, self._recipe, name)
        else:
            self.sums(index, group, [name])

    def composed(self, index: int, group: Group, name: str) -> Composed | None:
        """Return what a merge within factors adds to a tensor of the recipe's group `index`."""
        values = self._values_in(index, group)
        return self._factored.composed(self.method, self._recipe, name, values)

    def sums(self, index: int, group: Group, names: Sequence[str]) -> Sums:
        """Return how the tensors of the recipe's group `index` are merged."""
        if self.method.needs_gram:
            rows = [self.coefficients(index, group, name) for name in names]
            return WeightedSums(tuple(names), np.array(rows))
        answer = self._answer(index, group)
        if not isinstance(answer, Masked):
            return WeightedSums(tuple(names), self._with_base(answer))
        assert self._base is not None, "`method_of` has checked it"
        kept = [self._statistics.kept(self._recipe, self._base, answer, name) for name in names]
        return MaskedSums(tuple(names), answer, tuple(kept))

    def joined(
        self,
        index: int,
        group: Group,
        names: Sequence[str],
        operands: dict[str, tuple[Operand, ...]],
    ) -> WeightedSums:
        """Return weighted sums over adapters' factors, and add the operands that they are of."""
        rows: list[np.ndarray] = []
        tensors: list[list[Operand]] = []
        some: list[Operand]
        for name in names:
            if self.method.family == "factored":
                some, row = self._added(index, group, name)
            else:
                coefficients = self.coefficients(index, group, name)
                some, row = self._weights.joined(self.reads, name, coefficients)
            tensors.append(some)
            rows.append(row)
        # Tensors without an update have one operand less: they get any, times zero.
        most = max(map(len, tensors))
        for name, some in zip(names, tensors, strict=True):
            operands[name] = tuple(some + some[:1] * (most - len(some)))
        padded = [np.pad(row, (0, most - len(row))) for row in rows]
        return WeightedSums(tuple(names), np.array(padded))

    def _added(self, index: int, group: Group, name: str) -> tuple[list[Operand], np.ndarray]:
        """Return the base's tensor and what is added to it, with their coefficients."""
        assert self._base is not None, "`method_of` has checked it"
        made = self.composed(index, group, name)
        tensors: list[Operand] = [self._weights.tensor(self._base, name)]
        if made is not None:
            tensors.append(made.product())
        return tensors, np.ones(len(tensors))

    def coefficients(self, index: int, group: Group, name: str) -> np.ndarray:
        """Return a weighted sum's coefficients, that of the base first where it is merged too."""
        if not self.method.needs_gram:
            answer = self._answer(index, group)
        else:
            gram = self._statistics.gram(self._recipe.models, self._base, name)
            made = self.method.function(gram, **self._values_in(index, group))
            assert not isinstance(made, Update), "a method is of one family"
            answer = made
        assert isinstance(answer, np.ndarray), "a method is of one family"
        return self._with_base(answer)

    def _with_base(self, coefficients: np.ndarray) -> np.ndarray:
        if self._base is None:
            return coefficients
        # W_0 + sum c_i D_i of directions; of models, sum c_i (W_i - W_0) takes W_0 away again
        of_base = 1.0 if self.method.prepare else 1.0 - coefficients.sum()
        return np.concatenate([[of_base], coefficients])

    def _answer(self, index: int, group: Group) -> Masked | np.ndarray:
        """Return what the method says in a group, asked once."""
        if index not in self._answers:
            made = self.method.function(**self._values_in(index, group))
            assert not isinstance(made, Update), "a method is of one family"
            self._answers[index] = made
        return self._answers[index]

    def _values_in(self, index: int, group: Group) -> dict[str, object]:
        if index not in self._values:
            self._values[index] = values_in(self._recipe, self.method, group)
        return self._values[index]
