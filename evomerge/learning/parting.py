"""Which tensors share a coefficient: all, those of a layer, of a part of it, or each by itself."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.tensor_names import place, within_layer

By = Literal["model", "layer", "module", "tensor"]

_Cell = tuple[tuple[int, int] | str | None, str | None]  # a recipe's group: its layers, its modules


@dataclass(frozen=True)
class Parting:
    """Tensors parted into cells that have one coefficient for each model.

    Attributes:
        cells: (layers, modules) of each, as a recipe's groups have them.
        row: tensor name -> its cell's index.

    >>> parting = parted(["wte.weight", "h.0.attn.w", "h.0.mlp.w", "h.1.mlp.w"], "layer")
    >>> parting.cells
    (('embed', None), ((0, 1), None), ((1, 2), None))
    >>> parting.row["h.1.mlp.w"]
    2
    """

    cells: tuple[_Cell, ...]
    row: Mapping[str, int]

    def recipe(
        self, coefficients: np.ndarray, models: Sequence[str], base: str, dtype: str
    ) -> ParametersRecipe:
        """Return the recipe W_0 + sum_i c_i (W_i - W_0) with the coefficients of the cells.

        Args:
            coefficients: (cells, models) float64.
            models, base, dtype: of the recipe.

        Raises:
            ValueError: tensors' names are such that substrings cannot tell the cells apart.

        >>> parting = parted(["h.0.attn.w", "h.0.mlp.w"], "model")
        >>> parting.recipe(np.array([[0.25, 0.5]]), ("a", "b"), "base", "float32").groups[0].values
        {'weight': (0.25, 0.5)}
        """
        # A tensor is of the first group that holds it: the longer of two substrings goes first.
        order = sorted(range(len(self.cells)), key=lambda n: -len(self.cells[n][1] or ""))
        groups = []
        for n in order:
            weight = tuple(float(c) for c in coefficients[n])
            groups.append(Group(*self.cells[n], {"weight": weight}))
        for name, row in self.row.items():
            where = place(name)
            holding = next(i for i, group in enumerate(groups) if group.holds(name, where))
            if order[holding] != row:
                raise ValueError(f"{name} is in the group of {groups[holding].modules}")
        return ParametersRecipe("task_arithmetic", tuple(models), tuple(groups), base, dtype)


def parted(names: Iterable[str], by: By, finer: Collection[int] = ()) -> Parting:
    """Return tensors parted; those outside the layers are three cells more, unless by model.

    Args:
        names: of tensors.
        by: "model", one cell; "layer"; "module": what a layer consists of, such as `self_attn` and
            `mlp`; "tensor", each of a layer's by itself.
        finer: layers that are parted by tensor, whatever `by` says.

    >>> len(parted(["h.0.attn.q.w", "h.0.attn.k.w", "h.1.attn.q.w"], "module", finer=[0]).cells)
    3
    """
    cells: dict[_Cell, int] = {}
    row = {}
    for name in names:
        row[name] = cells.setdefault(_cell(name, by, finer), len(cells))
    return Parting(tuple(cells), row)


def _cell(name: str, by: By, finer: Collection[int]) -> _Cell:
    if by == "model":
        return None, None
    where = place(name)
    if where.layer is None:
        return where.part, None
    layers = (where.layer, where.layer + 1)
    if by == "tensor" or where.layer in finer:
        return layers, within_layer(name)
    return layers, within_layer(name).partition(".")[0] if by == "module" else None


def coarsened(
    recipe: ParametersRecipe, learned: ParametersRecipe, elements: Mapping[str, int]
) -> ParametersRecipe:
    """Return `recipe` with learned weights in its groups: of each, the mean over its elements.

    Args:
        recipe: any that has one weight a model, over groups of its own.
        learned: of task arithmetic; its groups may be finer.
        elements: tensor name -> how many it has.

    >>> names = {"h.0.w": 1, "h.1.w": 3}
    >>> fine = parted(names, "layer").recipe(np.array([[1.0], [0.0]]), ("a",), "base", "float32")
    >>> coarse = parted(names, "model").recipe(np.zeros((1, 1)), ("a",), "base", "float32")
    >>> coarsened(coarse, fine, names).groups[0].values
    {'weight': (0.25,)}
    """
    sums = np.zeros((len(recipe.groups), len(recipe.models)))
    totals = np.zeros(len(recipe.groups))
    for name, count in elements.items():
        where = place(name)
        own = next((i for i, g in enumerate(recipe.groups) if g.holds(name, where)), None)
        theirs = next((g for g in learned.groups if g.holds(name, where)), None)
        if own is None or theirs is None:
            continue
        values = theirs.values["weight"]
        assert isinstance(values, tuple)  # of task arithmetic: one a model
        weights = dict(zip(learned.models, values, strict=True))
        sums[own] += count * np.array([weights.get(model, 0.0) for model in recipe.models])
        totals[own] += count
    groups = []
    for group, held, total in zip(recipe.groups, sums, totals, strict=True):
        if total:  # else no tensor shows its values
            mean = tuple(float(w) for w in held / total)
            group = replace(group, values={**group.values, "weight": mean})
        groups.append(group)
    return replace(recipe, groups=tuple(groups))
