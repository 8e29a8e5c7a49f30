"""A recipe against the signature of its method: what is missing, unknown or out of range."""

from collections.abc import Iterator

import numpy as np

from evomerge.errors import BadInput, Fault, nearest
from evomerge.operators import OPERATORS, Operator
from evomerge.recipe import Group, Recipe


def method_of(recipe: Recipe, file: str = "recipe") -> Operator:
    """Check a recipe against its method's signature and return the method.

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
