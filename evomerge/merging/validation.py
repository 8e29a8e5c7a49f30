"""A recipe against its method and its sources: what is missing, unknown or out of range."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from evomerge.errors import BadInput, CandidateFailure, Fault, Faults, nearest, placed
from evomerge.merging.methods import METHODS, MergeMethod
from evomerge.recipes.lineage import ExplicitRecipe
from evomerge.recipes.mixture import MixtureRecipe
from evomerge.recipes.parameter_index import ParameterIndex
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.sources.source import Source
from evomerge.tensor_names import place


def path_faults(recipe: RoutingRecipe, sources: Mapping[str, Source]) -> list[Fault]:
    """Return the hops whose layer is not there.

    Args:
        recipe: whose path it is.
        sources: by name.

    >>> from pathlib import Path
    >>> from evomerge.recipes.routing import Hop
    >>> empty = Source("a", Path("a"), {}, {}, {})
    >>> recipe = RoutingRecipe(("a",), (Hop(0, 3),), 0, "float32")
    >>> [str(fault) for fault in path_faults(recipe, {"a": empty})]
    ["path.0: 'a' has no layer 3; it has none"]
    """
    faults = []
    for index, hop in enumerate(recipe.path):
        source = sources[recipe.models[hop.model]]
        if hop.layer >= source.layers:
            wrong = f"'{source.name}' has no layer {hop.layer}"
            mend = f"write 0 to {source.layers - 1}" if source.layers else "it has none"
            faults.append(Fault(f"path.{index}", wrong, mend))
    return faults


def position_faults(recipe: Recipe, frame: Source) -> list[Fault]:
    """Return why positions in a recipe are not those of its models' parameters, if they are not.

    Args:
        recipe: of any kind; some have no positions.
        frame: one of its models.

    >>> from pathlib import Path
    >>> recipe = MixtureRecipe(("a",), (), "float32", "hash of another index")
    >>> [fault.key for fault in position_faults(recipe, Source("a", Path("a"), {}, {}, {}))]
    ['parameter_index_hash']
    """
    if not isinstance(recipe, MixtureRecipe | ExplicitRecipe):
        return []
    index = ParameterIndex({name: t.elements for name, t in frame.tensors.items()})
    if index.hash != recipe.parameter_index_hash:
        wrong = f"is not that of '{frame.name}': its tensors have other names or sizes"
        mend = "take the models that the recipe was made with"
        return [Fault("parameter_index_hash", wrong, mend)]
    if isinstance(recipe, MixtureRecipe):
        ends = {int(chromosome.edges[-1]) for chromosome in recipe.chromosomes}
        if ends == {index.total}:
            return []
        mend = f"end each chromosome at parameter {index.total}"
        return [Fault("chromosomes", "do not cover the parameters", mend)]
    parents = [parent for birth in recipe.births for parent in birth.parents]
    if any(isinstance(parent, str) for parent in parents):
        mend = "take the recipe.json that `evomerge export` writes"
        return [Fault("births", "names parents that are in an archive", mend)]
    return []


def by_method(recipe: ParametersRecipe) -> dict[str, ParametersRecipe]:
    """Part a recipe whose groups have methods of their own into recipes of one method each.

    Returns:
        Method -> the recipe of its groups, with the options that it knows.

    Raises:
        BadInput: there is no such method.

    >>> everything, mlp = {"weight": (1.0,)}, {"weight": (1.0,), "density": (0.2,)}
    >>> groups = Group(None, "mlp", mlp, "ties"), Group(None, None, everything)
    >>> parts = by_method(ParametersRecipe("linear", ("a",), groups, "base"))
    >>> {method: len(part.groups) for method, part in parts.items()}
    {'ties': 1, 'linear': 1}
    """
    if len(recipe.methods) == 1 and recipe.groups[0].method is None:
        return {recipe.method: recipe}
    parts = {}
    for name in recipe.methods:
        with placed("method"):
            method = METHODS.get(name)
        held = [group for group in recipe.groups if (group.method or recipe.method) == name]
        groups = tuple(replace(group, method=None) for group in held)
        options = {k: v for k, v in recipe.options.items() if k in method.options}
        parts[name] = replace(recipe, method=name, groups=groups, options=options)
    return parts


def check_methods(recipe: Recipe) -> None:
    """Check a recipe of any kind against the signatures of its methods.

    Raises:
        BadInput: with every fault.

    >>> check_methods(ParametersRecipe("linear", ("a",), (Group(None, None, {"weight": (1.0,)}),)))
    """
    if not isinstance(recipe, ParametersRecipe):
        return
    faults = Faults()
    known: dict[str, bool | float] = {}
    for name, part in by_method(recipe).items():
        with placed("method"):
            method = METHODS.get(name)
        held = [i for i, g in enumerate(recipe.groups) if (g.method or recipe.method) == name]
        faults.extend(_faults(part, method, held))
        known |= method.options
    if len(recipe.methods) > 1:  # of which each is shown the options that it knows alone
        for name in recipe.options:
            if name not in known:
                wrong = f"none of the recipe's methods has an option '{name}'"
                faults.add(f"options.{name}", wrong, nearest(name, known))
    faults.check()


def method_of(recipe: ParametersRecipe) -> MergeMethod:
    """Check a recipe of one method against its signature and return the method.

    Raises:
        BadInput: with every fault.

    >>> method_of(ParametersRecipe("ties", ("a",), (Group(None, None, {"weight": (1.0,)}),)))
    Traceback (most recent call last):
    evomerge.errors.BadInput: base: ties needs a base; write the common ancestor's directory or id
    """
    with placed("method"):
        method = METHODS.get(recipe.method)
    faults = list(_faults(recipe, method, range(len(recipe.groups))))
    if faults:
        raise BadInput(*faults)
    return method


def _faults(
    recipe: ParametersRecipe, method: MergeMethod, places: Sequence[int]
) -> Iterator[Fault]:
    """Yield what is wrong with a recipe of one method, whose groups stand at `places`."""
    if method.needs_base and recipe.base is None:
        mend = "write the common ancestor's directory or id"
        yield Fault("base", f"{method.name} needs a base", mend)
    if method.models and len(recipe.models) != method.models:
        wrong = f"{method.name} merges {method.models} models, not {len(recipe.models)}"
        yield Fault("models", wrong, f"list {method.models}")
    if method.draws and recipe.seed is None:
        yield Fault("seed", f"{method.name} draws random masks", "write a whole number")
    for name, value in recipe.options.items():
        if wrong_and_mend := method.option_fault(name, value):
            yield Fault(f"options.{name}", *wrong_and_mend)
    for index, group in zip(places, recipe.groups, strict=True):
        for fault in _value_faults(group, method, len(recipe.models)):
            yield fault.under(f"groups.{index}")


def _value_faults(group: Group, method: MergeMethod, models: int) -> Iterator[Fault]:
    for name, value in group.values.items():
        if name not in method.parameter:
            yield Fault(name, f"{method.name} has no '{name}'", nearest(name, method.parameter))
            continue
        axis = method.parameter[name].axis
        if axis.per_model:
            wanted = f"a list of {models} numbers, one per model"
            fits = isinstance(value, tuple) and len(value) == models
        else:
            wanted = "a number"
            fits = not isinstance(value, tuple)
        if not fits:
            yield Fault(name, f"{value!r} is not {wanted}", f"write {wanted}")
        elif not all(axis.low <= v <= axis.high for v in np.atleast_1d(value)):
            mend = f"stay within {axis.low:g} to {axis.high:g}"
            yield Fault(name, f"{value!r} is out of range", mend)
    for parameter in method.parameters:
        if parameter.default is None and parameter.name not in group.values:
            yield Fault(parameter.name, "is missing", f"{method.name} needs it in every group")


_EVIDENCE = {"inputs": ("texts", "inputs"), "curvature": ("texts", "moments"), "texts": ("texts",)}


def check_evidence_of(
    method: MergeMethod, sources: Mapping[str, Source], models: Sequence[str]
) -> None:
    """Check that what a method reads of its models, beside their weights, is known.

    Raises:
        BadInput: naming each model of which it is not.

    >>> from pathlib import Path
    >>> bare = Source("models/ja", Path("ja"), {}, {}, {})
    >>> check_evidence_of(METHODS.get("regmean"), {"ja": bare}, ["ja"])
    Traceback (most recent call last):
    evomerge.errors.BadInput: regmean reads texts or inputs of 'models/ja'; \
write {model: models/ja, texts: FILE}
    """
    if not method.reads:
        return
    faults = Faults()
    kinds = _EVIDENCE[method.reads]
    for name in models:
        source = sources[name]
        if not set(kinds) & set(source.evidence.files):
            wrong = f"{method.name} reads {' or '.join(kinds)} of '{source.name}'"
            faults.add("", wrong, f"write {{model: {source.name}, texts: FILE}}")
    faults.check()


def values_in(recipe: ParametersRecipe, method: MergeMethod, group: Group) -> dict[str, object]:
    """Return a method's arguments in a group: float64 arrays, floats, and the recipe's options.

    >>> group = Group(None, None, {"weight": (1.0, 0.5)})
    >>> recipe = ParametersRecipe("task_arithmetic", ("a", "b"), (group,), "base")
    >>> values_in(recipe, METHODS.get("task_arithmetic"), group)
    {'weight': array([1. , 0.5]), 'scale': 1.0}
    """
    values: dict[str, object] = {}
    for parameter in method.parameters:
        value = group.values.get(parameter.name, parameter.default)
        if parameter.axis.per_model:
            values[parameter.name] = np.full(len(recipe.models), value, np.float64)
        else:
            assert isinstance(value, int | float), "whoever merges asks `method_of` first"
            values[parameter.name] = float(value)
    for name, option in recipe.options.items():
        if name not in method.prepares:
            values[name] = option
    return values


def group_index(recipe: ParametersRecipe, name: str) -> int:
    """Return which is the first group of a recipe that holds the tensor `name`.

    Raises:
        CandidateFailure: none does.

    >>> groups = Group("embed", None, {"weight": (1.0,)}), Group(None, None, {"weight": (0.5,)})
    >>> group_index(ParametersRecipe("linear", ("a",), groups), "model.norm.weight")
    1
    """
    where = place(name)
    for index, group in enumerate(recipe.groups):
        if group.holds(name, where):
            return index
    raise CandidateFailure(f"no group of the recipe holds tensor {name}")
