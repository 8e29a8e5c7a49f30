"""From a plan to an opened campaign: sources by their headers, tasks by their items.

Every fault is gathered; no weight is loaded. `check` and `run` both come through here.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.archive.references import pinned
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.warm_start import candidates_of
from evomerge.config.overrides import read_mapping
from evomerge.config.schema import CampaignPlan, SourcesSection, WorkersSection
from evomerge.config.validate import checked_plan
from evomerge.errors import BadInput, Fault, Faults, placed
from evomerge.export.candidates import open_candidate
from evomerge.recipes.parameters import ParametersRecipe
from evomerge.scoring.fitness import (
    CostSection,
    Fitness,
    FitnessSection,
    TaskSection,
)
from evomerge.scoring.items import LastSection, Split, TestSplitSection, split_items
from evomerge.scoring.open_fitness import open_fitness
from evomerge.search.objectives import Objective, parse_bound
from evomerge.search.spaces import (
    SPACES,
    BreedingSpace,
    SourceShapes,
    SpaceSection,
    make_space,
)
from evomerge.search.spaces.routing import RoutingSection
from evomerge.sections import good_fields
from evomerge.sources.compatibility import differing_settings, mismatches, stream_mismatches
from evomerge.sources.factory import parse_factory
from evomerge.sources.source import (
    Source,
    has_chat_template,
    is_candidate,
    moved_faults,
    open_source,
)
from evomerge.workers.protocol import WorkerPlan

FEW_ITEMS = 20  # on a side of the split: below, an interval is wider than most differences


@dataclass(frozen=True)
class _Named:
    """What a plan names, as far as it could be opened.

    Attributes:
        sources: by name.
        fitness: by objective.
    """

    sources: dict[str, Source]
    fitness: dict[str, Fitness]


def read_and_check(
    file: Path, settings: Sequence[str] = (), moved: Mapping[str, str] | None = None
) -> CampaignPlan:
    """Read a campaign file; where its form is wrong, look at what is named and right too.

    Args:
        file: the campaign's YAML.
        settings: `a.b=YAML` overrides.
        moved: label -> directory of sources that lie elsewhere.

    Raises:
        BadInput: with the faults of form, and those of what is named where the form is right.

    >>> read_and_check(Path("no-such.yaml"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    evomerge.errors.BadInput: no-such.yaml: cannot be read ...
    """
    data = read_mapping(file, settings)
    with placed(file=str(file)):
        try:
            return checked_plan(data)
        except BadInput as error:
            faults = Faults()
            faults.extend(error.faults)
            _open_what_is_right(good_fields(CampaignPlan, data), moved or {}, faults)
            faults.check()
            raise


def _open_what_is_right(
    fields: Mapping[str, object], moved: Mapping[str, str], faults: Faults
) -> None:
    """Open the sources and the fitnesses of a file that has faults elsewhere."""
    sources, fitness = fields.get("sources"), fields.get("fitness")
    if isinstance(sources, SourcesSection):
        spaces: list[SpaceSection] = []
        if isinstance(space := fields.get("space"), SpaceSection):
            spaces.append(space)
        stages = fields.get("stages")
        for stage in stages if isinstance(stages, list) else []:
            spaces += [] if stage is None else [stage.space]
        # of several spaces, the one that asks most of sources
        strictest = min(spaces, key=lambda s: isinstance(s, RoutingSection), default=None)
        opened = _open_sources(sources, moved, faults)
        _check_sources(opened, sources, strictest, faults)
    if isinstance(fitness, list):
        _open_fitnesses(fitness, own_test=False, faults=faults)


def checked_campaigns(
    plan: CampaignPlan, moved: Mapping[str, str] | None = None, is_fresh: bool = True
) -> list[Campaign]:
    """Return a plan's searches as campaigns; in later ones a model stands for what is not found.

    Args:
        plan: of a campaign file.
        moved: label -> directory of sources that lie elsewhere.
        is_fresh: whether the campaign is not begun yet.

    Raises:
        BadInput: with the faults of all searches, and of what a fresh campaign begins with.

    >>> from evomerge.testing.campaigns import example_plan
    >>> [campaign.space.dimension for campaign in checked_campaigns(example_plan())]
    [6]
    """
    campaigns, faults, kind = [], Faults(), None
    with faults.gather():
        plan = pinned_plan(plan, None)
    for stage in range(len(plan.searches)):
        with faults.gather():
            campaigns.append(open_campaign(plan, stage, moved))
            kind = campaigns[0].space.first.kind if stage == 0 else kind
    if is_fresh:
        with faults.gather():
            candidates_of(plan.init, kind)
    faults.check()
    return campaigns


def pinned_plan(plan: CampaignPlan, begun: CampaignPlan | None) -> CampaignPlan:
    """Return a plan with each source `RUN#best` written as the number that it means.

    Args:
        plan: of a campaign.
        begun: the plan that this campaign was begun with, whose numbers stay.

    Raises:
        BadInput: a run or a candidate is not there.

    >>> from evomerge.testing.campaigns import example_plan
    >>> pinned_plan(example_plan(), None) == example_plan()
    True
    """
    faults = Faults()
    sources = plan.sources
    before = begun.sources if begun else None
    base, models = sources.base, dict(sources.models)
    if base is not None:
        with faults.gather("sources.base"):
            base = pinned(base, before.base if before else None)
    for label, name in models.items():
        with faults.gather(f"sources.models.{label}"):
            models[label] = pinned(name, before.models.get(label) if before else None)
    faults.check()
    update = {"base": base, "models": models}
    return plan.model_copy(update={"sources": sources.model_copy(update=update)})


def open_campaign(
    plan: CampaignPlan,
    stage: int = 0,
    moved: Mapping[str, str] | None = None,
    found: Sequence[str] = (),
) -> Campaign:
    """Open what a search of a plan names and check that it fits together.

    Args:
        plan: the campaign file.
        stage: which of its searches, from 0.
        moved: label -> directory of sources that lie elsewhere than the plan says.
        found: names of the candidates that the stages before found; without them, the first model
            stands in.

    Returns:
        The campaign, its sources' hashes not yet filled in.

    Raises:
        BadInput: with every fault of the sources and the tasks.

    >>> from evomerge.testing.campaigns import example_plan
    >>> open_campaign(example_plan()).worker.frame.endswith("base")
    True
    """
    search, listed = plan.searches[stage], plan.model_names(stage, found)
    faults = Faults()
    opened = _open_sources(listed, moved or {}, faults)
    _check_sources(opened, listed, search.space, faults)
    if any(map(parse_factory, listed.labels)):
        _refuse_language_model_fitness(plan.fitness, faults)
    fitness = _open_fitnesses(plan.fitness, plan.own_test, faults)
    splits, warnings = _split(plan, fitness, faults)
    _check_averages(plan, listed, search.space, opened, faults)
    if opened:
        under = f"stages.{stage}.space" if plan.stages else "space"
        _check_substrings(search.space, opened, under, faults)
    faults.check()
    if not isinstance(search.space, RoutingSection):
        warnings += differing_settings([*opened.values()])
    campaign = _campaign(plan, stage, listed, _Named(opened, fitness), splits, warnings)
    faults.extend(_chat_faults(campaign))
    faults.check()
    return campaign


# --- sources ---------------------------------------------------------------------------------


def _open_sources(
    listed: SourcesSection, moved: Mapping[str, str], faults: Faults
) -> dict[str, Source]:
    """Open the sources by their headers, gathering what is wrong with them."""
    faults.extend(moved_faults(moved, listed.labels.values()))
    opened: dict[str, Source] = {}
    for name, label in listed.labels.items():
        trust, place = listed.trust_remote_code, moved.get(label, name)
        with faults.gather("sources.base" if label == "base" else f"sources.models.{label}"):
            if is_candidate(place):
                opened[name] = open_candidate(place, moved, trust)
            else:
                opened[name] = open_source(place, trust_remote_code=trust)
    return opened


def _check_sources(
    opened: Mapping[str, Source],
    listed: SourcesSection,
    space: SpaceSection | None,
    faults: Faults,
) -> None:
    """Check that sources have what a space needs, and that they fit together.

    Args:
        opened: those that could be opened, by name.
        listed: what the file says of them.
        space: None if it is unknown; then whether they fit together is not asked.
    """
    if space is None:
        return
    is_by_layer = not issubclass(SPACES.get(space.kind), BreedingSpace)
    for name, source in opened.items():
        if is_by_layer and not source.layers:
            label = listed.labels[name]
            key = "sources.base" if label == "base" else f"sources.models.{label}"
            wrong = f"'{name}' has no layers that can be told from its tensor names"
            mend = "take a decoder with numbered layers, or a space of another kind"
            faults.add(key, wrong, mend)
    if opened:
        fit = stream_mismatches if isinstance(space, RoutingSection) else mismatches
        faults.extend(fit(list(opened.values())), "sources")


def _check_averages(
    plan: CampaignPlan,
    listed: SourcesSection,
    space: SpaceSection,
    opened: Mapping[str, Source],
    faults: Faults,
) -> None:
    """Refuse what depends on an average of routed sources that have none.

    What stages found has no part in it: it is scored before them.
    """
    stages = {stage.name for stage in plan.stages}
    given = [source for name, source in opened.items() if listed.labels[name] not in stages]
    if not isinstance(space, RoutingSection) or not given or not mismatches(given):
        return
    wrong = "there is no average of these sources"
    mend = "leave it out: only models of one shape are averaged"
    if plan.soups:
        faults.add("soups", wrong, mend)
    for index, section in enumerate(plan.fitness):
        if section.constraint and parse_bound(section.constraint).baseline == "uniform":
            faults.add(f"fitness.{index}.constraint", wrong, mend)


def _check_substrings(
    space: SpaceSection, opened: Mapping[str, Source], under: str, faults: Faults
) -> None:
    """Refuse parts of tensor names that no tensor has."""
    names = {name for source in opened.values() for name in source.tensors}
    for key, part in space.substrings():
        if not any(part in name for name in names):
            wrong = f"no tensor's name holds '{part}'"
            faults.add(f"{under}.{key}", wrong, "mend or leave it out")


# --- fitnesses -------------------------------------------------------------------------------


def _refuse_language_model_fitness(entries: Sequence[FitnessSection], faults: Faults) -> None:
    """Refuse tasks and costs where sources are modules of their own."""
    mend = "write function: FILE.py"
    if any(isinstance(entry, TaskSection) for entry in entries):
        wrong = "tasks of lm-eval are for language models, and a source is a module of its own"
        faults.add("fitness", wrong, mend)
    if any(isinstance(entry, CostSection) for entry in entries):
        wrong = "costs are those of language models, and a source is a module of its own"
        faults.add("fitness", wrong, mend)


def _open_fitnesses(
    entries: Sequence[FitnessSection | None], own_test: bool, faults: Faults
) -> dict[str, Fitness]:
    """Open the entries that are right, by objective, gathering what is wrong with them."""
    opened: dict[str, Fitness] = {}
    for index, section in enumerate(entries):
        if section is not None:
            with faults.gather(f"fitness.{index}"):
                opened[section.name] = open_fitness(section.resolved(), own_test)
    return opened


def _split(
    plan: CampaignPlan, fitness: Mapping[str, Fitness], faults: Faults
) -> tuple[dict[str, Split], list[str]]:
    """Return each objective's split, and warnings of sides with few items."""
    splits: dict[str, Split] = {}
    warnings: list[str] = []
    for index, section in enumerate(plan.fitness):
        opened = fitness.get(section.name)
        if opened is None or opened.is_cost:
            continue
        before = len(faults.found)
        faults.extend(_item_faults(plan, section, opened, f"fitness.{index}"))
        if len(faults.found) > before:
            continue
        split = split_items(
            len(opened.hashes), opened.test_from, section.taken, plan.heldout, plan.seed
        )
        splits[section.name] = split
        sides = {"search": len(split.search), "held-out": len(split.heldout)}
        for side, count in sides.items():
            if count < FEW_ITEMS:
                warnings.append(f"{section.name}: only {count} {side} items")
    # A cost has one item, the model; it is measured on both sides, if there are two.
    is_held_out = any(split.heldout for split in splits.values())
    ordered = {}
    for section in plan.fitness:
        opened = fitness.get(section.name)
        if opened is not None and opened.is_cost:
            ordered[section.name] = Split((0,), (0,) if is_held_out else ())
        elif section.name in splits:
            ordered[section.name] = splits[section.name]
    return ordered, warnings


def _item_faults(
    plan: CampaignPlan, section: FitnessSection, fitness: Fitness, key: str
) -> Iterable[Fault]:
    """Return why a fitness's items cannot be split as the plan says."""
    count = len(fitness.hashes) if fitness.test_from is None else fitness.test_from
    if section.taken and section.taken > count:
        wrong = f"{section.taken} items are more than the {count} there are"
        yield Fault(f"{key}.items", wrong, f"write at most {count}")
    share = 0.0
    if isinstance(plan.heldout, LastSection):
        share = plan.heldout.last
    elif not isinstance(plan.heldout, TestSplitSection):
        share = plan.heldout
    taken = min(section.taken or count, count)
    if count and share and taken == round(share * taken):
        wrong = f"holding {share} of {taken} items out leaves none to search on"
        yield Fault("heldout", wrong, "hold out less, or take more items")
    if not count:
        yield Fault(key, "there is no item", "give it items")
    if plan.own_test and fitness.test_from is None:
        wrong = f"'{section.name}' has no validation and test split of its own"
        yield Fault("heldout", wrong, "write a share such as 0.5")
    is_public = fitness.searches_public_test_split and not plan.own_test
    if is_public and not plan.allow_benchmarks:
        wrong = f"'{section.name}' would search on the test split of a public benchmark"
        mend = "write heldout: {split: test}, or allow_benchmarks: true if you mean it"
        yield Fault(f"{key}.task", wrong, mend)


def _chat_faults(campaign: Campaign) -> Iterable[Fault]:
    """Return the tasks that ask for a chat template where the model that is scored has none."""
    frame = campaign.sources[campaign.worker.frame]
    for index, section in enumerate(campaign.plan.fitness):
        if not isinstance(section, TaskSection) or not section.chat_template:
            continue
        if not has_chat_template(frame.path):
            wrong = f"'{frame.name}', whose tokenizer merges get, has no chat template"
            mend = "put a chat_template.jinja into its directory, or leave this out"
            yield Fault(f"fitness.{index}.chat_template", wrong, mend)


# --- the campaign ----------------------------------------------------------------------------


def _campaign(
    plan: CampaignPlan,
    stage: int,
    listed: SourcesSection,
    named: _Named,
    splits: dict[str, Split],
    warnings: list[str],
) -> Campaign:
    """Put together what was opened and checked."""
    search = plan.searches[stage]
    frame = named.sources[next(iter(listed.labels))]
    shapes = SourceShapes(
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
    space = make_space(search.space, shapes)
    first = space.first
    for label, name in listed.models.items():
        if isinstance(first, ParametersRecipe) and first.base == name:
            warnings.append(f"'{label}' is the base itself: its task vector is zero")
    warnings += search.space.warnings()
    worker = WorkerPlan(
        sources={name: source.place for name, source in named.sources.items()},
        hashes={},
        frame=first.sources[0],
        dtype=space.dtype,
        compute_dtype=plan.compute_dtype or space.dtype,
        fitness={section.name: section.resolved() for section in plan.fitness},
        own_test=plan.own_test,
        splits=splits,
        first=first,
        threads=_threads(plan.workers),
        device=plan.workers.device,
        trust_remote_code=listed.trust_remote_code,
    )
    objectives = []
    for section in plan.fitness:
        fitness = named.fitness[section.name]
        objectives.append(
            Objective(
                section.name,
                fitness.direction,
                section.weight,
                section.constraint or "",
                fitness.is_cost,
            )
        )
    return Campaign(
        plan,
        stage,
        listed,
        space,
        tuple(objectives),
        splits,
        named.sources,
        named.fitness,
        worker,
        tuple(warnings),
    )


def _threads(workers: WorkersSection) -> int:
    """Return torch threads for each worker: the cores shared out, unless the plan says."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux: what this process may use
        cores = len(os.sched_getaffinity(0))
    return workers.threads or max(1, cores // workers.count)
