"""Several jobs of one worker, those that are asked the same questions at once."""

import time
from collections.abc import Sequence
from dataclasses import replace

from evomerge.scoring.outcome import Outcome
from evomerge.workers.protocol import Job
from evomerge.workers.worker import Worker


def evaluate_all(worker: Worker, jobs: Sequence[Job]) -> list[Outcome]:
    """Return the outcomes of jobs; an engine that holds several candidates answers for all at once.

    Raises:
        SourceChanged: see `Worker.evaluate`.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> campaign = example_campaign(hashed=True)
    >>> jobs = [Job(number, campaign.space.first, "search") for number in (1, 2)]
    >>> [outcome.status for outcome in evaluate_all(Worker(campaign.worker), jobs)]
    ['ok', 'ok']
    """
    outcomes: dict[int, Outcome] = {}
    for group in _asked_alike(jobs):
        began = time.perf_counter()
        if len(group) > 1:
            worker.expect([jobs[place] for place in group])
        found = [worker.evaluate(jobs[place]) for place in group]
        # the first one's answers may have taken the time of all: each gets its share
        merging = sum(outcome.seconds_merge for outcome in found)
        share = (time.perf_counter() - began - merging) / len(group)
        for place, outcome in zip(group, found, strict=True):
            outcomes[place] = replace(outcome, seconds_score=share)
    return [outcomes[place] for place in range(len(jobs))]


def _asked_alike(jobs: Sequence[Job]) -> list[list[int]]:
    """Part jobs, by their places, into groups whose candidates are asked the same questions.

    >>> from evomerge.recipes.parameters import single
    >>> one = Job(7, single("a", "float32"), "search")
    >>> _asked_alike([one, one._replace(side="heldout"), one._replace(candidate=8)])
    [[0, 2], [1]]
    """
    groups: dict[object, list[int]] = {}
    for place, job in enumerate(jobs):
        ordinals = None if job.ordinals is None else tuple(sorted(job.ordinals.items()))
        groups.setdefault((job.side, ordinals), []).append(place)
    return list(groups.values())
