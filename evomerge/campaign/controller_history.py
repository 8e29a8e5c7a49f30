"""What went on in a controller: a run's ledger told once more, from the beginning."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from evomerge.archive.records import Event
from evomerge.archive.summary import open_run
from evomerge.campaign.baselines import (
    baseline_means,
    learned_recipes,
    start_after_baselines,
)
from evomerge.campaign.build import open_campaign
from evomerge.campaign.feedback import FeedbackScale
from evomerge.campaign.replay import replay
from evomerge.config.validate import checked_plan
from evomerge.search.controllers import Controller


def controller_history(
    directory: Path | str, stage: int = 0, *, moved: Mapping[str, str] | None = None
) -> Iterator[tuple[Event, Controller]]:
    """Yield the events of a run's ledger, each with the controller as it was after it.

    The controller is one object, which changes from event to event: take from it what you want to
    keep. The run is only read; its sources are opened, and none is loaded.

    Args:
        directory: the run's.
        stage: which of its searches, from 0.
        moved: label -> directory of sources that lie elsewhere now.

    Raises:
        BadInput: the directory holds no run, or a source or task of it is not there.
        ReplayMismatch: the controller proposes otherwise than the ledger holds.

    >>> import tempfile
    >>> from evomerge.campaign.run import run_campaign
    >>> from evomerge.testing.campaigns import example_campaign_file
    >>> with tempfile.TemporaryDirectory() as run:
    ...     finished = run_campaign(example_campaign_file(), directory=run)
    ...     kinds = [event.kind for event, controller in controller_history(run)]
    >>> kinds[:6]  # four baselines are told, then it is asked
    ['tell', 'tell', 'tell', 'tell', 'ask', 'tell']
    """
    with contextlib.closing(open_run(directory)) as archive:
        plan = checked_plan(archive.campaign["plan"])
        known = {source.label: source.name for source in archive.sources}
        found = [known[earlier.name] for earlier in plan.stages[:stage]]
        campaign = open_campaign(plan, stage, moved, found)
        archive.stage = stage
        scored = baseline_means(archive)
        learned = learned_recipes(campaign, archive)
        start = start_after_baselines(campaign, scored, lambda label, _: scored.get(label), learned)
        feedback = FeedbackScale(campaign, archive, baseline_means(archive, stage=0))
        yield from replay(campaign, archive, feedback, start=start)
