"""What transformers says to the best that another engine scored.

Two engines round otherwise, so that items on which two answers are nearly as likely fall otherwise.
People will run the exported model by transformers, or by something else again: how many items that
concerns is told beside the scores.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.archive.archive import Archive
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.observer import Observer
from evomerge.errors import EvomergeError, one_line
from evomerge.scoring.outcome import Outcome
from evomerge.workers.pool import make_pool
from evomerge.workers.protocol import Finished, Job, Lost, Pool

if TYPE_CHECKING:
    from evomerge.workers.ray_cluster import RayCluster

log = logging.getLogger("evomerge")

_TRIES = 2  # of workers that may be lost


def compare_best(
    campaign: Campaign,
    archive: Archive,
    observer: Observer,
    stop: Callable[[], bool],
    cluster: "RayCluster | None" = None,
) -> bool:
    """Score the best on held-out items by transformers too, where another engine scored it.

    Args:
        campaign: of the last stage, its budget spent.
        archive: its own; gets the scores.
        observer: hears of it.
        stop: asked about once a second.
        cluster: on which workers are Ray's.

    Returns:
        False if it was told to stop before.

    >>> from evomerge.campaign.observer import Silent
    >>> from evomerge.campaign.runner import never
    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign(hashed=True)
    >>> compare_best(campaign, example_archive_of(campaign), Silent(), never)  # nothing to compare
    True
    """
    plan, best = campaign.worker, archive.best()
    if plan.engine == "transformers" or best is None:
        return True
    if not archive.means(best, "heldout") or archive.agreement(best):
        return True
    observer.say(f"comparing candidate {best}, the best, with what transformers says")
    workers = campaign.plan.workers.model_copy(update={"count": 1})
    plain = replace(plan, engine="transformers", by_request={}, candidates_each=1)
    job = Job(best, archive.candidate(best).recipe, "heldout")
    try:
        pool = make_pool(plain, workers, cluster)
        try:
            outcome = _outcome(pool, job, archive, observer, stop)
        finally:
            pool.close()
    except (EvomergeError, RuntimeError, OSError, MemoryError) as error:
        outcome = Outcome("failed", one_line(error))  # the search is finished all the same
    if outcome is None:
        return False
    if outcome.status != "ok":
        wrong = f"candidate {best} could not be scored by transformers: {outcome.reason}"
        log.warning("%s", wrong)
        observer.say(f"warning: {wrong}")
        return True
    archive.record_by_transformers(best, outcome)
    return True


def _outcome(
    pool: Pool, job: Job, archive: Archive, observer: Observer, stop: Callable[[], bool]
) -> Outcome | None:
    """Return a job's outcome; None if told to stop before."""
    reason = ""
    for _ in range(_TRIES):
        pool.submit(job)
        event: Finished | Lost | None = None
        while event is None:
            if stop():
                return None
            event = pool.next_finished(timeout=1.0)
            observer.update(archive, pool.workers)
        if isinstance(event, Finished):
            return event.outcome
        reason = event.reason
    return Outcome("failed", f"lost its worker {_TRIES} times: {reason}")
