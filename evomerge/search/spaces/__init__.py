"""Search spaces, one file each: named genes over recipes.

A new space is one file here: a section with its options (see `evomerge.sections`), and a class
registered with `@space(section)`, made as `cls(options, shapes)`. Genomes are float64 vectors in
[0, 1]^d.

A `PointSpace` maps each genome to a recipe, and recipes back to the nearest genome. A
`BreedingSpace` has individuals instead of points: a genome says how two are crossed.
"""

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np

from evomerge.errors import BadInput, Fault
from evomerge.recipes.parameters import single
from evomerge.recipes.recipe import Recipe
from evomerge.registry import Registry
from evomerge.search.axes import GeneRange
from evomerge.search.ingredients import Ingredients
from evomerge.sections import Section

# Of a gene: coarse enough that no hash depends on the last bit of a controller's arithmetic, and
# fine enough that a weight moves by less than float32 resolves.
RESOLUTION = 2.0**-24


class SpaceSection(Section):
    """The options of a search space in a campaign file; `kind` is its name.

    >>> from evomerge.search.spaces.mixture import MixtureSection
    >>> MixtureSection().kind
    'mixture'
    """

    kind: str

    def faults(self, labels: Sequence[str], has_base: bool) -> Iterable[Fault]:
        """Return why this space cannot be one over so labelled models.

        Args:
            labels: of the models, in their order.
            has_base: whether there is a base model.
        """
        return ()

    @property
    def needs_layers(self) -> bool:
        """Whether these options ask for models whose layers are numbered."""
        return True

    def substrings(self) -> Iterable[tuple[str, str]]:
        """Return the groups of tensors that the options name, each with its key."""
        return ()

    def depth_faults(self, layers: int) -> Iterable[Fault]:
        """Return what asks for more layers than the models have."""
        return ()

    def warnings(self) -> Iterable[str]:
        """Return what a user should hear of these options though they are right."""
        return ()


@dataclass(frozen=True)
class SourceShapes:
    """What a space needs to know of the sources: names, labels, layers, tensors.

    Attributes:
        base: name of the base model.
        models: names of the models.
        labels: theirs in the campaign file.
        layers: of the first source.
        dtype: of the first source.
        seed: of the campaign, for methods that draw.
        tensors: name -> elements, in canonical order, of the first source.
        depths: layers of each source, by name.
        dtypes: of each source, by name.
        grams: reads all weights; gives the models' inner products, (tensors, models, models)
            float64. None until the sources' hashes are known.
        moves: reads all weights; gives how far each model is from the base in each tensor, relative
            to the base's, squared: (tensors, models) float64. None until then, or without a base.
        weights: reads one model's weights, flattened, (parameters,) float32; None until then.

    >>> SourceShapes(None, ("a", "b"), ("a", "b"), layers=2, dtype="float32", seed=0).layers
    2
    """

    base: str | None
    models: tuple[str, ...]
    labels: tuple[str, ...]
    layers: int
    dtype: str
    seed: int
    tensors: Mapping[str, int] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    grams: Callable[[], np.ndarray] | None = None
    moves: Callable[[], np.ndarray] | None = None
    weights: Callable[[str], np.ndarray] | None = None


class SearchSpace(ABC):
    """Named genes over recipes; see `PointSpace` and `BreedingSpace`.

    Attributes:
        section: the class of its options.
        weighs: whether recipes are models' weights by group, so that soups fit it.
        shapes: of the sources.
        dtype: of the merged weights.

    >>> from evomerge.search.spaces.mixture import MixtureSection
    >>> shapes = SourceShapes(None, ("a", "b"), ("a", "b"), 1, "float32", 0, {"w": 4})
    >>> make_space(MixtureSection(), shapes).names
    ['mix', 'split']
    """

    section: ClassVar[type[SpaceSection]]
    weighs: ClassVar[bool] = False
    shapes: SourceShapes
    dtype: str

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """One readable name for each gene."""

    @property
    @abstractmethod
    def start(self) -> np.ndarray:
        """Where a search may begin, (dimension,) float64 in [0, 1]."""

    @property
    @abstractmethod
    def first(self) -> Recipe:
        """Where a search may begin, as a recipe."""

    @property
    def representatives(self) -> list[Recipe]:
        """Recipes that have every merge method of this space between them, with its options."""
        return [self.first]

    @property
    def dimension(self) -> int:
        """How many genes there are."""
        return len(self.names)

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each gene has; 0 for a gene that is continuous."""
        return (0,) * self.dimension

    @property
    def ranges(self) -> list[GeneRange]:
        """What each gene's positions mean."""
        found = []
        for levels in self.levels:
            labels = tuple(map(str, range(levels)))
            found.append(GeneRange(kind="choice", labels=labels) if levels else GeneRange())
        return found

    def single(self, name: str) -> Recipe:
        """Return the recipe of a source as it is, a baseline of the search."""
        return single(name, self.dtype)

    def steps(self) -> np.ndarray | None:
        """Return how far a step should go along each gene for all to change the function alike.

        (dimension,) float64, about 1 in the middle; None where nothing is known of that. It may
        read all weights.
        """
        return None

    def ingredients(self) -> Ingredients | None:
        """Return where single models stand; None where genes are no weights of models."""
        return None

    def seeds(self) -> list[tuple[str, Recipe]]:
        """Return what is scored before a search beside the sources, each with a label of its own.

        They are known without any score, and no proposals. A controller hears of them before it
        is asked; in a `BreedingSpace` they are individuals.
        """
        return []


class PointSpace(SearchSpace):
    """A space whose genomes are recipes.

    >>> from evomerge.search.spaces.parameters import ParametersSection
    >>> options = ParametersSection(method="linear", axes={"weight": {"low": 0.0, "high": 1.0}})
    >>> shapes = SourceShapes(None, ("a", "b"), ("a", "b"), layers=1, dtype="float32", seed=0)
    >>> space = make_space(options, shapes)
    >>> np.allclose(space.encode(space.decode(space.start)), space.start)
    True
    """

    @abstractmethod
    def decode(self, genome: np.ndarray) -> Recipe:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""

    @abstractmethod
    def encode(self, recipe: Recipe) -> np.ndarray:
        """Return the genome whose decoding comes closest to `recipe`."""

    def settled(self, genome: np.ndarray) -> np.ndarray:
        """Return `genome` with the genes that have no say put back to their start."""
        return genome

    @property
    def first(self) -> Recipe:
        return self.decode(self.start)


class BreedingSpace(SearchSpace):
    """A space of individuals: a genome says how two of them are crossed.

    >>> from evomerge.search.spaces.mixture import MixtureSection
    >>> shapes = SourceShapes(None, ("a", "b"), ("a", "b"), 1, "float32", 0, {"w": 4})
    >>> make_space(MixtureSection(), shapes).takes("baseline", "uniform")
    False
    """

    @abstractmethod
    def cross(self, genome: np.ndarray, parents: Sequence[Recipe], ids: Sequence[str]) -> Recipe:
        """Return the child of two parents; of one, it is crossed with itself.

        Args:
            genome: (dimension,) float64, multiples of 2^-24 in [0, 1].
            parents: their recipes.
            ids: of these recipes.
        """

    def takes(self, origin: str, label: str | None) -> bool:
        """Tell whether a candidate may be a parent: a model, a seed, or a child of this search.

        Args:
            origin: "search", "baseline", "seed" or "warm_start".
            label: of a baseline.
        """
        return origin != "baseline" or label in self.shapes.labels

    def individual(self, recipe: Recipe) -> Recipe:
        """Return a recipe of another search over these sources as one of this space.

        Raises:
            BadInput: this space cannot express it.
        """
        wrong = f"a recipe of kind {recipe.kind} is no individual of this space"
        raise BadInput(Fault("", wrong, "let the search begin with its models"))

    @property
    def start(self) -> np.ndarray:
        return np.full(self.dimension, 0.5)


SPACES: Registry[type[SearchSpace]] = Registry("evomerge.search.spaces", "search space")

_S = TypeVar("_S", bound=SearchSpace)


def space(section: type[SpaceSection]) -> Callable[[type[_S]], type[_S]]:
    """Register a space class, made as `cls(options, shapes)`, under its section's kind.

    Args:
        section: the class of its options; its `kind` is what campaign files write.

    >>> SPACES.get("routing").section.__name__
    'RoutingSection'
    """

    def register(cls: type[_S]) -> type[_S]:
        cls.section = section
        (kind,) = typing.get_args(section.model_fields["kind"].annotation)
        SPACES.add(kind, cls)
        return cls

    return register


def make_space(options: SpaceSection, shapes: SourceShapes) -> SearchSpace:
    """Return the space with these options over sources of these shapes.

    >>> from evomerge.search.spaces.explicit import ExplicitSection
    >>> shapes = SourceShapes(None, ("a", "b"), ("a", "b"), 1, "float32", 0, {"w": 4})
    >>> make_space(ExplicitSection(), shapes).names
    ['mix', 'split', 'noise']
    """
    maker: Callable[[SpaceSection, SourceShapes], SearchSpace] = SPACES.get(options.kind)
    return maker(options, shapes)


def quantize(genome: np.ndarray) -> np.ndarray:
    """Round a genome to multiples of 2^-24 in [0, 1], so that no hash depends on a last bit.

    >>> quantize(np.array([0.1, 1.0000001])).tolist()
    [0.10000002384185791, 1.0]
    """
    return np.clip(np.round(np.asarray(genome, np.float64) / RESOLUTION) * RESOLUTION, 0.0, 1.0)
