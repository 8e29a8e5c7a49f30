"""What earlier starts of a run left: its plan, what is spent, whether all is still the same."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evomerge import config
from evomerge.archive import Archive
from evomerge.campaign import Campaign
from evomerge.errors import BadInput, Fault


class Before(NamedTuple):
    """What a run's directory says of an earlier start; `plan` is None if there was none."""

    directory: Path
    plan: dict | None = None
    state: str = ""
    proposed: int = 0
    seconds: float = 0.0
    fresh: bool = True  # nothing was adopted or proposed yet


def before_of(directory: Path) -> Before:
    """Return what a run's directory says of earlier starts."""
    if not (directory / "archive.db").exists():
        return Before(directory)
    with contextlib.closing(Archive(directory / "archive.db")) as archive:
        begun = archive.campaign
        if begun is None:
            return Before(directory)
        proposed = archive.proposed()
        fresh = not proposed and not archive.candidates("origin = 'adopted'")
        return Before(directory, begun["plan"], begun["state"], proposed, archive.seconds, fresh)


def is_spent(before: Before, plan: dict, file: str) -> bool:
    """Tell whether an earlier start has spent the budget.

    Raises:
        BadInput: it was made with another plan than this one.
    """
    if before.plan is None:
        return False
    if keys := config.differences(before.plan, plan):
        place = f"({before.directory})"
        mend = f"restore it, or give the new campaign a name or a --run of its own {place}"
        raise BadInput(*(Fault(file, k, "differs from the campaign begun", mend) for k in keys))
    hours = plan["budget"]["hours"]
    spent = before.proposed >= plan["budget"]["evaluations"]
    timed_out = hours is not None and before.seconds >= hours * 3600
    same_finals = plan["finals"] == before.plan["finals"]
    return before.state == "finished" and (spent or timed_out) and same_finals


def begin(
    archive: Archive, plan: Mapping[str, Any], campaign: Campaign, directory: Path, file: str
) -> None:
    """Write the plan into a new archive, or check that what it names is still the same.

    Raises:
        BadInput: a source, a task or an item has changed, or the space's genes.
    """
    text = yaml.safe_dump(dict(plan), sort_keys=False, allow_unicode=True)
    begun = archive.campaign
    if begun is None:
        (directory / "campaign.yaml").write_text(text, encoding="utf-8")
        archive.begin(plan["name"], plan, campaign.provenance(), campaign.items())
        return
    genes = begun["provenance"].get("genes", campaign.space.names)
    if len(genes) != campaign.space.dimension:
        wrong = f"has {campaign.space.dimension} genes in this version, and {len(genes)} before"
        raise BadInput(Fault(file, "space", wrong, "export from it, and start a new campaign"))
    faults = [
        *_changed_sources(begun["provenance"], campaign, file),
        *_changed_fitness(begun["provenance"], campaign, archive, file),
    ]
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    (directory / "campaign.yaml").write_text(text, encoding="utf-8")
    archive.set_plan(plan)
    archive.set_state("running")


def _changed_sources(provenance: Mapping, campaign: Campaign, file: str) -> Iterator[Fault]:
    for label, source in provenance["sources"].items():
        now = campaign.worker.hashes.get(source["name"])  # None: of a later stage
        if now not in (None, source["sha256"]):
            where = campaign.worker.sources[source["name"]]
            wrong = f"{where} has changed: sha256 {now[:12]}, and {source['sha256'][:12]} before"
            mend = "restore the model, or start a new campaign"
            yield Fault(file, f"sources.{label}", wrong, mend)


def _changed_fitness(
    provenance: Mapping, campaign: Campaign, archive: Archive, file: str
) -> Iterator[Fault]:
    before = provenance.get("fitness", {})
    for index, (name, fitness) in enumerate(campaign.fitness.items()):
        if fitness.definition != before.get(name, fitness.definition):
            spec = campaign.plan["fitness"][index]
            key = "function" if spec["function"] else "task"
            wrong = (
                f"{spec[key]} has changed: sha256 {fitness.definition}, and {before[name]} before"
            )
            mend = "restore the file, or start a new campaign"
            yield Fault(file, f"fitness.{index}.{key}", wrong, mend)
        for side in ("search", "heldout"):
            ordinals = getattr(campaign.splits[name], side)
            if {o: fitness.hashes[o] for o in ordinals} != archive.item_hashes(name, side):
                wrong = f"the {side} items of {name} are not those archived"
                mend = "restore the task's data, or start a new campaign"
                yield Fault(file, f"fitness.{index}", wrong, mend)
