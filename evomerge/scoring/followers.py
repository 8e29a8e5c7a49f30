"""Objectives that measure the answers to others: on which items, where those are split or few."""

from collections.abc import Mapping

import numpy as np

from evomerge.scoring.fitness import Fitness
from evomerge.scoring.items import Split


def followed_split(fitness: Fitness, splits: Mapping[str, Split]) -> Split:
    """Return the split of an objective that follows others: its items are on their sides.

    Args:
        fitness: its own.
        splits: objective -> split, of those that it follows.

    >>> from evomerge.testing.lm_eval_tasks import example_lengths
    >>> followed_split(example_lengths()["length"], {"maths": Split((0, 2), (1, 3))})
    Split(search=(0, 2), heldout=(1, 3))
    """
    search = {name: split.search for name, split in splits.items()}
    heldout = {name: split.heldout for name, split in splits.items()}
    return Split(fitness.items_of(search), fitness.items_of(heldout))


def with_followers(
    which: Mapping[str, np.ndarray], fitness: Mapping[str, Fitness], splits: Mapping[str, Split]
) -> dict[str, np.ndarray]:
    """Return the search items to score, with those of the objectives that follow others.

    Args:
        which: objective -> (items,) int64 positions among its search items; what it has of
            objectives that follow others is left out, as the answers decide.
        fitness: of every objective.
        splits: of every objective; they give the order.

    >>> from evomerge.testing.lm_eval_tasks import example_lengths
    >>> fitness, split = example_lengths(), Split((0, 2, 5), (1, 3))
    >>> splits = {"length": split, "maths": split}
    >>> which = with_followers({"maths": np.array([1, 2])}, fitness, splits)
    >>> {name: positions.tolist() for name, positions in which.items()}
    {'length': [1, 2], 'maths': [1, 2]}
    """
    found = {}
    for name, split in splits.items():
        followed = [other for other in fitness[name].follows if other in which]
        if name in which and not fitness[name].follows:
            found[name] = which[name]
        elif followed:
            ordinals = {o: [splits[o].search[at] for at in which[o]] for o in followed}
            found[name] = np.searchsorted(split.search, fitness[name].items_of(ordinals))
    return found


def followed_positions(
    fitness: Mapping[str, Fitness], splits: Mapping[str, Split]
) -> dict[str, dict[str, np.ndarray]]:
    """Return where the search items of objectives are among those of the ones that follow them.

    Args:
        fitness, splits: of every objective.

    Returns:
        Follower -> objective that it follows -> (search items,) int64 positions among the
        follower's, -1 for an item that it does not measure.

    >>> from evomerge.testing.lm_eval_tasks import example_lengths
    >>> split = Split((0, 2, 5), (1, 3))
    >>> found = followed_positions(example_lengths(), {"length": split, "maths": split})
    >>> found["length"]["maths"].tolist()
    [0, 1, 2]
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, split in splits.items():
        at = {ordinal: position for position, ordinal in enumerate(split.search)}
        for other in fitness[name].follows:
            positions = []
            for ordinal in splits[other].search:
                own = fitness[name].items_of({other: [ordinal]})
                positions.append(at[own[0]] if own else -1)
            found.setdefault(name, {})[other] = np.array(positions, int)
    return found
