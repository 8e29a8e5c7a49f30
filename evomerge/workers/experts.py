"""What experts say, which a worker asks of its own live model before the first candidate."""

from collections.abc import Callable, Mapping

import torch

from evomerge.canonical import json_hash
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.fitness import Fitness
from evomerge.workers.protocol import WorkerPlan


def learn_from_experts(
    plan: WorkerPlan,
    device: str,
    fitnesses: Mapping[str, Fitness],
    become: Callable[[Recipe], object],
) -> None:
    """Let the fitnesses that have an expert know what it says.

    No second model is loaded: the live one becomes each expert in turn, unless what it says is in
    the cache already.

    Args:
        plan: of the worker.
        device: of the live model.
        fitnesses: by objective, prepared.
        become: lets the live model be that of a recipe.

    Raises:
        BadInput: see `Fitness.learn`.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> learn_from_experts(example_campaign(hashed=True).worker, "cpu", {}, print)
    """
    for objective, recipe in plan.experts.items():
        hashes = [plan.hashes[source] for source in recipe.sources]
        # all that its predictions follow from, beside what it is asked
        numbers = [plan.dtype, plan.compute_dtype, plan.quantize, torch.device(device).type]

        def become_expert(recipe: Recipe = recipe) -> None:
            become(recipe)

        fitnesses[objective].learn(json_hash([recipe.kind, hashes, numbers]), become_expert)
