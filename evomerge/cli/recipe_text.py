"""Recipes as text: what `evomerge show` prints of them, by kind."""

import json
import string
from pathlib import Path

from rich.console import Console

from evomerge.cli.console import Cell, table
from evomerge.recipes.lineage import ExplicitRecipe
from evomerge.recipes.mixture import MixtureRecipe
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe

_LONG = ("groups", "chromosomes", "births", "path")  # of a recipe: shown as a table


def recipe_text(recipe: Recipe, console: Console | None = None) -> str:
    """Return a recipe as text: what it has once in a line of JSON, the rest as a table.

    >>> from evomerge.recipes.parameters import single
    >>> print(recipe_text(single("models/ja", "bfloat16")))
    {"version": 1, ..."method": "linear"...}
    <BLANKLINE>
    layers  modules  weight: ja
    ---------------------------
    all     rest     1.000
    """
    head = {key: value for key, value in recipe.to_json().items() if key not in _LONG}
    match recipe:
        case MixtureRecipe():
            text = _segments(recipe, console)
        case ExplicitRecipe():
            text = _births(recipe, console)
        case RoutingRecipe():
            text = route(recipe, console)
        case ParametersRecipe():
            text = _groups(recipe, console)
        case _:
            text = json.dumps(recipe.to_json())
    return f"{json.dumps(head)}\n\n{text}"


def _groups(recipe: ParametersRecipe, console: Console | None) -> str:
    models = " ".join(Path(name).name for name in recipe.models)
    several = len(recipe.methods) > 1
    names = list(dict.fromkeys(name for group in recipe.groups for name in group.values))
    headers = ["layers", "modules", *(["method"] if several else [])]
    for name in names:
        first = next(group.values[name] for group in recipe.groups if name in group.values)
        headers.append(f"{name}: {models}" if isinstance(first, tuple) else name)
    body = []
    for group in recipe.groups:
        layers = group.layers or "all"
        if isinstance(layers, tuple):
            layers = f"{layers[0]}-{layers[1] - 1}"
        cells: list[Cell] = [layers, group.modules or "rest"]
        if several:
            cells.append(group.method or recipe.method)
        cells += [_numbers(group.values[n]) if n in group.values else "" for n in names]
        body.append(cells)
    return table(headers, body, console)


def _segments(recipe: MixtureRecipe, console: Console | None) -> str:
    body: list[list[Cell]] = []
    for chromosome in recipe.chromosomes:
        edges = chromosome.edges.tolist()
        rows = chromosome.coefficients.tolist()
        for first, end, coefficients in zip(edges[:-1], edges[1:], rows, strict=True):
            modules = chromosome.modules or "rest"
            body.append([modules, first, end - 1, _numbers(tuple(coefficients))])
    return table(["modules", "from parameter", "to", "of each model"], body, console)


def _births(recipe: ExplicitRecipe, console: Console | None) -> str:
    body: list[list[Cell]] = []
    for parents, *rest in recipe.births:
        body.append([" ".join(str(parent)[:12] for parent in parents), *rest])
    return table(["of recipes", "mix", "split at", "sigma", "seed"], body, console)


def route(recipe: RoutingRecipe, console: Console | None = None) -> str:
    """Return a path as a picture: hops from left to right, layers from below, a letter a model.

    Under it the gains of runs of hops, as what the branches are multiplied by.

    >>> from evomerge.recipes.routing import whole
    >>> print(route(whole("models/ja", 2, "bfloat16")))
    a = models/ja
      1 .a
      0 a.
    <BLANKLINE>
       from hop  to  attention  MLP
    ---------------------------------
    a         0   1  1.000      1.000
    """
    letters = {model: string.ascii_letters[i % 52] for i, model in enumerate(recipe.models)}
    marks = [letters[recipe.models[hop.model]] for hop in recipe.path]
    lines = [f"{letter} = {model}" for model, letter in letters.items()]
    for layer in range(max(hop.layer for hop in recipe.path), -1, -1):
        pairs = zip(marks, recipe.path, strict=True)
        lines.append(f"{layer:3} " + "".join(m if h.layer == layer else "." for m, h in pairs))
    fold = recipe.fold()
    body: list[list[Cell]] = []  # runs of hops alike: letter, first hop, last hop, gains
    for index, (mark, by) in enumerate(zip(marks, fold.hops, strict=True)):
        gains = [f"{gain / fold.embed:.3f}" for gain in by[:2]]
        if body and body[-1][0] == mark and body[-1][3:] == gains:
            body[-1][2] = index
        else:
            body.append([mark, index, index, *gains])
    headers = ["", "from hop", "to", "attention", "MLP"]
    return "\n".join([*lines, "", table(headers, body, console)])


def _numbers(value: float | tuple[float, ...]) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{number:.3f}" for number in values)
