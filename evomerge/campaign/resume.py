"""What earlier starts of a run left: its plan, what is spent, whether all is still the same."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evomerge.archive.archive import Archive
from evomerge.campaign.campaign import Campaign
from evomerge.config.parts import BudgetSection
from evomerge.config.schema import CampaignPlan
from evomerge.errors import BadInput, Fault, Faults, placed
from evomerge.sections import parse
from evomerge.sources.evidence import split_evidence

# What may change when a campaign is continued; all else is the campaign.
MAY_CHANGE = tuple(
    name
    for name, field in CampaignPlan.model_fields.items()
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("may_change")
)


class Earlier(NamedTuple):
    """What a run's directory says of earlier starts.

    Attributes:
        directory: the run's.
        plan: that it was begun with; None if there was no start.
        state: of the campaign.
        proposed: candidates that were asked for.
        seconds: of all starts.
        is_fresh: whether nothing was proposed or taken from other runs yet.

    >>> Earlier(Path("runs/new")).is_fresh
    True
    """

    directory: Path
    plan: CampaignPlan | None = None
    state: str = ""
    proposed: int = 0
    seconds: float = 0.0
    is_fresh: bool = True


def earlier_starts(directory: Path) -> Earlier:
    """Return what a run's directory says of earlier starts.

    Raises:
        BadInput: its plan is of another version.

    >>> earlier_starts(Path("runs/no-such-run")).plan is None
    True
    """
    if not (directory / "archive.db").exists():
        return Earlier(directory)
    with contextlib.closing(Archive(directory / "archive.db")) as archive:
        if not archive.begun:
            return Earlier(directory)
        begun = archive.campaign
        with placed(file=f"{directory}/archive.db"):
            plan = parse(CampaignPlan, begun["plan"])
        proposed = archive.proposed()
        is_fresh = not proposed and not archive.warm_starts()
        return Earlier(directory, plan, begun["state"], proposed, archive.seconds, is_fresh)


def is_spent(earlier: Earlier, plan: CampaignPlan) -> bool:
    """Tell whether an earlier start has spent the budget.

    Raises:
        BadInput: it was made with another plan than this one.

    >>> from evomerge.testing.campaigns import example_plan
    >>> is_spent(Earlier(Path("runs/new")), example_plan())
    False
    """
    if earlier.plan is None:
        return False
    if keys := differences(earlier.plan, plan):
        mend = "restore it, or give the new campaign a name or a --run of its own"
        mend += f" ({earlier.directory})"
        raise BadInput(*(Fault(key, "differs from the campaign begun", mend) for key in keys))
    if earlier.state != "finished" or plan.finals != earlier.plan.finals:
        return False
    if plan.hours is not None and earlier.seconds >= plan.hours * 3600:
        return True
    pairs = zip(plan.searches, earlier.plan.searches, strict=True)
    return not any(_is_longer(new.budget, old.budget) for new, old in pairs)


def _is_longer(new: BudgetSection, old: BudgetSection) -> bool:
    """Tell whether one budget lets a search go on for longer than another."""
    for name in BudgetSection.model_fields:
        limit, before = getattr(new, name), getattr(old, name)
        if before is not None and (limit is None or limit > before):
            return True
    return False


def differences(old: CampaignPlan, new: CampaignPlan) -> list[str]:
    """Return the dotted keys in which two plans differ, those that may change left out.

    >>> from evomerge.testing.campaigns import example_plan
    >>> differences(example_plan(), example_plan(seed=8, finals=3))
    ['seed']
    """
    before, after = (plan.model_dump(mode="json", exclude=set(MAY_CHANGE)) for plan in (old, new))
    for stages in (before["stages"], after["stages"]):
        if stages:  # the last one's budget may change as any other campaign's
            stages[-1].pop("budget")
    # workers may change, but not what answers: near-ties fall otherwise in another engine
    answers = [
        f"workers.{name}"
        for name in ("engine", "quantize")
        if getattr(old.workers, name) != getattr(new.workers, name)
    ]
    return [*_differences(before, after, ""), *answers]


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{path}.{index}")
    elif old != new:
        yield path


def begin(archive: Archive, campaign: Campaign, directory: Path) -> None:
    """Write the plan into a new archive, or check that what it names is still the same.

    Raises:
        BadInput: a source, a task or an item has changed, or the space's genes.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> example_archive_of(example_campaign()).campaign["state"]
    'running'
    """
    plan = campaign.plan.model_dump(mode="json")
    text = yaml.safe_dump(plan, sort_keys=False, allow_unicode=True)
    if not archive.begun:
        (directory / "campaign.yaml").write_text(text, encoding="utf-8")
        archive.begin(campaign.plan.name, plan, campaign.provenance(), campaign.items())
        return
    begun = archive.campaign["provenance"]
    genes = len(begun["genes"])
    if genes != campaign.space.dimension:
        wrong = f"has {campaign.space.dimension} genes in this version, and {genes} before"
        raise BadInput(Fault("space", wrong, "export from it, and start a new campaign"))
    faults = Faults()
    faults.extend(_changed_sources(archive, campaign))
    faults.extend(_changed_fitness(begun["fitness"], archive, campaign))
    faults.check()
    (directory / "campaign.yaml").write_text(text, encoding="utf-8")
    archive.set_plan(plan)
    archive.set_state("running")


def _changed_sources(archive: Archive, campaign: Campaign) -> Iterator[Fault]:
    for source in archive.sources:
        now = campaign.worker.hashes.get(source.name)  # None: of a later stage
        if now not in (None, source.sha256):
            path = campaign.worker.sources[source.name]
            wrong = f"{path} has changed: sha256 {now[:12]}, and {source.sha256[:12]} before"
            what = "the model"
            if split_evidence(source.name)[1].suffix:
                what = "the model and the files beside it"
            key = "sources.base" if source.label == "base" else f"sources.models.{source.label}"
            yield Fault(key, wrong, f"restore {what}, or start a new campaign")


def _changed_fitness(
    before: Mapping[str, str], archive: Archive, campaign: Campaign
) -> Iterator[Fault]:
    for place, section in campaign.plan.entries:
        name, now = section.name, campaign.fitness[section.name].definition
        if now != before[name]:
            key = section.file_key
            path = section.model_dump()[key]
            wrong = f"{path} has changed: sha256 {now}, and {before[name]} before"
            mend = "restore the file, or start a new campaign"
            yield Fault(f"{place}.{key}", wrong, mend)
        hashes = campaign.fitness[name].hashes
        for side in ("search", "heldout"):
            items = {ordinal: hashes[ordinal] for ordinal in campaign.splits[name].of(side)}
            if items != archive.item_hashes(name, side):
                wrong = f"the {side} items of {name} are not those archived"
                mend = "restore the task's data, or start a new campaign"
                yield Fault(place, wrong, mend)
