"""A controller is a fold of the ledger: bring a fresh one to where the ledger got to."""

from collections.abc import Iterator, Sequence

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Event
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.feedback import FeedbackScale
from evomerge.errors import EvomergeError
from evomerge.search.controllers import Controller, Proposal
from evomerge.search.spaces import PointSpace, SearchSpace, quantize


class ReplayMismatch(EvomergeError):
    """The controller no longer proposes what the ledger holds.

    >>> issubclass(ReplayMismatch, EvomergeError)
    True
    """


def replayed(
    campaign: Campaign,
    archive: Archive,
    feedback: FeedbackScale,
    *,
    start: np.ndarray,
    rebuild: bool,
) -> Controller:
    """Return the campaign's controller as it was after the ledger's last event.

    Args:
        campaign: whose controller it is.
        archive: the ledger.
        feedback: gives what was heard; its offset is set.
        start: (dimension,) where the search begins.
        rebuild: where the controller proposes otherwise than the ledger holds, record that, and
            go on from the told outcomes.

    Raises:
        ReplayMismatch: it proposes otherwise, and `rebuild` is not set.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign()
    >>> archive = example_archive_of(campaign)
    >>> means = {c.label: archive.means(c.id) for c in archive.baselines()}
    >>> feedback = FeedbackScale(campaign, archive, means)
    >>> start = campaign.space.start
    >>> controller = replayed(campaign, archive, feedback, start=start, rebuild=False)
    >>> len(controller.ask(2))
    2
    """
    controller = campaign.controller(start)
    try:
        for _, told in replay(campaign, archive, feedback, start=start):
            controller = told
    except ReplayMismatch:
        if not rebuild:
            raise
        archive.record_rebuild()
        controller = campaign.controller(start)
        _tell_all(controller, list(archive.events()), feedback)
    return controller


def replay(
    campaign: Campaign, archive: ArchiveReader, feedback: FeedbackScale, *, start: np.ndarray
) -> Iterator[tuple[Event, Controller]]:
    """Yield the ledger's events, each with the campaign's controller as it was after it.

    Events before a controller was built anew are one step, to the last rebuild. For the arguments
    and what is raised, see `replayed`.

    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign()
    >>> archive = example_archive_of(campaign)  # its baselines are scored and told
    >>> means = {c.label: archive.means(c.id) for c in archive.baselines()}
    >>> feedback = FeedbackScale(campaign, archive, means)
    >>> [e.kind for e, _ in replay(campaign, archive, feedback, start=campaign.space.start)]
    ['tell', 'tell', 'tell', 'tell']
    """
    events = list(archive.events())
    rebuilds = [i for i, event in enumerate(events) if event.kind == "rebuild"]
    last = rebuilds[-1] if rebuilds else -1
    controller = campaign.controller(start)
    if rebuilds:
        _tell_all(controller, events[: last + 1], feedback)
        yield events[last], controller
    in_parts = campaign.parts is not None
    for event in events[last + 1 :]:
        if event.candidate is not None:
            controller.tell(feedback.feedback(event.candidate, event.scores))
        else:
            asked = quantized(controller.ask(event.asked), campaign.space)
            ledger = [_exactly(proposal, in_parts) for proposal in event.proposals]
            if [_exactly(proposal, in_parts) for proposal in asked] != ledger:
                raise ReplayMismatch(
                    f"event {event.seq}: {campaign.search.controller.kind} no longer proposes what"
                    " the archive holds; was a library changed? `evomerge run ..."
                    " --rebuild-controller` goes on from the told outcomes"
                )
        yield event, controller


def _tell_all(controller: Controller, events: Sequence[Event], feedback: FeedbackScale) -> None:
    """Tell every outcome up to a rebuild as somebody else's."""
    feedback.offset = events[-1].proposed
    for event in events:
        if event.candidate is not None:
            controller.tell(feedback.feedback(event.candidate, event.scores))


def quantized(proposals: Sequence[Proposal], space: SearchSpace) -> list[Proposal]:
    """Return proposals with their genomes rounded, and settled where the space does that.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> space = example_campaign().space
    >>> quantized([Proposal(space.start)], space)[0].parents
    ()
    """
    found = []
    for proposal in proposals:
        rounded = quantize(proposal.genome)
        if isinstance(space, PointSpace):
            rounded = space.settled(rounded)
        found.append(proposal._replace(genome=rounded, parents=tuple(proposal.parents)))
    return found


def _exactly(proposal: Proposal, in_parts: bool) -> tuple[object, ...]:
    """Return what has to be equal for a proposal to be the one of the ledger."""
    part = proposal.part if in_parts else 0
    if proposal.again is not None:  # its genome and parents are those of the other
        return part, proposal.again
    return part, proposal.genome.tobytes(), proposal.parents
