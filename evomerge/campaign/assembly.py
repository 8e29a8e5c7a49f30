"""A campaign put together from what its plan names, once that is opened and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from evomerge.campaign.campaign import Campaign
from evomerge.config.parts import SourcesSection, WorkersSection
from evomerge.config.schema import CampaignPlan
from evomerge.environment import cores
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.fitness import Fitness
from evomerge.scoring.items import Split
from evomerge.search.guards import Guard
from evomerge.search.objectives import Objective
from evomerge.search.spaces import SearchSpace, SourceShapes, make_space
from evomerge.sources.source import Source
from evomerge.sources.trust import Trust
from evomerge.workers.protocol import WorkerPlan


@dataclass(frozen=True)
class Named:
    """What a plan names, as far as it could be opened.

    Attributes:
        sources: by name.
        fitness: by objective.

    >>> Named({}, {}).sources
    {}
    """

    sources: dict[str, Source]
    fitness: dict[str, Fitness]


def assembled(
    plan: CampaignPlan,
    stage: int,
    listed: SourcesSection,
    named: Named,
    splits: dict[str, Split],
    warnings: list[str],
) -> Campaign:
    """Put together what was opened and checked.

    Args:
        plan: the campaign file.
        stage: which of its searches, from 0.
        listed: the sources of that search.
        named: what was opened.
        splits: of each objective's items.
        warnings: that were gathered; those of the space are added.

    >>> from evomerge.testing.campaigns import example_campaign  # which comes through here
    >>> example_campaign().worker.prepared == (example_campaign().space.first,)
    True
    """
    search = plan.searches[stage]
    space = make_space(search.space, _shapes(plan, listed, named))
    for label, name in listed.models.items():
        if isinstance(space.first, ParametersRecipe) and space.first.base == name:
            warnings.append(f"'{label}' is the base itself: its task vector is zero")
    warnings += search.space.warnings()
    worker = _worker_plan(plan, listed, named, splits, space)
    campaign = Campaign(
        plan,
        stage,
        listed,
        space,
        _objectives(plan, named.fitness),
        splits,
        named.sources,
        named.fitness,
        worker,
        tuple(warnings),
        guards=_guards(plan, named.fitness),
    )
    prepared = space.representatives
    if campaign.soups:
        prepared += [recipe for label, recipe in campaign.baselines() if label in campaign.soups]
    return replace(campaign, worker=replace(worker, prepared=tuple(prepared)))


def _shapes(plan: CampaignPlan, listed: SourcesSection, named: Named) -> SourceShapes:
    """Return what a space knows of the sources; the first is the frame."""
    frame = named.sources[next(iter(listed.labels))]
    return SourceShapes(
        listed.base,
        tuple(listed.models.values()),
        tuple(listed.models),
        frame.layers,
        frame.dtype,
        plan.seed,
        {name: tensor.elements for name, tensor in frame.tensors.items()},
        depths={name: source.layers for name, source in named.sources.items()},
        dtypes={name: source.dtype for name, source in named.sources.items()},
    )


def _worker_plan(
    plan: CampaignPlan,
    listed: SourcesSection,
    named: Named,
    splits: dict[str, Split],
    space: SearchSpace,
) -> WorkerPlan:
    """Return what a worker is told; the hashes and what it prepares come later."""
    first, workers = space.first, plan.workers
    return WorkerPlan(
        sources={name: source.place for name, source in named.sources.items()},
        hashes={},
        frame=first.sources[0],
        dtype=space.dtype,
        compute_dtype=plan.compute_dtype or space.dtype,
        fitness={section.name: section.resolved() for _, section in plan.entries},
        own_test=plan.own_test,
        splits=splits,
        first=first,
        threads=_threads(workers),
        device=workers.device,
        trust=Trust(listed.trust_remote_code, functions=True),
        engine=workers.engine,
        sources_bytes=workers.sources_bytes,
        device_share=workers.device_share,
        gpus=max(1, int(workers.gpus_each)),
        candidates_each=workers.at_once,
        quantize=workers.quantize or "",
        experts=_experts(plan, listed, space),
        labels=listed.labels,
    )


def _objectives(plan: CampaignPlan, fitness: Mapping[str, Fitness]) -> tuple[Objective, ...]:
    objectives = []
    for section in plan.fitness:
        opened = fitness[section.name]
        constraint = section.constraint or ""
        objectives.append(
            Objective(section.name, opened.direction, section.weight, constraint, opened.is_cost)
        )
    return tuple(objectives)


def _guards(plan: CampaignPlan, fitness: Mapping[str, Fitness]) -> tuple[Guard, ...]:
    guards = []
    for section in plan.guard:
        direction = fitness[section.name].direction
        guards.append(Guard(section.name, direction, section.against or "", section.margin))
    return tuple(guards)


def _experts(plan: CampaignPlan, listed: SourcesSection, space: SearchSpace) -> dict[str, Recipe]:
    """Return the recipes of the sources that show objectives what is good."""
    names = {label: name for name, label in listed.labels.items()} | listed.models
    experts = {}
    for _, section in plan.entries:
        if section.expert is not None:
            experts[section.name] = space.single(names[section.expert])
    return experts


def _threads(workers: WorkersSection) -> int | None:
    """Return torch threads for each worker; None where each works out those of its own node."""
    return workers.threads or (None if workers.pool == "ray" else cores())
