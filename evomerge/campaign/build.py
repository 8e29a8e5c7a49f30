"""From a plan to an opened campaign: sources by their headers, tasks by their items.

Every fault is gathered; no weight is loaded. `check` and `run` both come through here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.archive.references import pinned
from evomerge.campaign.amounts import amount_faults
from evomerge.campaign.assembly import Named, assembled
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.device_room import gpu_faults
from evomerge.campaign.engine_check import missing_engine
from evomerge.campaign.expanded import expanded_plan
from evomerge.campaign.learning_texts import learned_faults
from evomerge.campaign.named_fitnesses import (
    chat_faults,
    open_fitnesses,
    refuse_language_model_fitness,
    split_fitnesses,
)
from evomerge.campaign.named_sources import (
    check_adapters,
    check_averages,
    check_parts,
    check_soups,
    check_sources,
    evidence_faults,
    open_sources,
    scoring_faults,
)
from evomerge.campaign.warm_start import candidates_of
from evomerge.config.overrides import read_mapping
from evomerge.config.parts import SourcesSection
from evomerge.config.schema import CampaignPlan
from evomerge.config.validate import checked_plan
from evomerge.errors import BadInput, Faults, placed
from evomerge.search.spaces import (
    PointSpace,
    SpaceSection,
)
from evomerge.search.spaces.routing import RoutingSection
from evomerge.sections import good_fields
from evomerge.sources.alignment import all_aligned, tokenizer_notes
from evomerge.sources.compatibility import differing_settings
from evomerge.sources.factory import parse_factory
from evomerge.sources.kinship import strangers
from evomerge.tracking import missing_trackers


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
        opened = open_sources(sources, moved, faults)
        check_sources(opened, sources, strictest, faults)
    if isinstance(fitness, list):
        entries = [(f"fitness.{index}", section) for index, section in enumerate(fitness)]
        open_fitnesses(entries, own_test=False, faults=faults)


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
            space = campaigns[0].space
            if isinstance(space, PointSpace):
                kind = space.first.kind
    if is_fresh:
        with faults.gather():
            candidates_of(plan.init, kind)
        for campaign in campaigns:
            faults.extend(learned_faults(campaign))
    faults.check()
    return campaigns


def checked(
    file: Path, settings: Sequence[str] = (), moved: Mapping[str, str] | None = None
) -> list[Campaign]:
    """Read and check a campaign file, and open its searches; what `evomerge check` does.

    Args:
        file: the campaign's YAML.
        settings: `a.b=YAML` overrides.
        moved: label -> directory of sources that lie elsewhere.

    Raises:
        BadInput: with every fault, placed in the file.

    >>> from evomerge.testing.campaigns import example_campaign_file
    >>> [campaign.plan.name for campaign in checked(example_campaign_file())]
    ['example']
    """
    plan = read_and_check(file, settings, moved)
    with placed(file=str(file)):
        return checked_campaigns(plan, moved)


def pinned_plan(plan: CampaignPlan, begun: CampaignPlan | None) -> CampaignPlan:
    """Return a plan with each source `RUN#best` as the number that it means, and each objective.

    A group of tasks whose tasks are objectives becomes an entry for each.

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
    plan = plan.model_copy(update={"sources": sources.model_copy(update=update)})
    return expanded_plan(plan)


def open_campaign(
    plan: CampaignPlan,
    stage: int = 0,
    moved: Mapping[str, str] | None = None,
    found: Sequence[str] = (),
    *,
    weights: bool = False,
) -> Campaign:
    """Open what a search of a plan names and check that it fits together.

    Args:
        plan: the campaign file.
        stage: which of its searches, from 0.
        moved: label -> directory of sources that lie elsewhere than the plan says.
        found: names of the candidates that the stages before found; without them, the first model
            stands in.
        weights: fetch those of sources that are on the hub; else their headers are read there.

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
    stages = {before.name for before in plan.stages}
    opened = open_sources(listed, moved or {}, faults, stages, weights=weights)
    check_sources(opened, listed, search.space, faults)
    is_image_model = any(source.is_image_model for source in opened.values())
    if is_image_model or any(map(parse_factory, listed.labels)):
        refuse_language_model_fitness([s for _, s in plan.entries], faults)
    fitness = open_fitnesses(plan.entries, plan.own_test, faults)
    splits, warnings = split_fitnesses(plan, fitness, faults)
    check_averages(plan, listed, search.space, opened, faults)
    check_soups(plan, faults)
    under = f"stages.{stage}.space" if plan.stages else "space"
    if opened:
        check_parts(search.space, opened, under, faults)
    faults.check()
    for source in opened.values():
        warnings += source.notes
    if not isinstance(search.space, RoutingSection):
        opened = all_aligned(opened)
        warnings += tokenizer_notes(opened.values())
        warnings += differing_settings([*opened.values()])
        warnings += strangers([*opened.values()])
    campaign = assembled(plan, stage, listed, Named(opened, fitness), splits, warnings)
    faults.extend(chat_faults(campaign))
    faults.extend(scoring_faults(campaign))
    faults.extend(evidence_faults(campaign))
    faults.extend(missing_engine(campaign))
    check_adapters(campaign.space.representatives, listed, opened, faults)
    faults.extend(missing_trackers(plan.track), "track")
    faults.extend(gpu_faults(campaign))
    faults.extend(amount_faults(campaign), f"stages.{stage}" if plan.stages else "")
    if not campaign.space.dimension:
        wrong, mend = "has no genes: there is nothing to search", "leave an axis or a choice free"
        faults.add(under, wrong, mend)
    faults.check()
    return campaign
