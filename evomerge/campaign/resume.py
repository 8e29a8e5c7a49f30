"""What earlier starts of a run left: its plan, what is spent, whether all is still the same."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from evomerge.archive.archive import Archive, Event
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.feedback import Teller
from evomerge.errors import BadInput, EvomergeError, Fault
from evomerge.search.controllers import Proposal
from evomerge.search.spaces import quantize

# What may change when a campaign is continued; all else is the campaign.
MAY_CHANGE = ("budget", "workers", "finals")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the dotted keys in which two plans differ, what `MAY_CHANGE` names left out."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            d
            for k in keys
            if (path or k not in MAY_CHANGE) and (k in old or new[k])  # not a later version's key
            for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if path == "stages" and new:  # the last one's budget may change as any other campaign's
            old, new = ([*s[:-1], {**s[-1], "budget": None}] for s in (old, new))
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [path]


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
    if keys := differences(before.plan, plan):
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


class ReplayMismatch(EvomergeError):
    """The controller no longer proposes what the ledger holds."""


def replayed(
    campaign: Campaign, archive: Archive, teller: Teller, *, start: np.ndarray, adopt: bool
) -> Any:
    """Return the campaign's controller as it was after the ledger's last event.

    Args:
        campaign: whose controller it is.
        archive: the ledger.
        teller: gives what was heard; its offset is set.
        start: where the search begins.
        adopt: where the controller proposes otherwise than the ledger holds, record that, and
            go on from the told outcomes.

    Raises:
        ReplayMismatch: it proposes otherwise, and `adopt` is not set.
    """
    events = list(archive.events())
    adoptions = [i for i, event in enumerate(events) if event.kind == "adopt"]
    last = adoptions[-1] if adoptions else -1
    controller = campaign.controller(start)
    if adoptions:
        _tell_all(controller, events[: last + 1], teller)
    for event in events[last + 1 :]:
        if event.kind == "tell":
            controller.tell(teller.told(event.candidate, event.means))
            continue
        asked = quantized(controller.ask(event.n), campaign.space)
        if list(map(_exactly, asked)) == list(map(_exactly, event.proposals)):
            continue
        if adopt:
            archive.record_adopt()
            controller = campaign.controller(start)
            _tell_all(controller, list(archive.events()), teller)
            return controller
        kind = campaign.plan["controller"]["kind"]
        raise ReplayMismatch(
            f"event {event.seq}: {kind} no longer proposes what the archive holds; was a"
            " library changed? `evomerge run ... --adopt` goes on from the told outcomes"
        )
    return controller


def _tell_all(controller: Any, events: Sequence[Event], teller: Teller) -> None:
    """Tell every outcome up to an adoption as somebody else's."""
    teller.offset = events[-1].n
    for event in events:
        if event.kind == "tell":
            controller.tell(teller.told(event.candidate, event.means))


def quantized(proposals: Sequence[Proposal], space: Any) -> list[Proposal]:
    """Return proposals with their genomes rounded, and settled if `space` does that."""
    settled = getattr(space, "settled", lambda genome: genome)
    return [Proposal(settled(quantize(p.genome)), tuple(p.parents)) for p in proposals]


def _exactly(proposal: Proposal) -> tuple[bytes, tuple[int, ...]]:
    return proposal.genome.tobytes(), proposal.parents
