"""The mixture space: individuals are segments of the parameters, each a sum of the models.

The search of M2N2 (arXiv:2508.16204) over models whose weights are merged, never trained. There an
individual is a mean of the models. With task vectors it is W_0 + sum_k c_k (W_k - W_0), and the
c_k need not add up to one (task arithmetic, arXiv:2212.04089): the same mixture, over the base and
the models.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from evomerge.dtypes import Dtype
from evomerge.errors import Fault
from evomerge.merging.as_mixture import as_mixture
from evomerge.recipes.block_names import holds
from evomerge.recipes.mixture import Chromosome, MixtureRecipe, interpolated
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.search.spaces import BreedingSpace, SourceShapes, SpaceSection, space
from evomerge.sections import Flag, Text, option

# Of an expert's task vector in one of the first individuals: beyond the expert, and within the
# range of 0 to 1.5 in which the weights of task arithmetic are searched.
_AMPLIFIED = 1.5

_SUM = "sum"  # the label of the sum of all task vectors


class MixtureSection(SpaceSection):
    """How individuals are crossed.

    >>> MixtureSection(chromosomes=["self_attn"]).split
    True
    """

    kind: Literal["mixture"] = "mixture"
    task_vectors: Flag = option(
        "individuals are sums of task vectors on the base, which need not add up to a mean; begin"
        " also with the base, the sum of all, and each model amplified",
        False,
    )
    chromosomes: list[Text] = option(
        "substrings of tensor names that are crossed by themselves; the others are one more",
        factory=list,
        example=["self_attn"],
    )
    interpolation: Literal["lerp", "slerp"] = option("how two individuals are mixed", "lerp")
    split: Flag = option("exchange the shares of the parents from a split point on", True)
    dtype: Dtype | None = option("of the merged weights; null: the sources'", None)

    def faults(self, labels: Sequence[str], has_base: bool) -> Iterable[Fault]:
        """See `SpaceSection.faults`."""
        if len(labels) < 2:
            wrong = "crosses two models or more, and there is one"
            yield Fault("kind", wrong, "list another in sources.models")
        if self.task_vectors and not has_base:
            yield Fault("task_vectors", "needs a base", "write sources.base")
        if self.task_vectors and _SUM in labels:
            wrong = f"begins with an individual '{_SUM}', as a model is called"
            yield Fault("task_vectors", wrong, "rename the model")

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        """See `Section.cross_faults`."""
        if fields.get("task_vectors") and fields.get("interpolation") == "slerp":
            wrong = "slerp is between whole models, not between sums of task vectors"
            yield Fault("interpolation", wrong, "write lerp")

    def substrings(self) -> Iterable[tuple[str, str]]:
        """See `SpaceSection.substrings`."""
        return [("chromosomes", part) for part in self.chromosomes]


@space(MixtureSection)
class MixtureSpace(BreedingSpace):
    """Crosses two individuals chromosome by chromosome, at a split point each.

    A genome is (mix, split) for each chromosome: left of the parameter at `split` of the whole, the
    child is f_mix(A, B), right of it f_(1 - mix)(A, B) (equation 2 of the paper).

    Attributes:
        mixed: the sources that individuals weigh: the models, and with task vectors before them
            the base, whose coefficient is what the others leave of one.

    >>> shapes = SourceShapes(None, ("a", "b"), ("a", "b"), 1, "float32", 0, {"w": 4})
    >>> space = MixtureSpace(MixtureSection(), shapes)
    >>> child = space.cross(np.array([0.25, 0.5]), [space.single("a"), space.single("b")])
    >>> child.chromosomes[0].edges.tolist(), child.chromosomes[0].coefficients.tolist()
    ([0, 2, 4], [[0.75, 0.25], [0.25, 0.75]])

    With task vectors, the first individuals are more than the sources:

    >>> shapes = SourceShapes("base", ("a", "b"), ("a", "b"), 1, "float32", 0, {"w": 4})
    >>> space = MixtureSpace(MixtureSection(task_vectors=True), shapes)
    >>> for label, recipe in space.seeds():
    ...     print(label, recipe.chromosomes[0].coefficients[0].tolist())
    sum [-1.0, 1.0, 1.0]
    a x1.5 [-0.5, 1.5, 0.0]
    b x1.5 [-0.5, 0.0, 1.5]
    """

    def __init__(self, options: MixtureSection, shapes: SourceShapes):
        self.shapes, self._options = shapes, options
        self.modules: tuple[str | None, ...] = (*options.chromosomes, None)
        self.dtype = options.dtype or shapes.dtype
        self.index = ParameterIndex(shapes.tensors)
        self.mixed = shapes.models
        if options.task_vectors and shapes.base is not None:
            self.mixed = (shapes.base, *shapes.models)
        self._prefix: list[_Lines] | None = None
        # of individuals that live; of each chromosome with itself
        self._squares: weakref.WeakKeyDictionary[Chromosome, float] = weakref.WeakKeyDictionary()

    @property
    def names(self) -> list[str]:
        """One readable name per gene, e.g. `split self_attn`."""
        what = ("mix", "split") if self._options.split else ("mix",)
        several = len(self.modules) > 1
        return [w + (f" {m or 'rest'}" if several else "") for m in self.modules for w in what]

    @property
    def first(self) -> MixtureRecipe:
        """The first model as an individual."""
        return self.individual(self.single(self.shapes.models[0]))

    def seeds(self) -> list[tuple[str, Recipe]]:
        """See `SearchSpace.seeds`."""
        if not self._options.task_vectors:
            return []
        count = len(self.shapes.models)
        weights = [(_SUM, np.ones(count))]
        for label, one in zip(self.shapes.labels, np.eye(count), strict=True):
            weights.append((f"{label} x{_AMPLIFIED}", _AMPLIFIED * one))
        return [(label, self._sum_of_task_vectors(row)) for label, row in weights]

    def takes(self, origin: str, label: str | None) -> bool:
        """See `BreedingSpace.takes`; a base whose task vectors are added is an individual too."""
        return (label == "base" and self._options.task_vectors) or super().takes(origin, label)

    def individual(self, recipe: Recipe) -> MixtureRecipe:
        """See `BreedingSpace.individual`.

        Raises:
            BadInput: it is no weighted sum of this space's sources.
        """
        if isinstance(recipe, MixtureRecipe) and self._is_own(recipe):
            return recipe
        return as_mixture(recipe, self.mixed, self.index, self.modules, self.dtype)

    def cross(
        self, genome: np.ndarray, parents: Sequence[Recipe], ids: Sequence[str] = ()
    ) -> MixtureRecipe:
        """Return the child of two parents; of one, crossed with itself, its equal.

        Args:
            genome: (dimension,) float64 in [0, 1].
            parents: recipes of individuals, or of single models.
            ids: of the recipes; a mixture says all by itself.
        """
        a, b = (self.individual(p) for p in (parents[0], parents[-1]))
        genes = np.reshape(genome, (len(self.modules), -1))
        children = []
        pairs = zip(a.chromosomes, b.chromosomes, strict=True)
        for number, (first, second) in enumerate(pairs):
            mix = float(genes[number, 0])
            split = (
                int(genes[number, 1] * self.index.total)
                if self._options.split
                else self.index.total
            )
            angle = (
                self._angle(number, first, second)
                if self._options.interpolation == "slerp"
                else 0.0
            )
            children.append(_crossed(first, second, mix, split, angle))
        return MixtureRecipe(self.mixed, tuple(children), self.dtype, self.index.hash)

    def _is_own(self, recipe: MixtureRecipe) -> bool:
        """Tell whether a recipe has the sources, chromosomes and dtype of this space."""
        modules = tuple(chromosome.modules for chromosome in recipe.chromosomes)
        own = (self.mixed, self.modules, self.dtype, self.index.hash)
        return (recipe.models, modules, recipe.dtype, recipe.parameter_index_hash) == own

    def _sum_of_task_vectors(self, weights: np.ndarray) -> MixtureRecipe:
        """Return W_0 + sum_k c_k (W_k - W_0), the same everywhere; weights are (models,)."""
        group = Group(None, None, {"weight": tuple(weights.tolist())})
        models, base = self.shapes.models, self.shapes.base
        recipe = ParametersRecipe("task_arithmetic", models, (group,), base, self.dtype)
        return self.individual(recipe)

    def _angle(self, index: int, a: Chromosome, b: Chromosome) -> float:
        """Return the angle between two individuals' vectors of one chromosome."""
        dot, mine, theirs = self._inner(index, a, b), self._square(index, a), self._square(index, b)
        if mine <= 0.0 or theirs <= 0.0:
            return 0.0
        return float(np.arccos(np.clip(dot / np.sqrt(mine * theirs), -1.0, 1.0)))

    def _square(self, index: int, a: Chromosome) -> float:
        """Return <A, A>, which an individual keeps for all its children."""
        if a not in self._squares:
            self._squares[a] = self._inner(index, a, a)
        return self._squares[a]

    def _inner(self, index: int, a: Chromosome, b: Chromosome) -> float:
        """Return <A, B> from the models' Gram matrices, summed up over the tensors."""
        if self._prefix is None:
            if self.shapes.grams is None:
                raise RuntimeError("the models' weights are read once their hashes are known")
            grams = self.shapes.grams()  # (tensors, models, models)
            taken: set[str] = set()
            self._prefix = []
            for modules in self.modules:
                mine = {n for n in self.index.names if modules is None or holds(modules, n)} - taken
                taken |= mine
                there = np.array([n in mine for n in self.index.names])
                sums = np.cumsum(grams * there[:, None, None], axis=0).reshape(len(there), -1)
                sums = np.concatenate([np.zeros_like(sums[:1]), sums])
                self._prefix.append(_Lines(self.index.edges, sums))
        edges = a.edges if a is b else _united(a.edges, b.edges)
        # Within a tensor the products are taken as spread evenly: only the angle depends on it.
        count = len(self.mixed)
        at = self._prefix[index](edges)
        grams = (at[1:] - at[:-1]).reshape(-1, count, count)
        of_a = a.at(edges[:-1])
        of_b = of_a if a is b else b.at(edges[:-1])
        return float(np.einsum("si,sij,sj->", of_a, grams, of_b))


class _Lines:
    """Straight lines between points, of several functions at once.

    >>> _Lines(np.array([0, 2, 3]), np.array([[0.0, 1.0], [4.0, 1.0], [5.0, 0.0]]))([1, 3])
    array([[2., 1.],
           [5., 0.]])
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        """
        Args:
            x: (points,), ascending.
            y: (points, functions).
        """
        wide = np.diff(x) > 0  # a tensor without elements is no line
        self._x, self._y = x[np.append(wide, True)], y[np.append(wide, True)]
        self._slopes = np.diff(self._y, axis=0) / np.diff(self._x)[:, None]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the (points, functions) values at `x`, from the first point to the last."""
        line = self._x.searchsorted(x, side="right") - 1
        inside = np.minimum(line, len(self._slopes) - 1)
        found = self._slopes[inside] * (x - self._x[inside])[:, None] + self._y[inside]
        found[line > inside] = self._y[-1]
        return found


def _united(*edges: np.ndarray) -> np.ndarray:
    """Return what is in any of several arrays, ascending, once each."""
    every = np.sort(np.concatenate(edges))
    return every[np.append(True, every[1:] != every[:-1])]


def _crossed(a: Chromosome, b: Chromosome, mix: float, split: int, angle: float) -> Chromosome:
    total = int(a.edges[-1])
    edges = _united(a.edges, b.edges, np.array([min(max(split, 0), total)]))
    starts = edges[:-1]
    shares = np.array([interpolated(mix, angle), interpolated(1.0 - mix, angle)])
    side = (starts >= split).astype(int)
    coefficients = shares[side, :1] * a.at(starts) + shares[side, 1:] * b.at(starts)
    return Chromosome(a.modules, edges, coefficients).joined()
