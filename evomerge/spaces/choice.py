"""The choice space: several spaces side by side, and a gene that says which one is meant."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.errors import Fault, nearest
from evomerge.recipe import Recipe
from evomerge.spaces import SPACES, Sources, space


@space("choice")
class ChoiceSpace:
    """The first gene chooses, each space has genes of its own after it.

    So a search can weigh merge methods against one another. The genes of spaces that are not
    chosen wait for their turn; `levels` tells controllers that the first gene is no scale.
    """

    def __init__(self, spec: Mapping[str, Any], sources: Sources):
        self.spaces = [SPACES.get(s["kind"])(s, sources) for s in spec["spaces"]]
        ends = np.cumsum([1, *(s.dimension for s in self.spaces)])
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
        return ["choice", *inner]

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each gene has; 0 for a gene that is continuous."""
        inner = [n for s in self.spaces for n in s.levels]
        return (len(self.spaces), *inner)

    @property
    def start(self) -> np.ndarray:
        return np.concatenate([[0.5 / len(self.spaces)], *(s.start for s in self.spaces)])

    @property
    def first(self) -> Recipe:
        """Where a search may begin, as a recipe."""
        return self.decode(self.start)

    def decode(self, genome: np.ndarray) -> Recipe:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""
        chosen = min(int(genome[0] * len(self.spaces)), len(self.spaces) - 1)
        return self.spaces[chosen].decode(genome[self._parts[chosen]])

    def encode(self, recipe: Recipe) -> np.ndarray:
        """Return a genome near `recipe`: in the first space that decodes to its method."""
        genome = self.start.copy()
        methods = [s.first.method for s in self.spaces]
        chosen = methods.index(recipe.method) if recipe.method in methods else 0
        genome[0] = (chosen + 0.5) / len(self.spaces)
        genome[self._parts[chosen]] = self.spaces[chosen].encode(recipe)
        return genome

    @classmethod
    def faults(
        cls, spec: Mapping[str, Any], labels: Sequence[str], base: bool, file: str
    ) -> list[Fault]:
        """Return what is wrong with a campaign's `space` mapping of this kind."""
        faults = [
            Fault(file, f"space.{k}", f"unknown key '{k}'", nearest(str(k), ("kind", "spaces")))
            for k in spec
            if k not in ("kind", "spaces")
        ]
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
        return faults
