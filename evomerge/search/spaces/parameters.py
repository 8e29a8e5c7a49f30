"""The parameter space: one merge method's coefficients by layer group and module group."""

from collections.abc import Mapping

import numpy as np

from evomerge.merging.methods import METHODS, MergeMethod
from evomerge.recipes.block_names import holds
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.search.axes import AxisSection, Gene, GeneRange
from evomerge.search.group_bounds import narrowed
from evomerge.search.group_names import OUTER, Spot, governing, read_names, shared
from evomerge.search.ingredients import Ingredients
from evomerge.search.parameter_options import ParametersSection, group_edges
from evomerge.search.spaces import PointSpace, SourceShapes, space
from evomerge.tensor_names import PARTS, place

Values = dict[str, float | tuple[float, ...]]  # axis -> its value, or one for each model
_Cell = tuple[int | str, str | None]  # a knot or `OUTER`, and a module group
_Key = tuple[str, int | None, int | str | None, str | None]  # of a gene: axis, model, layer, module


_WIDEST = 8.0  # times the usual step, at most; norms hardly move, and would get endless ones
_SUMS = (0.5, 0.75, 1.0)  # weights of task vectors in their sum, beside one n-th of n models


@space(ParametersSection)
class ParametersSpace(PointSpace):
    """Genomes are the axes' values on a grid of layer groups x module groups (x models).

    Layers are cut into `layer_groups` runs of as equal length as can be; the tensors outside
    the layers are one more group, or belong to the first or the nearest one. With `smooth` the
    groups are knots, spread evenly over depth, between which each layer's values are interpolated
    linearly. An axis may be
    `tied` over layers, modules or models, or have what is `outside` the layers follow the
    first group; one written as a plain number is fixed. In `groups` it may be fixed or have another
    range; what is fixed has no gene. Two smooth knots so tied are LiNeS'
    depth scaling (arXiv:2410.17146): alpha at the first layer and outside, alpha + beta at
    the last.

    >>> options = ParametersSection(method="linear", axes={"weight": {"low": 0.0, "high": 1.0}})
    >>> shapes = SourceShapes(None, ("a", "b"), ("a", "b"), layers=1, dtype="float32", seed=0)
    >>> ParametersSpace(options, shapes).names[:2]
    ['weight a layers 0-0', 'weight b layers 0-0']
    """

    weighs = True

    def __init__(self, options: ParametersSection, shapes: SourceShapes):
        self.shapes = shapes
        self.method: MergeMethod = METHODS.get(options.method)
        self.options = dict(options.options)
        self.smooth = options.smooth
        # without numbered layers, as image models are, all is one place, parted by modules alone
        self._depth = max(shapes.layers, 1)
        self.knots = min(options.layer_groups, self._depth)
        self.modules: tuple[str | None, ...] = (*options.module_groups, None)
        self.dtype = options.dtype or shapes.dtype
        self.axes = options.axes
        self._cells: list[_Cell] = [(k, m) for k in range(self.knots) for m in self.modules]
        self.outside = options.outside if shapes.layers else "first"
        if self.outside == "own":
            self._cells.append((OUTER, None))
        self._groups = options.groups
        knots = options.layer_groups if options.smooth else None
        self._names = read_names(self._groups, shapes.labels, options.module_groups, knots)
        self.genes: list[Gene] = []
        self._fixed: dict[tuple[str, _Cell, int | None], float] = {}
        self._index: dict[_Key, int] = {}  # tied values share a key, and so a gene
        starts = []
        for axis in self.axes:
            for cell in self._cells:
                for model in self._models(axis):
                    key, entry = self._key(axis, cell, model), self._entry(axis, cell, model)
                    if not isinstance(entry, AxisSection):
                        self._fixed[axis, cell, model] = float(entry)
                        continue
                    if key in self._index:
                        continue
                    gene = Gene(*key, entry.low, entry.high, entry.log, entry.integer)
                    self._index[key] = len(self.genes)
                    self.genes.append(gene)
                    starts.append(self._start(gene, entry))
        self._starts = np.array(starts)

    @property
    def start(self) -> np.ndarray:
        return self._starts.copy()

    def seeds(self) -> list[tuple[str, Recipe]]:
        """See `SearchSpace.seeds`: task vectors added up, all with one weight.

        How far to go along their sum is most of what a start can know; it is asked where weights
        have no start in the campaign file.
        """
        entry = self.axes.get("weight")
        if not self._adds_up or not isinstance(entry, AxisSection) or entry.start is not None:
            return []
        found: dict[bytes, tuple[str, Recipe]] = {}
        for weight in (1.0 / len(self.shapes.models), *_SUMS):
            genome = self.start
            for n, gene in enumerate(self.genes):
                if gene.axis == "weight":
                    genome[n] = min(0.95, max(0.05, gene.unit(weight)))  # as `_start` has it
            found.setdefault(genome.tobytes(), (f"sum x{weight:.2g}", self.decode(genome)))
        return list(found.values())

    def ingredients(self) -> Ingredients | None:
        """See `SearchSpace.ingredients`; a model's genes are its weights in all groups."""
        weights = [g for g in self.genes if g.axis == "weight" and g.model is not None]
        if not weights:
            return None
        nothing = self.start
        for n, gene in enumerate(self.genes):
            if gene in weights:
                nothing[n] = gene.unit(0.0)
        alone = np.tile(nothing, (len(self.shapes.models), 1))
        for n, gene in enumerate(self.genes):
            if gene in weights and gene.model is not None:
                alone[gene.model, n] = gene.unit(1.0)
        return Ingredients(nothing, alone, self._adds_up)

    @property
    def _adds_up(self) -> bool:
        """Whether weights are those of task vectors, and need not sum to 1."""
        options = {**self.method.options, **self.options}
        return self.method.needs_base and not options.get("normalize", False)

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each gene has; 0 for a gene that is continuous."""
        return tuple(g.levels for g in self.genes)

    @property
    def ranges(self) -> list[GeneRange]:
        """See `SearchSpace.ranges`."""
        return [g.range for g in self.genes]

    @property
    def names(self) -> list[str]:
        """One readable name per gene, e.g. `weight ja layers 0-2 self_attn`."""
        return [self._name(g) for g in self.genes]

    def decode(self, genome: np.ndarray) -> ParametersRecipe:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""
        values = [g.value(float(u)) for g, u in zip(self.genes, genome, strict=True)]

        def one(axis: str, cell: _Cell, model: int | None) -> float:
            if (axis, cell, model) in self._fixed:
                return self._fixed[axis, cell, model]
            return values[self._index[self._key(axis, cell, model)]]

        def at(axis: str, cell: _Cell) -> float | tuple[float, ...]:
            found = tuple(one(axis, cell, model) for model in self._models(axis))
            return found if self.method.parameter[axis].axis.per_model else found[0]

        cells = {cell: {axis: at(axis, cell) for axis in self.axes} for cell in self._cells}
        groups = []
        if not self.shapes.layers:
            groups = [Group(None, module, cells[0, module]) for module in self.modules]
        for layers, position in self._spans() if self.shapes.layers else ():
            for module in self.modules:
                groups.append(Group(layers, module, self._between(cells, position, module)))
        for part in PARTS if self.shapes.layers else ():
            modules = (None,) if self.outside == "own" else self.modules
            groups += [Group(part, m, cells[self._outer_knot(part), m]) for m in modules]
        base = self.shapes.base if self.method.takes_base else None
        seed = self.shapes.seed if self.method.draws else None
        return ParametersRecipe(
            self.method.name,
            self.shapes.models,
            tuple(groups),
            base,
            self.dtype,
            seed,
            self.options,
        )

    def encode(self, recipe: Recipe) -> np.ndarray:
        """Return the genome whose decoding comes closest to `recipe`, clipped to the bounds.

        Exact for a recipe that this space decoded. Knots and groups are least squares over
        the layers, tied genes the mean of what they tie.
        """
        if not isinstance(recipe, ParametersRecipe):
            raise TypeError(f"a recipe of kind {recipe.kind} is no point of this space")
        layers = self._depth
        shares = np.zeros((layers, self.knots))  # of each knot in each layer's value
        for (first, last), position in self._spans():
            low = min(int(position), self.knots - 1)
            shares[first:last, low] += 1.0 - (position - low)
            shares[first:last, min(low + 1, self.knots - 1)] += position - low
        found: list[list[float]] = [[] for _ in self.genes]
        for axis in self.axes:
            for model in self._models(axis):
                for module in self.modules:
                    values = [self._value_in(recipe, axis, n, module, model) for n in range(layers)]
                    wanted, free = np.array(values), list(range(self.knots))
                    for knot in range(self.knots):
                        fixed = self._fixed.get((axis, (knot, module), model))
                        if fixed is not None:
                            wanted -= shares[:, knot] * fixed
                            free.remove(knot)
                    solved = np.linalg.lstsq(shares[:, free], wanted)[0]
                    for knot, value in zip(free, solved, strict=True):
                        found[self._index[self._key(axis, (knot, module), model)]].append(value)
                if self.outside == "own" and (axis, (OUTER, None), model) not in self._fixed:
                    value = self._value_in(recipe, axis, OUTER, None, model)
                    found[self._index[self._key(axis, (OUTER, None), model)]].append(value)
        return np.array([g.unit(float(np.mean(v))) for g, v in zip(self.genes, found, strict=True)])

    def _value_in(
        self,
        recipe: ParametersRecipe,
        axis: str,
        layer: int | str,
        module: str | None,
        model: int | None,
    ) -> float:
        """Return an axis' value in a recipe's first group that covers a layer and module."""
        for group in recipe.groups:
            span = group.layers
            if isinstance(span, tuple):
                inside = isinstance(layer, int) and span[0] <= layer < span[1]
            else:  # the embeddings stand for all that is outside the layers
                inside = span is None or (span == "embed" and layer == OUTER)
            if inside and group.modules in (module, None) and axis in group.values:
                value = group.values[axis]
                return value[model or 0] if isinstance(value, tuple) else value
        return self.method.parameter[axis].default or 0.0

    def _spans(self) -> list[tuple[tuple[int, int], float]]:
        """Return each run of layers that shares values, with its position among the knots."""
        layers = self._depth
        if self.smooth:
            step = (self.knots - 1) / max(layers - 1, 1)
            return [((n, n + 1), n * step) for n in range(layers)]
        edges = group_edges(layers, self.knots)
        return [((edges[k], edges[k + 1]), float(k)) for k in range(self.knots)]

    def _between(
        self, cells: Mapping[_Cell, Values], position: float, module: str | None
    ) -> Values:
        """Interpolate the values of the two knots around `position`."""
        low = min(int(position), self.knots - 1)
        share = position - low
        a, b = cells[low, module], cells[min(low + 1, self.knots - 1), module]
        if share == 0.0:
            return a

        def mix(x: float, y: float) -> float:
            return (1.0 - share) * x + share * y

        values: Values = {}
        for axis, first in a.items():
            second = b[axis]
            if isinstance(first, tuple) and isinstance(second, tuple):
                values[axis] = tuple(map(mix, first, second))
            elif isinstance(first, float) and isinstance(second, float):
                values[axis] = mix(first, second)
        return values

    def steps(self) -> np.ndarray | None:
        """See `SearchSpace.steps`: weights of models that moved far in a place go by small steps.

        How far a weight moves the function is taken to be how far it moves the weights there,
        relative to the base: sqrt(sum_t |W_kt - W_0t|^2 / |W_0t|^2) over the tensors t.
        """
        if self.shapes.moves is None:
            return None
        reach = np.zeros(len(self.genes))
        for name, moved in zip(self.shapes.tensors, self.shapes.moves(), strict=True):
            cell = self._cell_of(name)
            for model, squared in enumerate(moved):
                index = self._index.get(self._key("weight", cell, model))
                if index is not None and ("weight", cell, model) not in self._fixed:
                    reach[index] += squared
        weights = reach > 0.0
        steps = np.ones(len(self.genes))
        if weights.any():
            inverse = 1.0 / np.sqrt(reach[weights])
            steps[weights] = inverse / np.exp(np.log(inverse).mean())
        return np.clip(steps, 1.0 / _WIDEST, _WIDEST)

    def _outer_knot(self, part: str) -> int | str:
        """Return the knot whose values a part outside the layers takes, or `OUTER`."""
        if self.outside == "own":
            return OUTER
        return self.knots - 1 if self.outside == "nearest" and part != "embed" else 0

    def _cell_of(self, name: str) -> _Cell:
        """Return the cell that a tensor's values come from, the nearer one between two knots."""
        part, layer = place(name)
        module = next((m for m in self.modules if m is not None and holds(m, name)), None)
        if not self.shapes.layers:
            return 0, module
        if layer is None:
            return self._outer_knot(part), None if self.outside == "own" else module
        for (first, last), position in self._spans():
            if first <= layer < last:
                return round(position), module
        raise ValueError(f"{name} is of layer {layer}, and there are {self.shapes.layers}")

    def _models(self, axis: str) -> tuple[int | None, ...]:
        per_model = self.method.parameter[axis].axis.per_model
        return tuple(range(len(self.shapes.models))) if per_model else (None,)

    def _key(self, axis: str, cell: _Cell, model: int | None) -> _Key:
        """Return what tells a gene from others: where tied, there is one for all."""
        entry = self.axes[axis]
        tied = entry.tied if isinstance(entry, AxisSection) else []
        layer, module, of_model = shared(*cell, model, tied)
        return axis, of_model, layer, module

    def _entry(self, axis: str, cell: _Cell, model: int | None) -> AxisSection | float:
        """Return the range of an axis in one place, or the number that it is fixed to there."""
        entry, layer = self.axes[axis], cell[0]
        if isinstance(layer, int) and not self.smooth:
            layer = self._spans()[layer][0][0]  # a group has the same names all through
        spot = Spot(layer, cell[1], None if model is None else self.shapes.labels[model])
        tied = entry.tied if isinstance(entry, AxisSection) else []
        here = [name for name, own in self._groups.items() if axis in own]
        holding = governing([self._names[name] for name in here], spot, tied)
        return narrowed(entry, self._groups[holding[0].text][axis]) if holding else entry

    def _start(self, gene: Gene, entry: AxisSection) -> float:
        """Begin at `start`, or weights at one n-th and all else in the middle; off the bounds."""
        value = entry.start
        if value is None and gene.axis == "weight":
            value = 1.0 / len(self.shapes.models)
        # A start on the bounds would leave CMA-ES half its steps folded back.
        return 0.5 if value is None else min(0.95, max(0.05, gene.unit(value)))

    def _name(self, gene: Gene) -> str:
        model = "" if gene.model is None else f" {self.shapes.labels[gene.model]}"
        if not self.shapes.layers:
            where = ""
        elif gene.layer is None:
            where = " all layers"
        elif gene.layer == OUTER:
            where = " outside the layers"
        elif self.smooth or isinstance(gene.layer, str):
            where = f" knot {gene.layer}"
        else:
            first, last = self._spans()[gene.layer][0]
            where = f" layers {first}-{last - 1}"
        return f"{gene.axis}{model}{where}" + (f" {gene.module}" if gene.module else "")
