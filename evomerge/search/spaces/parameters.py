"""The parameter space: one merge method's coefficients by layer group and module group."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evomerge.dtypes import Dtype
from evomerge.errors import Fault, Faults, nearest
from evomerge.merging.methods import METHODS, MergeMethod
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.search.axes import AxisSection, Gene, axis_faults
from evomerge.search.spaces import PointSpace, SourceShapes, SpaceSection, space
from evomerge.sections import Flag, Number, Text, Whole, one_of, option
from evomerge.tensor_names import PARTS

Values = dict[str, float | tuple[float, ...]]  # axis -> its value, or one for each model
_Cell = tuple[int | str, str | None]  # a knot or "outer", and a module group
_Key = tuple[str, int | None, int | str | None, str | None]  # of a gene: axis, model, layer, module


def _axis_or_number(value: Any) -> str:
    return "axis" if isinstance(value, Mapping | AxisSection) else "number"


def _flag_or_number(value: Any) -> str:
    return "flag" if isinstance(value, bool) else "number"


if TYPE_CHECKING:
    _Axis = AxisSection | float
    _Option = bool | float
else:
    _Axis = one_of({"axis": AxisSection, "number": Number}, _axis_or_number)
    _Option = one_of({"flag": Flag, "number": Number}, _flag_or_number)


class ParametersSection(SpaceSection):
    """A merge method and its axes, on a grid of layer groups and module groups.

    >>> options = ParametersSection(method="ties", axes={"weight": {"low": 0.0, "high": 1.5}})
    >>> options.layer_groups
    1
    """

    kind: Literal["parameters"] = "parameters"
    method: Text = option("a merge method; `evomerge list methods` tells them", example="ties")
    options: dict[Text, _Option] = option(
        "the method's options", factory=dict, example={"normalize": True}
    )
    layer_groups: Whole = option(
        "runs of consecutive layers with values of their own; what is outside the layers is one"
        " more group",
        1,
        ge=1,
    )
    module_groups: list[Text] = option(
        "substrings of tensor names with values of their own; the other tensors are one more group",
        factory=list,
        example=["self_attn", "mlp"],
    )
    smooth: Flag = option(
        "values are interpolated between knots, as many as layer groups, from first to last layer",
        False,
    )
    axes: dict[Text, _Axis] = option(
        "a range for each parameter of the method that is searched, a number for one that is fixed",
        example={"weight": {"low": 0.0, "high": 1.5}},
        least=1,
    )
    dtype: Dtype | None = option("of the merged weights; null: the sources'", None)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        """Hold axes and options against the method's signature."""
        name = fields.get("method")
        if name is None:
            return []
        if name not in METHODS.all():
            mend = nearest(name, METHODS.all())
            return [Fault("method", f"there is no merge method '{name}'", mend)]
        method, faults = METHODS.get(name), Faults()
        for key, value in fields.get("options", {}).items():
            if problem := method.option_fault(key, value):
                faults.add(f"options.{key}", *problem)
        axes = fields.get("axes")
        if axes is None:
            return faults.found
        for key, entry in axes.items():
            if key in method.parameter:
                faults.extend(axis_faults(entry, method.parameter[key].axis), f"axes.{key}")
            else:
                mend = nearest(key, method.parameter)
                faults.add(f"axes.{key}", f"{name} has no parameter '{key}'", mend)
        for parameter in method.parameters:
            if parameter.default is None and parameter.name not in axes:
                mend = "write {low: 0.0, high: 1.0}"
                faults.add(f"axes.{parameter.name}", f"{name} needs it", mend)
        if not any(isinstance(entry, AxisSection) for entry in axes.values()):
            faults.add("axes", "nothing is searched", "give an axis {low: ..., high: ...}")
        return faults.found

    def faults(self, labels: Sequence[str], has_base: bool) -> Iterable[Fault]:
        method = METHODS.get(self.method)
        if method.models and len(labels) != method.models:
            count = f"{method.models} models; sources.models has {len(labels)}"
            mend = f"list {method.models} models or take another method"
            yield Fault("method", f"{self.method} merges {count}", mend)
        if method.needs_base and not has_base:
            yield Fault("method", f"{self.method} needs a base", "write sources.base")

    def substrings(self) -> Iterable[tuple[str, str]]:
        return [("module_groups", part) for part in self.module_groups]

    def depth_faults(self, layers: int) -> Iterable[Fault]:
        if self.layer_groups > layers:
            wrong = f"{self.layer_groups} are more than the {layers} layers of the models"
            yield Fault("layer_groups", wrong, f"write 1 to {layers}")

    def warnings(self) -> Iterable[str]:
        for name, axis in self.axes.items():
            if not isinstance(axis, AxisSection) or axis.start is None:
                continue
            if not axis.low <= axis.start <= axis.high:
                bounds = f"{axis.low} to {axis.high}"
                yield f"axis {name}: start {axis.start} is not within {bounds}"


@space(ParametersSection)
class ParametersSpace(PointSpace):
    """Genomes are the axes' values on a grid of layer groups x module groups (x models).

    Layers are cut into `layer_groups` runs of as equal length as can be; the tensors outside
    the layers are one more group. With `smooth` the groups are knots, spread evenly
    over depth, between which each layer's values are interpolated linearly. An axis may be
    `tied` over layers, modules or models, or have what is `outside` the layers follow the
    first group; one written as a plain number is fixed. Two smooth knots so tied are LiNeS'
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
        self.knots = min(options.layer_groups, shapes.layers)
        self.modules: tuple[str | None, ...] = (*options.module_groups, None)
        self.dtype = options.dtype or shapes.dtype
        self.axes = options.axes
        self._cells: list[_Cell] = [(k, m) for k in range(self.knots) for m in self.modules]
        self._cells.append(("outer", None))
        self.genes: list[Gene] = []
        self._index: dict[_Key, int] = {}  # tied values share a key, and so a gene
        starts = []
        for axis, entry in self.axes.items():
            if not isinstance(entry, AxisSection):
                continue
            for cell in self._cells:
                for model in self._models(axis):
                    key = self._key(axis, cell, model)
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

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each gene has; 0 for a gene that is continuous."""
        return tuple(g.levels for g in self.genes)

    @property
    def names(self) -> list[str]:
        """One readable name per gene, e.g. `weight ja layers 0-2 self_attn`."""
        return [self._name(g) for g in self.genes]

    def decode(self, genome: np.ndarray) -> ParametersRecipe:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""
        values = [g.value(float(u)) for g, u in zip(self.genes, genome, strict=True)]

        def at(axis: str, cell: _Cell) -> float | tuple[float, ...]:
            entry = self.axes[axis]
            per_model = self.method.parameter[axis].axis.per_model
            if not isinstance(entry, AxisSection):
                return (float(entry),) * len(self.shapes.models) if per_model else float(entry)
            found = tuple(values[self._index[self._key(axis, cell, m)]] for m in self._models(axis))
            return found if per_model else found[0]

        cells = {cell: {axis: at(axis, cell) for axis in self.axes} for cell in self._cells}
        groups = []
        for layers, position in self._spans():
            for module in self.modules:
                groups.append(Group(layers, module, self._between(cells, position, module)))
        groups += [Group(part, None, cells["outer", None]) for part in PARTS]
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
        layers = self.shapes.layers
        shares = np.zeros((layers, self.knots))  # of each knot in each layer's value
        for (first, last), position in self._spans():
            low = min(int(position), self.knots - 1)
            shares[first:last, low] += 1.0 - (position - low)
            shares[first:last, min(low + 1, self.knots - 1)] += position - low
        found: list[list[float]] = [[] for _ in self.genes]
        for axis, entry in self.axes.items():
            if not isinstance(entry, AxisSection):
                continue
            for model in self._models(axis):
                for module in self.modules:
                    wanted = [self._value_in(recipe, axis, n, module, model) for n in range(layers)]
                    for knot, value in enumerate(np.linalg.lstsq(shares, wanted)[0]):
                        found[self._index[self._key(axis, (knot, module), model)]].append(value)
                value = self._value_in(recipe, axis, "outer", None, model)
                found[self._index[self._key(axis, ("outer", None), model)]].append(value)
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
                inside = span is None or (span == "embed" and layer == "outer")
            if inside and group.modules in (module, None) and axis in group.values:
                value = group.values[axis]
                return value[model or 0] if isinstance(value, tuple) else value
        return self.method.parameter[axis].default or 0.0

    def _spans(self) -> list[tuple[tuple[int, int], float]]:
        """Return each run of layers that shares values, with its position among the knots."""
        layers = self.shapes.layers
        if self.smooth:
            step = (self.knots - 1) / max(layers - 1, 1)
            return [((n, n + 1), n * step) for n in range(layers)]
        edges = [round(k * layers / self.knots) for k in range(self.knots + 1)]
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

    def _models(self, axis: str) -> tuple[int | None, ...]:
        per_model = self.method.parameter[axis].axis.per_model
        return tuple(range(len(self.shapes.models))) if per_model else (None,)

    def _key(self, axis: str, cell: _Cell, model: int | None) -> _Key:
        """Return what tells a gene from others: where tied, there is one for all."""
        layer, module = cell
        entry = self.axes[axis]
        tied = entry.tied if isinstance(entry, AxisSection) else []
        if layer == "outer" and "outside" in tied:
            layer = 0
        return (
            axis,
            None if "models" in tied else model,
            None if "layers" in tied else layer,
            None if "modules" in tied else module,
        )

    def _start(self, gene: Gene, entry: AxisSection) -> float:
        """Begin at `start`, or weights at one n-th and all else in the middle; off the bounds."""
        value = entry.start
        if value is None and gene.axis == "weight":
            value = 1.0 / len(self.shapes.models)
        # A start on the bounds would leave CMA-ES half its steps folded back.
        return 0.5 if value is None else min(0.95, max(0.05, gene.unit(value)))

    def _name(self, gene: Gene) -> str:
        model = "" if gene.model is None else f" {self.shapes.labels[gene.model]}"
        if gene.layer is None:
            where = " all layers"
        elif gene.layer == "outer":
            where = " outside the layers"
        elif self.smooth or isinstance(gene.layer, str):
            where = f" knot {gene.layer}"
        else:
            first, last = self._spans()[gene.layer][0]
            where = f" layers {first}-{last - 1}"
        return f"{gene.axis}{model}{where}" + (f" {gene.module}" if gene.module else "")
