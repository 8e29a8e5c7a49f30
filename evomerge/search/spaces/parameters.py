"""The parameter space: one merge method's coefficients by layer group and module group."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.dtypes import DTYPES
from evomerge.errors import Fault, nearest
from evomerge.merging.methods import OPERATORS, Operator
from evomerge.recipes.parameters import Group, Recipe
from evomerge.registry import fits
from evomerge.search.axes import Gene, axis_faults
from evomerge.search.spaces import Sources, space
from evomerge.tensor_names import PARTS


@space("parameters")
class ParametersSpace:
    """Genomes are the axes' values on a grid of layer groups x module groups (x models).

    Layers are cut into `layer_groups` runs of as equal length as can be; the tensors outside
    the layers are one more group. With `smooth: true` the groups are knots, spread evenly
    over depth, between which each layer's values are interpolated linearly. An axis may be
    `tied` over layers, modules or models, or have what is `outside` the layers follow the
    first group; one written as a plain number is fixed. Two smooth knots so tied are LiNeS'
    depth scaling (arXiv:2410.17146): alpha at the first layer and outside, alpha + beta at
    the last.
    """

    keys = ("kind", "method", "options", "layer_groups", "module_groups", "smooth", "axes", "dtype")

    def __init__(self, spec: Mapping[str, Any], sources: Sources):
        """
        Args:
            spec: the campaign's `space` mapping, without faults.
            sources: the shape of the sources.
        """
        self.sources = sources
        self.operator: Operator = OPERATORS.get(spec["method"])
        self.options = dict(spec.get("options") or {})
        self.smooth = bool(spec.get("smooth", False))
        self.knots = min(spec.get("layer_groups", 1), sources.layers)
        self.modules: tuple[str | None, ...] = (*spec.get("module_groups", ()), None)
        self.dtype = spec.get("dtype", sources.dtype)
        self.axes: dict[str, Any] = dict(spec["axes"])
        self._cells = [(k, m) for k in range(self.knots) for m in self.modules] + [("outer", None)]
        self.genes: list[Gene] = []
        self._index: dict[tuple, int] = {}
        starts = []
        for axis, entry in self.axes.items():
            if not isinstance(entry, Mapping):
                continue
            for cell in self._cells:
                for model in self._models(axis):
                    key = self._key(axis, cell, model)
                    if key not in self._index:
                        self._index[key] = len(self.genes)
                        flags = (entry.get("log", False), entry.get("integer", False))
                        gene = Gene(*key, entry["low"], entry["high"], *flags)
                        self.genes.append(gene)
                        starts.append(self._start(gene, entry))
        self.start = np.array(starts)

    @property
    def dimension(self) -> int:
        return len(self.genes)

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each gene has; 0 for a gene that is continuous."""
        return tuple(g.levels for g in self.genes)

    @property
    def names(self) -> list[str]:
        """One readable name per gene, e.g. `weight ja layers 0-2 self_attn`."""
        return [self._name(g) for g in self.genes]

    @property
    def first(self) -> Recipe:
        """Where a search may begin, as a recipe."""
        return self.decode(self.start)

    def decode(self, genome: np.ndarray) -> Recipe:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""
        values = [g.value(float(u)) for g, u in zip(self.genes, genome, strict=True)]

        def at(axis: str, cell: tuple) -> float | tuple[float, ...]:
            entry = self.axes[axis]
            per_model = self.operator.parameter[axis].axis.per_model
            if not isinstance(entry, Mapping):
                return (float(entry),) * len(self.sources.models) if per_model else float(entry)
            found = tuple(values[self._index[self._key(axis, cell, m)]] for m in self._models(axis))
            return found if per_model else found[0]

        cells = {cell: {axis: at(axis, cell) for axis in self.axes} for cell in self._cells}
        groups = [
            Group(layers, module, values)
            for layers, position in self._spans()
            for module in self.modules
            for values in [self._between(cells, position, module)]
        ]
        groups += [Group(part, None, cells["outer", None]) for part in PARTS]
        base = self.sources.base if self.operator.takes_base else None
        seed = self.sources.seed if self.operator.draws else None
        return Recipe(
            self.operator.name,
            self.sources.models,
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
        layers = self.sources.layers
        shares = np.zeros((layers, self.knots))  # of each knot in each layer's value
        for (first, last), position in self._spans():
            low = min(int(position), self.knots - 1)
            shares[first:last, low] += 1.0 - (position - low)
            shares[first:last, min(low + 1, self.knots - 1)] += position - low
        found: list[list[float]] = [[] for _ in self.genes]
        for axis in (a for a, entry in self.axes.items() if isinstance(entry, Mapping)):
            for model in self._models(axis):
                for module in self.modules:
                    wanted = [self._value_in(recipe, axis, n, module, model) for n in range(layers)]
                    for knot, value in enumerate(np.linalg.lstsq(shares, wanted)[0]):
                        found[self._index[self._key(axis, (knot, module), model)]].append(value)
                value = self._value_in(recipe, axis, "outer", None, model)
                found[self._index[self._key(axis, ("outer", None), model)]].append(value)
        return np.array([g.unit(float(np.mean(v))) for g, v in zip(self.genes, found, strict=True)])

    def _value_in(
        self, recipe: Recipe, axis: str, layer: int | str, module: str | None, model: int | None
    ) -> float:
        """Return an axis' value in a recipe's first group that covers a layer and module."""
        for group in recipe.groups:
            span = group.layers
            inside = span is None or (
                span == "embed"
                if layer == "outer"
                else isinstance(span, tuple) and span[0] <= layer < span[1]
            )
            if inside and group.modules in (module, None) and axis in group.values:
                value = group.values[axis]
                return value[model or 0] if isinstance(value, tuple) else value
        return self.operator.parameter[axis].default or 0.0

    def _spans(self) -> list[tuple[tuple[int, int], float]]:
        """Return each run of layers that shares values, with its position among the knots."""
        layers = self.sources.layers
        if self.smooth:
            step = (self.knots - 1) / max(layers - 1, 1)
            return [((n, n + 1), n * step) for n in range(layers)]
        edges = [round(k * layers / self.knots) for k in range(self.knots + 1)]
        return [((edges[k], edges[k + 1]), float(k)) for k in range(self.knots)]

    def _between(self, cells: dict, position: float, module: str | None) -> dict:
        """Interpolate the values of the two knots around `position`."""
        low = min(int(position), self.knots - 1)
        share = position - low
        a, b = cells[low, module], cells[min(low + 1, self.knots - 1), module]
        if share == 0.0:
            return a

        def mix(x: Any, y: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(map(mix, x, y))
            return (1.0 - share) * x + share * y

        return {axis: mix(a[axis], b[axis]) for axis in a}

    def _models(self, axis: str) -> tuple[int | None, ...]:
        per_model = self.operator.parameter[axis].axis.per_model
        return tuple(range(len(self.sources.models))) if per_model else (None,)

    def _key(self, axis: str, cell: tuple, model: int | None) -> tuple:
        layer, module = cell
        tied = self.axes[axis].get("tied", ())
        if layer == "outer" and "outside" in tied:
            layer = 0
        return (
            axis,
            None if "models" in tied else model,
            None if "layers" in tied else layer,
            None if "modules" in tied else module,
        )

    def _start(self, gene: Gene, entry: Mapping) -> float:
        """Begin at `start`, or weights at one n-th and all else in the middle; off the bounds."""
        value = entry.get("start")
        if value is None and gene.axis == "weight":
            value = 1.0 / len(self.sources.models)
        return 0.5 if value is None else min(0.95, max(0.05, gene.unit(value)))

    def _name(self, gene: Gene) -> str:
        model = "" if gene.model is None else f" {self.sources.labels[gene.model]}"
        if gene.layer is None:
            where = " all layers"
        elif gene.layer == "outer":
            where = " outside the layers"
        elif self.smooth:
            where = f" knot {gene.layer}"
        else:
            first, last = self._spans()[gene.layer][0]
            where = f" layers {first}-{last - 1}"
        return f"{gene.axis}{model}{where}" + (f" {gene.module}" if gene.module else "")

    @classmethod
    def faults(
        cls, spec: Mapping[str, Any], labels: Sequence[str], base: bool, file: str
    ) -> list[Fault]:
        """Return what is wrong with a campaign's `space` mapping of this kind."""
        faults: list[Fault] = []

        def fault(key: str, wrong: str, mend: str) -> None:
            faults.append(Fault(file, f"space.{key}", wrong, mend))

        for key in spec:
            if key not in cls.keys:
                fault(str(key), f"unknown key '{key}'", nearest(str(key), cls.keys))
        groups = spec.get("layer_groups", 1)
        if not fits(groups, int) or groups < 1:
            fault("layer_groups", f"{groups!r} is not a whole number of at least 1", "write e.g. 4")
        if spec.get("dtype", DTYPES[0]) not in DTYPES:
            fault("dtype", f"{spec['dtype']!r} is no dtype", f"write one of {', '.join(DTYPES)}")
        modules = spec.get("module_groups", [])
        if not isinstance(modules, list) or not all(isinstance(m, str) and m for m in modules):
            fault(
                "module_groups",
                f"{modules!r} is not a list of substrings of tensor names",
                "write e.g. [self_attn, mlp]",
            )
        if not isinstance(spec.get("smooth", False), bool):
            fault("smooth", f"{spec['smooth']!r} is not true or false", "write true or false")
        methods = OPERATORS.all()
        method = spec.get("method")
        if not isinstance(method, str) or method not in methods:
            wrong = f"there is no merge method '{method}'" if "method" in spec else "is missing"
            fault("method", wrong, nearest(str(method), methods))
            return faults
        operator = methods[method]
        if operator.models and len(labels) != operator.models:
            wrong = f"{method} merges {operator.models} models; sources.models has {len(labels)}"
            fault("method", wrong, f"list {operator.models} models or take another method")
        if operator.needs_base and not base:
            fault("method", f"{method} needs a base", "write sources.base")
        options = spec.get("options") or {}
        if not isinstance(options, Mapping):
            fault("options", f"{options!r} is not a mapping", "write e.g. {normalize: true}")
            options = {}
        for name, value in options.items():
            if wrong := operator.option_fault(str(name), value):
                fault(f"options.{name}", *wrong)
        axes = spec.get("axes")
        if not isinstance(axes, Mapping) or not axes:
            fault(
                "axes",
                "is missing" if axes is None else "is not a mapping of axes",
                "write e.g. {weight: {low: 0.0, high: 1.5}}",
            )
            return faults
        for name, entry in axes.items():
            faults += axis_faults(str(name), entry, operator, file)
        for p in operator.parameters:
            if p.default is None and p.name not in axes:
                fault(f"axes.{p.name}", f"{method} needs it", "write {low: 0.0, high: 1.0}")
        if all(fits(entry, float) for entry in axes.values()):
            fault("axes", "nothing is searched", "give an axis {low: ..., high: ...}")
        return faults
