"""The choice space: several spaces side by side, and a gene that says which one is meant."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from evomerge.errors import Fault
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.search.axes import GeneRange
from evomerge.search.ingredients import Ingredients
from evomerge.search.spaces import PointSpace, SourceShapes, SpaceSection, space
from evomerge.search.spaces.parameters import ParametersSection, ParametersSpace
from evomerge.sections import option


class ChoiceSection(SpaceSection):
    """Parameter spaces to choose among.

    >>> each = {"kind": "parameters", "axes": {"weight": {"low": 0.0, "high": 1.0}}}
    >>> options = ChoiceSection(spaces=[{**each, "method": m} for m in ("linear", "ties")])
    >>> options.each
    'model'
    """

    kind: Literal["choice"] = "choice"
    spaces: list[ParametersSection] = option("two or more spaces of kind parameters", least=2)
    each: Literal["model", "group"] = option(
        "what chooses for itself: the whole model, or each group of layers and modules", "model"
    )

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        spaces = [space for space in fields.get("spaces", []) if space is not None]
        if len({space.dtype for space in spaces}) > 1:
            yield Fault("spaces", "differ in dtype", "write the same dtype in each, or in none")
        if fields.get("each") == "group" and len(spaces) > 1:
            yield from _group_faults(spaces)

    def faults(self, labels: Sequence[str], has_base: bool) -> Iterable[Fault]:
        for index, inner in enumerate(self.spaces):
            for fault in inner.faults(labels, has_base):
                yield fault.under(f"spaces.{index}")

    @property
    def needs_layers(self) -> bool:
        return self.each == "group" or any(inner.needs_layers for inner in self.spaces)

    def substrings(self) -> Iterable[tuple[str, str]]:
        for index, inner in enumerate(self.spaces):
            yield from ((f"spaces.{index}.{key}", part) for key, part in inner.substrings())

    def depth_faults(self, layers: int) -> Iterable[Fault]:
        for index, inner in enumerate(self.spaces):
            for fault in inner.depth_faults(layers):
                yield fault.under(f"spaces.{index}")

    def warnings(self) -> Iterable[str]:
        for inner in self.spaces:
            yield from inner.warnings()


@space(ChoiceSection)
class ChoiceSpace(PointSpace):
    """Genes choose among spaces, each of which has genes of its own after them.

    So a search can weigh merge methods against one another: by one gene for the whole model, or
    by one for each group of layers and modules (`each: group`), whose groups have to be the same
    in all spaces. The genes of what is not chosen wait for their turn; `levels` tells controllers
    that choices are no scale.

    >>> each = {"kind": "parameters", "axes": {"weight": {"low": 0.0, "high": 1.0, "tied":
    ...         ["layers", "models"]}}}
    >>> options = ChoiceSection(spaces=[{**each, "method": m} for m in ("linear", "ties")])
    >>> shapes = SourceShapes("b", ("x", "y"), ("x", "y"), layers=1, dtype="float32", seed=0)
    >>> ChoiceSpace(options, shapes).names
    ['choice', '1: weight all layers', '2: weight all layers']
    """

    weighs = True

    def __init__(self, options: ChoiceSection, shapes: SourceShapes):
        self.shapes = shapes
        self.spaces = [ParametersSpace(inner, shapes) for inner in options.spaces]
        self.dtype = self.spaces[0].dtype
        self._places = [""]  # what the choosing genes choose for
        if options.each == "group":
            groups = self.spaces[0].decode(self.spaces[0].start).groups
            self._places = [_place(g) for g in groups if not isinstance(g.layers, str)]
            # The parts outside the layers are one group, as they are for their coefficients.
            self._places.append("outside")
        ends = np.cumsum([len(self._places), *(s.dimension for s in self.spaces)])
        self._parts = [slice(a, b) for a, b in itertools.pairwise(ends)]

    @property
    def dimension(self) -> int:
        return int(self._parts[-1].stop)

    @property
    def representatives(self) -> list[Recipe]:
        """See `SearchSpace.representatives`.

        Where groups choose, a recipe has the options of all its methods: what one of them leaves
        at its default may then be given by another one's space.
        """
        given: dict[str, bool | float] = {}
        if len(self._places) > 1:
            for inner in self.spaces:
                given |= inner.options
        found: list[Recipe] = []
        for inner in self.spaces:
            first = inner.decode(inner.start)
            lent = [k for k in given if k in inner.method.prepares and k not in inner.options]
            for count in range(len(lent) + 1):
                for some in itertools.combinations(lent, count):
                    options = {**first.options, **{name: given[name] for name in some}}
                    found.append(replace(first, options=options))
        return found

    @property
    def names(self) -> list[str]:
        """One readable name per gene, e.g. `2: density all layers`."""
        inner = [f"{i + 1}: {n}" for i, s in enumerate(self.spaces) for n in s.names]
        return [*(f"choice {place}".rstrip() for place in self._places), *inner]

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each gene has; 0 for a gene that is continuous."""
        inner = [n for s in self.spaces for n in s.levels]
        return (*(len(self.spaces) for _ in self._places), *inner)

    @property
    def ranges(self) -> list[GeneRange]:
        """See `SearchSpace.ranges`; what is chosen is named by its number and its method."""
        labels = tuple(f"{n}: {s.method.name}" for n, s in enumerate(self.spaces, start=1))
        choices = [GeneRange(kind="choice", labels=labels) for _ in self._places]
        return [*choices, *(r for s in self.spaces for r in s.ranges)]

    @property
    def start(self) -> np.ndarray:
        first = np.full(len(self._places), 0.5 / len(self.spaces))
        return np.concatenate([first, *(s.start for s in self.spaces)])

    def ingredients(self) -> Ingredients | None:
        """See `SearchSpace.ingredients`: a model's genes are its weights in all spaces."""
        inner = [space.ingredients() for space in self.spaces]
        known = [each for each in inner if each is not None]
        if len(known) < len(inner):
            return None
        chosen = self.start[: len(self._places)]
        models = [np.tile(chosen, (len(self.shapes.models), 1)), *(each.alone for each in known)]
        nothing = np.concatenate([chosen, *(each.nothing for each in known)])
        adds_up = all(each.adds_up for each in known)
        return Ingredients(nothing, np.concatenate(models, axis=1), adds_up)

    def decode(self, genome: np.ndarray) -> ParametersRecipe:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""
        last = len(self.spaces) - 1
        chosen = [min(int(u * len(self.spaces)), last) for u in genome[: len(self._places)]]
        recipes = {i: self.spaces[i].decode(genome[self._parts[i]]) for i in set(chosen)}
        if len(recipes) == 1:
            return next(iter(recipes.values()))
        # groups of several methods: the first one's is the recipe's, others say their own
        first = recipes[chosen[0]]
        groups = []
        for index in range(len(first.groups)):
            recipe = recipes[chosen[min(index, len(chosen) - 1)]]
            own = recipe.method if recipe.method != first.method else None
            groups.append(replace(recipe.groups[index], method=own))
        seeds = [r.seed for r in recipes.values() if r.seed is not None]
        return replace(
            first,
            groups=tuple(groups),
            base=next((r.base for r in recipes.values() if r.base), None),
            seed=seeds[0] if seeds else None,
            options={k: v for i in sorted(recipes) for k, v in recipes[i].options.items()},
        )

    def encode(self, recipe: Recipe) -> np.ndarray:
        """Return a genome near `recipe`: of each group, in the first space with its method."""
        if not isinstance(recipe, ParametersRecipe):
            raise TypeError(f"a recipe of kind {recipe.kind} is no point of this space")
        genome = self.start.copy()
        methods = [s.method.name for s in self.spaces]
        own = [group.method or recipe.method for group in recipe.groups]
        for index in range(len(self._places)):
            # of a recipe over other groups, its own method all over
            method = own[index] if len(own) > len(self._places) else recipe.method
            chosen = methods.index(method) if method in methods else 0
            genome[index] = (chosen + 0.5) / len(self.spaces)
        for part, inner, method in zip(self._parts, self.spaces, methods, strict=True):
            if method not in own:
                continue
            groups = recipe.groups
            if len(recipe.methods) > 1:  # elsewhere this space stays at its start
                at_start = inner.decode(inner.start).groups
                rows = zip(recipe.groups, at_start, own, strict=True)
                groups = tuple(group if m == method else first for group, first, m in rows)
            alone = tuple(replace(g, method=None) for g in groups)
            genome[part] = inner.encode(replace(recipe, method=method, groups=alone))
        return genome


def _place(group: Group) -> str:
    assert isinstance(group.layers, tuple)
    first, last = group.layers
    return f"layers {first}-{last - 1}" + (f" {group.modules}" if group.modules else "")


def _group_faults(spaces: Sequence[ParametersSection]) -> Iterable[Fault]:
    """Return why groups of several spaces cannot take each other's place."""
    first = spaces[0]
    for key in ("layer_groups", "module_groups", "outside", "smooth"):
        values = [space.model_dump(include={key}) for space in spaces]
        if any(value != values[0] for value in values):
            mend = "with each: group write the same in every space"
            yield Fault(f"spaces.0.{key}", "differs between spaces", mend)
    if first.smooth:
        mend = "write layer_groups without smooth"
        yield Fault("spaces.0.smooth", "has knots instead of groups", mend)
    values_of: dict[str, set[bool | float]] = {}
    for inner in spaces:
        for name, value in inner.options.items():
            values_of.setdefault(name, set()).add(value)
    for name, values_given in values_of.items():
        if len(values_given) > 1:
            mend = "a merge has one value of it; write the same"
            yield Fault(f"spaces.0.options.{name}", "differs", mend)
    methods = [space.method for space in spaces]
    if len(set(methods)) < len(methods):
        yield Fault("spaces", "has a method twice", "with each: group list a method once")
