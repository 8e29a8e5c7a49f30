"""How soon each engine answers what a campaign asks: tried once, on one candidate's items."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from evomerge.errors import EvomergeError, one_line
from evomerge.workers.pool import process_kept
from evomerge.workers.protocol import WorkerPlan
from evomerge.workers.worker import UPDATE, Worker

if TYPE_CHECKING:
    from evomerge.workers.ray_cluster import RayCluster

log = logging.getLogger("evomerge")

# A second engine takes the memory of a second model: it has to save so much of the time.
_LEAST_GAIN = 0.1


def trial(
    plan: WorkerPlan, engines: Sequence[str], ordinals: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, float]]:
    """Return engine -> kind of request -> seconds, and under `UPDATE` those of a weight update.

    One engine after the other is opened and closed in this process. One that cannot run the model,
    or answer the questions, is left out, with a warning in the log; but the first has to.

    Args:
        plan: of the workers.
        engines: to be tried.
        ordinals: objective -> items that are asked, of the first recipe of the space.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> campaign = example_campaign(hashed=True)
    >>> list(trial(campaign.worker, ["transformers"], {})["transformers"])
    ['update']
    """
    first, *others = engines
    found = {first: _seconds(replace(plan, engine=first), ordinals)}
    for engine in others:
        try:
            found[engine] = _seconds(replace(plan, engine=engine), ordinals)
        except (EvomergeError, RuntimeError, ValueError, OSError, MemoryError) as error:
            log.warning("%s is left out: %s", engine, one_line(error))
    return found


def _seconds(plan: WorkerPlan, ordinals: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Return what a worker of a plan measures, see `Worker.answer_seconds`."""
    worker = Worker(plan)
    try:
        return worker.answer_seconds(plan.first, ordinals)
    finally:
        worker.close()


def quickest(seconds: Mapping[str, Mapping[str, float]], model: str = "") -> dict[str, str]:
    """Return which engine is to answer each kind of request, so that a candidate takes least.

    Args:
        seconds: see `trial`; the engine that comes first is taken where it makes no difference.
        model: the engine whose model fitnesses in Python are given; "" where there are none.

    >>> quickest({"transformers": {"generate_until": 6.8, "loglikelihood": 5.0, "update": 0.1},
    ...           "vllm": {"generate_until": 2.3, "loglikelihood": 11.0, "update": 0.2}})
    {'generate_until': 'vllm', 'loglikelihood': 'transformers'}
    >>> quickest({"transformers": {"generate_until": 2.4, "update": 0.1},
    ...           "vllm": {"generate_until": 2.3, "update": 0.1}})
    {'generate_until': 'transformers'}
    """
    kinds = sorted({kind for of_engine in seconds.values() for kind in of_engine} - {UPDATE})
    choices = []
    for engines in product(seconds, repeat=len(kinds)):
        used = {*engines, model} - {""}
        total = sum(seconds[engine][kind] for engine, kind in zip(engines, kinds, strict=True))
        total += sum(seconds[engine][UPDATE] for engine in used)
        choices.append((total, len(used), engines))
    least = min(total for total, _, _ in choices)
    # of those that take hardly longer, the one with the fewest engines, the first of equals
    near = [choice for choice in choices if choice[0] * (1.0 - _LEAST_GAIN) <= least]
    _, _, engines = min(near, key=lambda choice: choice[1])
    found = dict(zip(kinds, engines, strict=True))
    return found | ({"model": model} if model else {})


def trial_on(
    cluster: "RayCluster | None",
    plan: WorkerPlan,
    engines: Sequence[str],
    ordinals: Mapping[str, tuple[int, ...]],
) -> dict[str, dict[str, float]]:
    """Run `trial` where a campaign's workers run: in a process of Ray's, without one in this.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> campaign = example_campaign(hashed=True)
    >>> list(trial_on(None, campaign.worker, ["transformers"], {}))
    ['transformers']
    """
    if cluster is None:
        with process_kept():
            return trial(plan, engines, ordinals)
    from evomerge.workers.ray_task import on_a_worker

    return on_a_worker(cluster, trial, plan, engines, ordinals)
