"""The weights of explicit individuals, grown again from their lineage."""

import collections
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.recipes.lineage import Birth, Explicit
from evomerge.recipes.mixture import interpolated

_KEPT_BYTES = 1 << 28


def born(a: np.ndarray, b: np.ndarray, birth: Birth, slerp: bool) -> np.ndarray:
    """Return a child's weights, (parameters,) float32, from those of its parents."""
    angle = 0.0
    if slerp and a is not b:
        # sums, not products of vectors, which a BLAS would add up in an order of its own
        x, y = a.astype(np.float64), b.astype(np.float64)
        norms = np.sqrt((x * x).sum() * (y * y).sum())
        angle = float(np.arccos(np.clip((x * y).sum() / norms, -1.0, 1.0))) if norms else 0.0
    child = np.empty_like(a)
    for side, mix in (
        (slice(None, birth.split), birth.mix),
        (slice(birth.split, None), 1 - birth.mix),
    ):
        of_a, of_b = map(np.float32, interpolated(mix, angle))
        child[side] = of_a * a[side] + of_b * b[side] + np.float32(0.0)  # no zero is negative
    if birth.sigma:
        rng = np.random.Generator(np.random.Philox(key=birth.seed))
        noise = rng.standard_normal(len(child), dtype=np.float32)
        child += np.float32(birth.sigma) * noise
    return child


def weights_of(recipe: Explicit, seeds: Callable[[str], np.ndarray]) -> np.ndarray:
    """Return the weights of a recipe that stands alone.

    Args:
        recipe: its parents are numbers.
        seeds: gives a model's weights, (parameters,) float32.
    """
    slerp = recipe.interpolation == "slerp"
    steps = [*enumerate(recipe.models), *enumerate(recipe.births, start=len(recipe.models))]
    grown = _grown([(number, what, slerp) for number, what in steps], seeds, {})
    return collections.deque(grown, maxlen=1).pop()[1]


def _grown(
    steps: Sequence[tuple[Any, str | Birth, bool]],
    seeds: Callable[[str], np.ndarray],
    known: Mapping[Any, np.ndarray],
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield (key, weights) of models and of births, keeping those that are parents yet to come.

    Args:
        steps: (key, a model or a birth whose parents are keys, whether births are slerp's).
        seeds: gives a model's weights.
        known: the weights of parents that are no steps.
    """
    left = collections.Counter(
        p for _, what, _ in steps if isinstance(what, Birth) for p in what.parents
    )
    needed = {p: known[p] for p in left if p in known}
    for key, what, slerp in steps:
        if isinstance(what, str):
            needed[key] = seeds(what)
        else:
            a, b = (needed[p] for p in what.parents)
            needed[key] = born(a, b, what, slerp)
            for parent in what.parents:
                left[parent] -= 1
                if not left[parent]:
                    needed.pop(parent, None)
        yield key, needed[key]


class Pedigree:
    """The weights of an archive's individuals, the latest kept, the others made again."""

    def __init__(self, seeds: Callable[[str], np.ndarray], find: Callable[[str], Any]):
        """
        Args:
            seeds: gives a model's weights, (parameters,) float32.
            find: gives an archived recipe by its id.
        """
        self._seeds, self._find = seeds, find
        self._kept: dict[str, np.ndarray] = {}

    def weights(self, recipe_id: str, recipe: Any) -> np.ndarray:
        """Return an individual's (parameters,) float32 weights, not to be written to."""
        if recipe_id not in self._kept:
            self._remember(recipe_id, ancestry(recipe_id, recipe, self._find, self._kept))
        self._kept[recipe_id] = self._kept.pop(recipe_id)  # the latest is the last to go
        return self._kept[recipe_id]

    def _remember(self, recipe_id: str, order: list[tuple[str, Any]]) -> None:
        steps = [
            (own, r.births[0], r.interpolation == "slerp")
            if r.kind == "explicit"
            else (own, r.models[0], False)
            for own, r in order
        ]
        for own, weights in _grown(steps, self._seeds, dict(self._kept)):
            self._kept[own] = weights  # kin that the next one asked for may share
            if len(self._kept) > max(8, _KEPT_BYTES // max(weights.nbytes, 1)):
                del self._kept[next(iter(self._kept))]


def ancestry(
    recipe_id: str, recipe: Any, find: Callable[[str], Any], known: Container[str] = ()
) -> list[tuple[str, Any]]:
    """Return an individual and its ancestors as (id, recipe), parents first.

    Args:
        recipe_id, recipe: of the individual.
        find: gives an archived recipe by its id.
        known: ids that are left out, and their ancestors with them.
    """
    order: dict[str, Any] = {}
    stack = [(recipe_id, recipe)]
    while stack:
        own, found = stack[-1]
        parents = found.births[0].parents if found.kind == "explicit" else ()
        missing = [p for p in dict.fromkeys(parents) if p not in order and p not in known]
        if missing and own not in order:
            stack += [(p, find(p)) for p in missing]
            continue
        stack.pop()
        order.setdefault(own, found)
    return list(order.items())


def expanded(order: Sequence[tuple[str, Any]]) -> Explicit:
    """Return the last of an `ancestry` as a recipe that stands alone."""
    last = order[-1][1]
    numbers: dict[str, int] = {}
    for own, recipe in order:
        if recipe.kind != "explicit":
            numbers[own] = last.models.index(recipe.models[0])
    births = []
    for own, recipe in order:
        if recipe.kind == "explicit":
            first, second = (numbers[p] for p in recipe.births[0].parents)
            numbers[own] = len(last.models) + len(births)
            births.append(recipe.births[0]._replace(parents=(first, second)))
    return Explicit(last.models, tuple(births), last.layout, last.interpolation)
