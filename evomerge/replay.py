"""A controller is a fold of the ledger: bring a fresh one to where the ledger got to."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.archive import Archive, Event
from evomerge.campaign import Campaign
from evomerge.controllers import Proposal
from evomerge.errors import EvomergeError
from evomerge.spaces import quantize
from evomerge.telling import Teller


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
