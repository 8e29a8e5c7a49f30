"""The routing space: which layers of which models a token passes, in what order, how strongly.

The data flow space of Akiba et al. (arXiv:2403.13187, section 3.2): all layers of all models, in a
row, the row some times over, and a gene for each that says whether it is on the path. Instead of
their matrix of scales between layers, genes are what a layer's branches are multiplied by: a
bijection (`RoutingRecipe.fold`) in which a change of one hop leaves all others as they were.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from evomerge.dtypes import Dtype
from evomerge.errors import Fault, nearest
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import Hop, RoutingRecipe, whole
from evomerge.search.axes import Gene, GeneRange
from evomerge.search.routing_paths import Blocks, Exchange, PathGenes, Slots
from evomerge.search.spaces import PointSpace, SourceShapes, SpaceSection, quantize, space
from evomerge.sections import Number, Section, Text, Whole, option

# The gains that a place on the path has, by `gains`.
_GAINS = {"none": (), "shared": ("gain",), "separate": ("attention gain", "mlp gain")}


class GainSection(Section):
    """The range of gains, on a logarithmic scale around 1.

    >>> GainSection().low
    0.5
    """

    low: Number = option("least gain", 0.5, gt=0, lt=1)
    high: Number = option("largest gain", 2.0, gt=1)


class RoutingSection(SpaceSection):
    """How genes say a path through the models' layers.

    >>> RoutingSection(blocks=3).order
    'models'
    """

    kind: Literal["routing"] = "routing"
    frame: Text | None = option(
        "label of the model that gives embeddings, first and last layer, head and tokenizer; null:"
        " the first model",
        None,
    )
    repeats: Whole = option("how often the row of slots comes", 1, ge=1)
    order: Literal["models", "depth", "permuted", "exchange"] = option(
        "`models`: slots model by model; `depth`: by layer number; `permuted`: by layer number, the"
        " order within it by genes; `exchange`: one layer at each depth, of the model that a gene"
        " chooses",
        "models",
    )
    blocks: Whole | None = option(
        "search so many blocks of consecutive layers instead of single layers", None, ge=1
    )
    gains: Literal["none", "shared", "separate"] = option(
        "what multiplies a layer's branches: nothing, one gain, or one for attention and one for"
        " the MLP",
        "shared",
    )
    gain: GainSection = option("range of the gains", factory=GainSection)
    longest: Whole | None = option(
        "hops at most; null: twice the depth of the deepest model", None, unit="layers", ge=2
    )
    prior: Text | None = option(
        "label of the model whose path is likelier at first; null: the frame's", None
    )
    certainty: Number = option(
        "how far from a half the genes of the prior's path begin; 0: no path is likelier",
        0.25,
        ge=0,
        le=0.5,
    )
    dtype: Dtype | None = option("of the exported weights; null: the frame's", None)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        repeats, order = fields.get("repeats", 1), fields.get("order", "models")
        if order == "exchange" and repeats != 1:
            yield Fault("order", "gives every depth one layer", "leave repeats out")
        if fields.get("blocks") is not None:
            for key, default in (("repeats", 1), ("order", "models"), ("certainty", 0.25)):
                if fields.get(key, default) != default:
                    wrong = "says how single layers are searched, and these are blocks"
                    yield Fault(key, wrong, "leave one of the two out")

    def faults(self, labels: Sequence[str], has_base: bool) -> Iterable[Fault]:
        for key, label in (("frame", self.frame), ("prior", self.prior)):
            if label and label not in labels:
                mend = f"write a model's label: {nearest(label, labels)}"
                yield Fault(key, f"'{label}' will not do", mend)


@space(RoutingSection)
class RoutingSpace(PointSpace):
    """Paths through the layers of several models, from the frame's first layer to its last.

    A genome has the genes of a path (`routing_paths`), then the gains of each of its places, on a
    logarithmic scale. The first hop has none: to scale it is to scale all others.

    >>> depths = {"a": 2, "b": 2}
    >>> shapes = SourceShapes(None, ("a", "b"), ("a", "b"), 2, "float32", 0, depths=depths)
    >>> space = RoutingSpace(RoutingSection(gains="none"), shapes)
    >>> space.names
    ['use b 0', 'use b 1']
    >>> [(hop.model, hop.layer) for hop in space.decode(np.array([1.0, 0.0])).path]
    [(0, 0), (1, 0), (0, 1)]
    """

    def __init__(self, options: RoutingSection, shapes: SourceShapes):
        self.shapes = shapes
        labels = list(shapes.labels)
        self.frame = labels.index(options.frame) if options.frame else 0
        own = shapes.dtypes.get(shapes.models[self.frame], shapes.dtype)
        self.dtype = options.dtype or own
        depths = [shapes.depths[model] for model in shapes.models]
        prior = labels.index(options.prior) if options.prior else self.frame
        longest = options.longest or 2 * max(depths)
        self.path: PathGenes
        if options.blocks is not None:
            self.path = Blocks(depths, self.frame, prior, options.blocks, longest)
        elif options.order == "exchange":
            self.path = Exchange(depths, self.frame, prior, longest, options.certainty)
        else:
            self.path = Slots(
                depths,
                labels,
                self.frame,
                prior,
                options.order,
                options.repeats,
                longest,
                options.certainty,
            )
        self._each = _GAINS[options.gains]
        low, high = options.gain.low, options.gain.high
        self._gene = Gene("gain", None, None, None, low, high, log=True)

    @property
    def names(self) -> list[str]:
        """One readable name per gene, e.g. `use ja 3` or `gain ja 3`."""
        return [*self.path.names, *(f"{g} {p}" for p in self._gained for g in self._each)]

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each gene has; 0 for a gene that is continuous."""
        return (*self.path.levels, *(0 for _ in self._gained for _ in self._each))

    @property
    def ranges(self) -> list[GeneRange]:
        """See `SearchSpace.ranges`."""
        gains = len(self._gained) * len(self._each)
        return [*super().ranges[: len(self.path.names)], *(self._gene.range for _ in range(gains))]

    @property
    def start(self) -> np.ndarray:
        gains = len(self._gained) * len(self._each)
        return np.concatenate([self.path.start, np.full(gains, self._gene.unit(1.0))])

    @property
    def _gained(self) -> list[str]:
        return self.path.places[self.path.free :]

    def single(self, name: str) -> RoutingRecipe:
        """Return the recipe of a source as it is."""
        return whole(name, self.shapes.depths[name], self.dtype)

    def decode(self, genome: np.ndarray) -> RoutingRecipe:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""
        genes, gains = self._parts(genome)
        hops: list[Hop] = []
        before = 1.0
        for model, layer, place in self.path.hops(genes):
            units = gains[place - self.path.free] if hops and place >= self.path.free else ()
            own = [self._gene.value(float(u)) for u in units]
            if len(own) == 2:
                hops.append(Hop(model, layer, 1.0, (own[0], own[1])))
            else:
                after = own[0] if own else 1.0  # divides the stream, which multiplies the branch
                hops.append(Hop(model, layer, before / after))
                before = after
        return RoutingRecipe(self.shapes.models, tuple(hops), self.frame, self.dtype)

    def settled(self, genome: np.ndarray) -> np.ndarray:
        """Return `genome` with the genes that have no say at their start.

        Left to drift, they would widen the search for nothing.
        """
        settled = self.start
        genes, gains = self._parts(settled)
        given, own = self._parts(genome)
        places = [place for _, _, place in self.path.hops(given)[1:]]
        on_path = [place - self.path.free for place in places if place >= self.path.free]
        genes[:] = self.path.settled(given)
        gains[on_path] = own[on_path]
        return quantize(settled)

    def encode(self, recipe: Recipe) -> np.ndarray:
        """Return the genome nearest to `recipe`: hops that have no place are left out."""
        if not isinstance(recipe, RoutingRecipe):
            raise TypeError(f"a recipe of kind {recipe.kind} is no point of this space")
        genome = self.start
        genes, gains = self._parts(genome)
        fold = recipe.fold()
        path = [(hop.model, hop.layer) for hop in recipe.path]
        genes[:], places = self.path.encoded(path)
        for place, (attention, mlp, _) in zip(places[1:], fold.hops[1:], strict=True):
            if place is not None and place >= self.path.free and self._each:
                both = np.abs([attention, mlp]) / abs(fold.embed)
                own = both if len(self._each) == 2 else [np.sqrt(both.prod())]
                gains[place - self.path.free] = [self._gene.unit(float(g)) for g in own]
        return genome

    def _parts(self, genome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return views of the path's genes, and of the gains, (places that have some, of each)."""
        cut = len(self.path.names)
        return genome[:cut], genome[cut:].reshape(len(self._gained), len(self._each))
