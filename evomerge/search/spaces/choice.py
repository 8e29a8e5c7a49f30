"""The choice space: several spaces side by side, and a gene that says which one is meant."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.errors import Fault, nearest
from evomerge.recipes.parameters import Group, Recipe
from evomerge.search.spaces import SPACES, Sources, space


@space("choice")
class ChoiceSpace:
    """Genes choose among spaces, each of which has genes of its own after them.

    So a search can weigh merge methods against one another: by one gene for the whole model, or
    by one for each group of layers and modules (`each: group`), whose groups have to be the same
    in all spaces. The genes of what is not chosen wait for their turn; `levels` tells controllers
    that choices are no scale.
    """

    keys = ("kind", "spaces", "each")

    def __init__(self, spec: Mapping[str, Any], sources: Sources):
        self.spaces = [SPACES.get(s["kind"])(s, sources) for s in spec["spaces"]]
        self._grouped = spec.get("each", "model") == "group"
        groups = self.spaces[0].first.groups
        # The parts outside the layers are one group, as they are for their coefficients.
        inside = [g for g in groups if not isinstance(g.layers, str)]
        self._places = [_place(g) for g in inside] + ["outside"] if self._grouped else [""]
        ends = np.cumsum([len(self._places), *(s.dimension for s in self.spaces)])
        self._parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        self._sources = sources

    @property
    def sources(self) -> Sources:
        return self._sources

    @sources.setter
    def sources(self, sources: Sources) -> None:
        self._sources = sources
        for inner in self.spaces:
            inner.sources = sources

    @property
    def dtype(self) -> str:
        return self.spaces[0].dtype

    @property
    def dimension(self) -> int:
        return int(self._parts[-1].stop)

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
    def start(self) -> np.ndarray:
        first = np.full(len(self._places), 0.5 / len(self.spaces))
        return np.concatenate([first, *(s.start for s in self.spaces)])

    @property
    def first(self) -> Recipe:
        """Where a search may begin, as a recipe."""
        return self.decode(self.start)

    def decode(self, genome: np.ndarray) -> Recipe:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""
        last = len(self.spaces) - 1
        chosen = [min(int(u * len(self.spaces)), last) for u in genome[: len(self._places)]]
        recipes = {i: self.spaces[i].decode(genome[self._parts[i]]) for i in set(chosen)}
        if len(recipes) == 1:
            return next(iter(recipes.values()))
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
        genome = self.start.copy()
        methods = [s.first.method for s in self.spaces]
        mine = [g.method or recipe.method for g in recipe.groups]
        for index in range(len(self._places)):
            # of a recipe over other groups, its own method all over
            method = mine[index] if len(mine) > len(self._places) else recipe.method
            chosen = methods.index(method) if method in methods else 0
            genome[index] = (chosen + 0.5) / len(self.spaces)
        for part, inner, method in zip(self._parts, self.spaces, methods, strict=True):
            if method not in mine:
                continue
            groups = recipe.groups
            if len(recipe.methods) > 1:  # elsewhere this space stays at its start
                rows = zip(recipe.groups, inner.first.groups, mine, strict=True)
                groups = tuple(group if m == method else first for group, first, m in rows)
            alone = tuple(replace(g, method=None) for g in groups)
            genome[part] = inner.encode(replace(recipe, method=method, groups=alone))
        return genome

    @classmethod
    def faults(
        cls, spec: Mapping[str, Any], labels: Sequence[str], base: bool, file: str
    ) -> list[Fault]:
        """Return what is wrong with a campaign's `space` mapping of this kind."""
        faults = [
            Fault(file, f"space.{k}", f"unknown key '{k}'", nearest(str(k), cls.keys))
            for k in spec
            if k not in cls.keys
        ]
        each = spec.get("each", "model")
        if each not in ("model", "group"):
            wrong = f"{each!r} is nothing to choose for"
            faults.append(Fault(file, "space.each", wrong, "write model or group"))
        listed = spec.get("spaces")
        if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) < 2:
            wrong = "is missing" if "spaces" not in spec else "is not a list of two or more"
            mend = "list spaces, each {kind: parameters, ...}"
            return [*faults, Fault(file, "space.spaces", wrong, mend)]
        kinds = {k: s for k, s in SPACES.all().items() if s.weighs and k != "choice"}
        for index, inner in enumerate(listed):
            key = f"space.spaces.{index}"
            kind = inner.get("kind") if isinstance(inner, Mapping) else None
            if not isinstance(kind, str) or kind not in kinds:
                wrong = f"there is no such space to choose, '{kind}'"
                faults.append(Fault(file, f"{key}.kind", wrong, nearest(str(kind), kinds)))
                continue
            found = kinds[kind].faults(inner, labels, base, file)
            faults += [replace(f, key=f.key.replace("space", key, 1)) for f in found]
        if len({s.get("dtype") for s in listed if isinstance(s, Mapping)}) > 1:
            mend = "write the same dtype in each, or in none"
            faults.append(Fault(file, "space.spaces", "differ in dtype", mend))
        return faults + (_group_faults(listed, file) if each == "group" and not faults else [])


def _place(group: Group) -> str:
    first, last = group.layers
    return f"layers {first}-{last - 1}" + (f" {group.modules}" if group.modules else "")


def _group_faults(spaces: Sequence[Mapping[str, Any]], file: str) -> list[Fault]:
    """Return why groups of several spaces cannot take each other's place."""
    faults = []
    for key in ("layer_groups", "module_groups", "smooth"):
        if any(s.get(key) != spaces[0].get(key) for s in spaces):
            mend = "with each: group write the same in every space"
            faults.append(Fault(file, f"space.spaces.0.{key}", "differs between spaces", mend))
    if spaces[0].get("smooth"):
        mend = "write layer_groups without smooth"
        faults.append(Fault(file, "space.spaces.0.smooth", "has knots instead of groups", mend))
    options = [item for s in spaces for item in (s.get("options") or {}).items()]
    for key in dict(options):
        if len({repr(value) for name, value in options if name == key}) > 1:
            mend = "a merge has one value of it; write the same"
            faults.append(Fault(file, f"space.spaces.0.options.{key}", "differs", mend))
    methods = [s.get("method") for s in spaces]
    if len(set(methods)) < len(methods):
        wrong, mend = "has a method twice", "with each: group list a method once"
        faults.append(Fault(file, "space.spaces", wrong, mend))
    return faults
