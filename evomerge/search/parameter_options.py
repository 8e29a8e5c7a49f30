"""The options of the parameter space, and what they ask of one another and of the models."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from evomerge.dtypes import Dtype
from evomerge.errors import BadInput, Fault, Faults, nearest
from evomerge.merging.methods import METHODS
from evomerge.search.axes import AxisSection, axis_faults
from evomerge.search.group_bounds import BoundSection, bound_faults, narrowed, overlap_faults
from evomerge.search.group_names import OUTER, Spot, layer_faults, read_names
from evomerge.search.spaces import SpaceSection
from evomerge.sections import Flag, Number, Text, Whole, one_of, option


def _axis_or_number(value: Any) -> str:
    return "axis" if isinstance(value, Mapping | AxisSection) else "number"


def _range_or_number(value: Any) -> str:
    return "range" if isinstance(value, Mapping | BoundSection) else "number"


def _flag_or_number(value: Any) -> str:
    return "flag" if isinstance(value, bool) else "number"


if TYPE_CHECKING:
    _Axis = AxisSection | float
    _Bound = BoundSection | float
    _Option = bool | float
else:
    _Axis = one_of({"axis": AxisSection, "number": Number}, _axis_or_number)
    _Bound = one_of({"range": BoundSection, "number": Number}, _range_or_number)
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
        " more group, or as `outside` says",
        1,
        ge=1,
    )
    module_groups: list[Text] = option(
        "substrings of tensor names with values of their own, or blocks of image models (IN04, MID,"
        " OUT00-OUT02, DOUBLE07, SINGLE12, BLOCK03); the other tensors are one more group",
        factory=list,
        example=["self_attn", "mlp"],
    )
    outside: Literal["own", "first", "nearest"] = option(
        "where the tensors outside the layers belong: to a group of their own, without module"
        " groups; to the first group; or to the nearest, embeddings to the first and the final norm"
        " and the head to the last",
        "own",
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
    groups: dict[Text, dict[Text, _Bound]] = option(
        "axes that are fixed, by a number, or have a range of their own in single groups, which are"
        " called as their genes are: a model, layers FIRST-LAST, `outside the layers`, a part of"
        " tensor names, or several of these",
        factory=dict,
        example={"layers 0-3": {"weight": 0.0}, "ja mlp": {"weight": {"high": 0.5}}},
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
        groups: dict[str, dict[str, BoundSection | float]] = fields.get("groups", {})
        for name, bounds in groups.items():
            for key, bound in bounds.items():
                under = f"groups.{name}.{key}"
                if key in axes and key in method.parameter:
                    sense = method.parameter[key].axis
                    faults.extend(bound_faults(axes[key], bound, sense), under)
                elif key not in axes:
                    mend = nearest(key, axes)
                    if key in method.parameter:
                        mend = f"write axes.{key} too: what holds elsewhere"
                    faults.add(under, f"there is no '{key}' among the axes", mend)
        entries = [*axes.values(), *itertools.chain(*(b.values() for b in groups.values()))]
        if not any(isinstance(entry, AxisSection | BoundSection) for entry in entries):
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
        for fault in self._group_faults(labels):
            yield fault.under("groups")

    def _group_faults(self, labels: Sequence[str]) -> Iterable[Fault]:
        """Return which groups are none, contradict one another, or bound a part of a gene."""
        knots = self.layer_groups if self.smooth else None
        try:
            names = read_names(self.groups, labels, self.module_groups, knots)
        except BadInput as error:
            yield from error.faults
            return
        # Between two layers where a group begins or ends all have the same values: one stands for
        # them. How many layers there are is not known here.
        layers = set(range(knots)) if knots else {0}
        for name in names.values():
            if isinstance(name.where, tuple):
                layers |= set(name.where)
        if knots:
            layers -= {knots}
        for axis, entry in self.axes.items():
            per_model = METHODS.get(self.method).parameter[axis].axis.per_model
            models = tuple(labels) if per_model else (None,)
            modules = (*self.module_groups, None)
            spots = [Spot(n, m, label) for n in sorted(layers) for m in modules for label in models]
            if self.outside == "own":
                spots += [Spot(OUTER, None, label) for label in models]
            bounds = {names[n]: own[axis] for n, own in self.groups.items() if axis in own}
            yield from overlap_faults(axis, entry, bounds, spots)

    @property
    def needs_layers(self) -> bool:
        return self.layer_groups > 1 or self.smooth

    def substrings(self) -> Iterable[tuple[str, str]]:
        return [("module_groups", part) for part in self.module_groups]

    def depth_faults(self, layers: int) -> Iterable[Fault]:
        if self.layer_groups > layers:
            wrong = f"{self.layer_groups} are more than the {layers} layers of the models"
            yield Fault("layer_groups", wrong, f"write 1 to {layers}")
        elif not self.smooth:
            for fault in layer_faults(self.groups, group_edges(layers, self.layer_groups)):
                yield fault.under("groups")

    def warnings(self) -> Iterable[str]:
        for name, axis in self.axes.items():
            if isinstance(axis, AxisSection):
                yield from _start_warning(f"axis {name}", axis)
        for group, bounds in self.groups.items():
            for name, bound in bounds.items():
                own = narrowed(self.axes[name], bound)
                if isinstance(own, AxisSection) and own.start != _start_of(self.axes[name]):
                    yield from _start_warning(f"axis {name} in {group}", own)


def _start_of(entry: AxisSection | float) -> float | None:
    return entry.start if isinstance(entry, AxisSection) else None


def _start_warning(what: str, axis: AxisSection) -> Iterable[str]:
    if axis.start is not None and not axis.low <= axis.start <= axis.high:
        yield f"{what}: start {axis.start} is not within {axis.low} to {axis.high}"


def group_edges(layers: int, groups: int) -> list[int]:
    """Return the first layer of each group, and the number of layers.

    >>> group_edges(6, 4)
    [0, 2, 3, 4, 6]
    """
    return [round(k * layers / groups) for k in range(groups + 1)]
