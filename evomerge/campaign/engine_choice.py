"""Which engine answers what, where a campaign file says `workers.engine: auto`.

It is measured when the campaign begins, on the items of one candidate, and archived: a resume
takes what was chosen, as other engines give other answers where two are nearly as likely.
"""

import os
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from evomerge.archive.archive import Archive
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.observer import Observer
from evomerge.engines import ENGINES
from evomerge.scoring.fitness import AskedSection
from evomerge.workers.engine_trial import quickest, trial_on
from evomerge.workers.protocol import WorkerPlan

if TYPE_CHECKING:
    from evomerge.workers.ray_cluster import RayCluster

PLAIN = "transformers"  # which can do whatever a campaign asks for
OTHERS = ("vllm",)


def with_engine(
    campaign: Campaign,
    archive: Archive,
    observer: Observer,
    cluster: "RayCluster | None" = None,
) -> Campaign:
    """Return a campaign whose workers have an engine, if its file leaves the choice open.

    Args:
        campaign: with its sources' hashes.
        archive: its own, which has the choice, or gets it.
        observer: hears of a measurement.
        cluster: on which it is made, where workers are Ray's.

    Raises:
        EvomergeError: a worker cannot be started.

    >>> from evomerge.campaign.observer import Silent
    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign(hashed=True, workers={"engine": "auto"})
    >>> with_engine(campaign, example_archive_of(campaign), Silent()).worker.engine
    'transformers'
    """
    plan = campaign.worker
    if plan.engine != "auto":
        return campaign
    chosen = archive.engines
    if chosen is None:
        chosen, seconds = _measured(campaign, observer, cluster)
        archive.set_engines(chosen, seconds)
    return replace(campaign, worker=_with(plan, chosen))


def _with(plan: WorkerPlan, chosen: dict[str, str]) -> WorkerPlan:
    names = set(chosen.values()) or {PLAIN}
    if len(names) == 1:
        return replace(plan, engine=names.pop())
    return replace(plan, by_request=chosen)


def _measured(
    campaign: Campaign, observer: Observer, cluster: "RayCluster | None"
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Return which engine answers what, and the seconds by which they were chosen."""
    plan, names = campaign.worker, possible(campaign)
    if len(names) == 1:
        return {}, {}
    observer.say(f"trying which of {' and '.join(names)} answers sooner, on one candidate's items")
    splits, parts = campaign.splits, campaign.parts
    ordinals = {name: splits[name].search for name in campaign.scored}
    if parts is not None:
        which = parts.of(0)
        ordinals = {n: tuple(splits[n].search[i] for i in which[n]) for n in ordinals if n in which}
    seconds = trial_on(cluster, plan, names, ordinals)
    chosen = quickest(seconds, PLAIN if _needs_model(campaign) else "")
    for line in _told(chosen, seconds):
        observer.say(line)
    return chosen, seconds


def possible(campaign: Campaign) -> list[str]:
    """Return the engines that can run a campaign's models, as far as that can be seen from here.

    Of several stages, each must be possible: their scores are compared.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> possible(example_campaign())  # whose only fitness is given transformers' model
    ['transformers']
    """
    plan = campaign.plan
    is_elsewhere = plan.workers.pool == "ray" and "RAY_ADDRESS" in os.environ
    kinds = {search.space.kind for search in plan.searches}
    has_tasks = any(isinstance(section, AskedSection) for _, section in plan.entries)
    frame = campaign.sources[campaign.worker.frame]
    is_module = frame.factory is not None or frame.form != "transformers" or frame.parts
    if kinds & {"routing", "explicit"} or is_module or not has_tasks:
        return [PLAIN]
    there = [name for name in OTHERS if is_elsewhere or find_spec(ENGINES.get(name).needs)]
    return [PLAIN, *there]


def _needs_model(campaign: Campaign) -> bool:
    """Tell whether a fitness is given transformers' model."""
    return any(section.needs_model for section in campaign.plan.fitness)


def _told(chosen: dict[str, str], seconds: dict[str, dict[str, float]]) -> list[str]:
    lines = []
    for kind, engine in chosen.items():
        times = [f"{of[kind]:.2f} s by {name}" for name, of in seconds.items() if kind in of]
        lines.append(f"{kind}: {engine} ({', '.join(times)})" if times else f"{kind}: {engine}")
    return lines
