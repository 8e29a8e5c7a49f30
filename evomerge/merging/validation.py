"""A recipe against the signature of its method: what is missing, unknown or out of range."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.errors import BadInput, CandidateFailure, Fault, nearest
from evomerge.merging.methods import OPERATORS, Operator
from evomerge.recipes.mixture import Layout
from evomerge.recipes.parameters import Group, Recipe
from evomerge.recipes.routing import Routing
from evomerge.sources.source import Source
from evomerge.tensor_names import place


def path_faults(recipe: Routing, sources: Mapping[str, Source], file: str) -> list[Fault]:
    """Return the hops whose layer is not there."""
    faults = []
    for index, hop in enumerate(recipe.path):
        source = sources[recipe.models[hop.model]]
        if hop.layer >= source.layers:
            wrong = f"'{source.name}' has no layer {hop.layer}"
            mend = f"write 0 to {source.layers - 1}"
            faults.append(Fault(file, f"path.{index}", wrong, mend))
    return faults


def layout_faults(recipe: Any, frame: Source, file: str) -> list[Fault]:
    """Return why positions in a recipe are not those of its models' parameters, if they are not."""
    if recipe.kind in ("parameters", "routing"):
        return []
    layout = Layout({n: t.elements for n, t in frame.tensors.items()})
    if layout.hash != recipe.layout:
        wrong = f"is not that of '{frame.name}': its tensors have other names or sizes"
        return [Fault(file, "layout", wrong, "take the models that the recipe was made with")]
    if recipe.kind == "mixture":
        ends = {int(c.edges[-1]) for c in recipe.chromosomes}
        fits = ends == {layout.total}
        mend = f"end each chromosome at parameter {layout.total}"
        return [] if fits else [Fault(file, "chromosomes", "do not cover the parameters", mend)]
    if any(isinstance(p, str) for birth in recipe.births for p in birth.parents):
        mend = "take the recipe.json that `evomerge export` writes"
        return [Fault(file, "births", "names parents that are in an archive", mend)]
    return []


def by_method(recipe: Recipe, file: str = "recipe") -> dict[str, Recipe]:
    """Part a recipe whose groups have methods of their own into recipes of one method each.

    Returns:
        Method -> the recipe of its groups, with the options that it knows.

    Raises:
        BadInput: there is no such method.
    """
    if len(recipe.methods) == 1 and recipe.groups[0].method is None:
        return {recipe.method: recipe}
    parts = {}
    for method in recipe.methods:
        operator = OPERATORS.get(method, file, "method")
        mine = [g for g in recipe.groups if (g.method or recipe.method) == method]
        groups = tuple(replace(g, method=None) for g in mine)
        options = {k: v for k, v in recipe.options.items() if k in operator.options}
        parts[method] = replace(recipe, method=method, groups=groups, options=options)
    return parts


def check_methods(recipe: Any, file: str = "recipe") -> None:
    """Check a recipe of any kind against the signatures of its methods.

    Raises:
        BadInput: with every fault.
    """
    if recipe.kind != "parameters":
        return
    for part in by_method(recipe, file).values():
        method_of(part, file)


def method_of(recipe: Recipe, file: str = "recipe") -> Operator:
    """Check a recipe of one method against its signature and return the method.

    Raises:
        BadInput: with every fault.
    """
    if recipe.kind != "parameters":
        return OPERATORS.get("linear")
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
        if wrong := operator.option_fault(name, value):
            fault(f"options.{name}", *wrong)
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


def values_in(recipe: Recipe, operator: Operator, group: Group) -> dict[str, Any]:
    """Return a method's arguments in a group: float64 arrays, floats, and the recipe's options."""
    values: dict[str, Any] = {}
    for p in operator.parameters:
        value = group.values.get(p.name, p.default)
        per_model = np.full(len(recipe.models), value, float) if p.axis.per_model else None
        values[p.name] = float(value) if per_model is None else per_model
    return values | {k: v for k, v in recipe.options.items() if k not in operator.prepares}


def group_of(recipe: Recipe, name: str) -> Group:
    """Return the first group of `recipe` that holds the tensor `name`."""
    where = place(name)
    for group in recipe.groups:
        if group.holds(name, where):
            return group
    raise CandidateFailure(f"no group of the recipe holds tensor {name}")
