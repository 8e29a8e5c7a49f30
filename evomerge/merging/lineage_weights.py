"""The weights of explicit individuals, grown again from their lineage."""

import collections
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from evomerge.recipes.lineage import Birth, ExplicitRecipe
from evomerge.recipes.mixture import interpolated
from evomerge.recipes.recipe import Recipe

_KEPT_BYTES = 1 << 28  # of individuals' weights, a small part of any machine's memory

_FEWEST_KEPT = 8  # of large ones: parents that the next births are likely to share


def born(a: np.ndarray, b: np.ndarray, birth: Birth, slerp: bool) -> np.ndarray:
    """Return a child's weights, (parameters,) float32, from those of its parents.

    Args:
        a, b: of the parents, (parameters,) float32.
        birth: how they are crossed (M2N2, arXiv:2508.16204, equation 2) and mutated.
        slerp: whether they are interpolated along the great circle.

    >>> zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    >>> born(zeros, ones, Birth((0, 1), mix=0.25, split=2, sigma=0.0, seed=0), slerp=False)
    array([0.25, 0.25, 0.75, 0.75], dtype=float32)
    """
    angle = 0.0
    if slerp and a is not b:
        # sums, not products of vectors, which a BLAS would add up in an order of its own
        x, y = a.astype(np.float64), b.astype(np.float64)
        norms = np.sqrt((x * x).sum() * (y * y).sum())
        angle = float(np.arccos(np.clip((x * y).sum() / norms, -1.0, 1.0))) if norms else 0.0
    child = np.empty_like(a)
    left, right = slice(None, birth.split), slice(birth.split, None)
    for side, mix in ((left, birth.mix), (right, 1 - birth.mix)):
        of_a, of_b = map(np.float32, interpolated(mix, angle))
        child[side] = of_a * a[side] + of_b * b[side] + np.float32(0.0)  # no zero is negative
    if birth.sigma:
        rng = np.random.Generator(np.random.Philox(key=birth.seed))
        noise = rng.standard_normal(len(child), dtype=np.float32)
        child += np.float32(birth.sigma) * noise
    return child


def weights_of(recipe: ExplicitRecipe, seeds: Callable[[str], np.ndarray]) -> np.ndarray:
    """Return the weights of a recipe that stands alone.

    Args:
        recipe: its parents are numbers.
        seeds: gives a model's weights, (parameters,) float32.

    >>> recipe = ExplicitRecipe(("a", "b"), (Birth((0, 1), 0.25, 1, 0.0, 0),), "", "lerp")
    >>> seeds = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}
    >>> weights_of(recipe, seeds.__getitem__)
    array([0.25, 0.75], dtype=float32)
    """
    slerp = recipe.interpolation == "slerp"
    individuals: list[str | Birth] = [*recipe.models, *recipe.births]
    steps = [_Step(number, source, slerp) for number, source in enumerate(individuals)]
    weights = np.empty(0, np.float32)
    for _, made in _grown(steps, seeds, {}):
        weights = made  # the last is the recipe's own
    return weights


class _Step(NamedTuple):
    """One individual that is made: a model, or a birth whose parents are keys of others."""

    key: int | str
    source: str | Birth
    slerp: bool


def _grown(
    steps: Sequence[_Step],
    seeds: Callable[[str], np.ndarray],
    known: Mapping[str, np.ndarray],
) -> Iterator[tuple[int | str, np.ndarray]]:
    """Yield (key, weights) of individuals, keeping those that are parents yet to come.

    Args:
        steps: parents first.
        seeds: gives a model's weights.
        known: the weights of parents that are no steps; read before the first is yielded.
    """
    children_left: collections.Counter[int | str] = collections.Counter()
    for step in steps:
        if isinstance(step.source, Birth):
            children_left.update(step.source.parents)
    needed: dict[int | str, np.ndarray] = {}
    for parent in children_left:
        if isinstance(parent, str) and parent in known:
            needed[parent] = known[parent]
    for step in steps:
        if isinstance(step.source, str):
            needed[step.key] = seeds(step.source)
        else:
            first, second = step.source.parents
            needed[step.key] = born(needed[first], needed[second], step.source, step.slerp)
            for parent in step.source.parents:
                children_left[parent] -= 1
                if not children_left[parent]:
                    needed.pop(parent, None)
        yield step.key, needed[step.key]


class Pedigree:
    """The weights of an archive's individuals, the latest kept, the others made again.

    >>> from evomerge.recipes.parameters import single
    >>> pedigree = Pedigree(lambda model: np.ones(2, np.float32), find={}.__getitem__)
    >>> pedigree.weights("the recipe's id", single("a", "float32"))
    array([1., 1.], dtype=float32)
    """

    def __init__(self, seeds: Callable[[str], np.ndarray], find: Callable[[str], Recipe]):
        """
        Args:
            seeds: gives a model's weights, (parameters,) float32.
            find: gives an archived recipe by its id.
        """
        self._seeds, self._find = seeds, find
        self._kept: dict[str, np.ndarray] = {}

    def weights(self, recipe_id: str, recipe: Recipe) -> np.ndarray:
        """Return an individual's (parameters,) float32 weights, not to be written to."""
        if recipe_id not in self._kept:
            self._remember(ancestry(recipe_id, recipe, self._find, self._kept))
        self._kept[recipe_id] = self._kept.pop(recipe_id)  # the latest is the last to go
        return self._kept[recipe_id]

    def _remember(self, order: Sequence[tuple[str, Recipe]]) -> None:
        steps = []
        for recipe_id, recipe in order:
            if isinstance(recipe, ExplicitRecipe):
                slerp = recipe.interpolation == "slerp"
                steps.append(_Step(recipe_id, recipe.births[0], slerp))
            else:
                steps.append(_Step(recipe_id, recipe.models[0], False))
        for key, weights in _grown(steps, self._seeds, self._kept):
            self._kept[str(key)] = weights  # kin that the next one asked for may share
            if len(self._kept) > max(_FEWEST_KEPT, _KEPT_BYTES // max(weights.nbytes, 1)):
                del self._kept[next(iter(self._kept))]


def ancestry(
    recipe_id: str, recipe: Recipe, find: Callable[[str], Recipe], known: Container[str] = ()
) -> list[tuple[str, Recipe]]:
    """Return an individual and its ancestors as (id, recipe), parents first.

    Args:
        recipe_id, recipe: of the individual.
        find: gives an archived recipe by its id.
        known: ids that are left out, and their ancestors with them.

    >>> from evomerge.recipes.parameters import single
    >>> archive = {letter * 64: single(letter, "float32") for letter in "ab"}
    >>> child = ExplicitRecipe(("a", "b"), (Birth(("a" * 64, "b" * 64), 0.5, 1, 0.0, 0),), "")
    >>> [recipe_id[0] for recipe_id, _ in ancestry("c" * 64, child, archive.__getitem__)]
    ['b', 'a', 'c']
    """
    order: dict[str, Recipe] = {}
    stack = [(recipe_id, recipe)]
    # Depth first without recursion, which a long lineage would exhaust: an individual stays on the
    # stack until its parents are in order.
    while stack:
        own, individual = stack[-1]
        missing = []
        for parent in dict.fromkeys(_archived_parents(individual)):
            if parent not in order and parent not in known:
                missing.append(parent)
        if missing and own not in order:
            stack += [(parent, find(parent)) for parent in missing]
            continue
        stack.pop()
        order.setdefault(own, individual)
    return list(order.items())


def _archived_parents(recipe: Recipe) -> list[str]:
    """Return the ids of an archived individual's parents, none of a seed."""
    if not isinstance(recipe, ExplicitRecipe):
        return []
    return [str(parent) for parent in recipe.births[0].parents]


def expanded(order: Sequence[tuple[str, Recipe]]) -> ExplicitRecipe:
    """Return the last of an `ancestry` as a recipe that stands alone.

    >>> from evomerge.recipes.parameters import single
    >>> seeds = [(letter * 64, single(letter, "float32")) for letter in "ab"]
    >>> child = ExplicitRecipe(("a", "b"), (Birth(("a" * 64, "b" * 64), 0.5, 1, 0.0, 0),), "")
    >>> expanded([*seeds, ("c" * 64, child)]).births[0].parents
    (0, 1)
    """
    last = order[-1][1]
    assert isinstance(last, ExplicitRecipe), "a seed stands alone as it is"
    # Numbers count the models first, then the births in their order.
    numbers: dict[str, int] = {}
    for recipe_id, recipe in order:
        if not isinstance(recipe, ExplicitRecipe):
            numbers[recipe_id] = last.models.index(recipe.models[0])
    births: list[Birth] = []
    for recipe_id, recipe in order:
        if isinstance(recipe, ExplicitRecipe):
            first, second = _archived_parents(recipe)
            numbers[recipe_id] = len(last.models) + len(births)
            births.append(recipe.births[0]._replace(parents=(numbers[first], numbers[second])))
    return replace(last, births=tuple(births))
