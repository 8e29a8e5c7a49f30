"""What a campaign learns by gradients before its search, recorded as baselines."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.archive.reader import ArchiveReader
from evomerge.campaign.baselines import add_baselines
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.learning_texts import own_texts, texts_of
from evomerge.campaign.observer import Observer
from evomerge.environment import cores
from evomerge.errors import BadInput, one_line
from evomerge.learning.failure import Unlearnable
from evomerge.learning.learners import (
    LEARNERS,
    Learned,
    LearnerSection,
    LearningProblem,
)
from evomerge.text import duration

if TYPE_CHECKING:
    from evomerge.learning.live_merge import LiveMerge

log = logging.getLogger("evomerge")

_LINES = 10  # of a learner in the log


class _Stopped(Exception):
    """The campaign was told to stop while it learned."""


def learn_starts(
    campaign: Campaign, archive: Archive, observer: Observer, stop: Callable[[], bool]
) -> None:
    """Learn what the archive does not hold yet, and add each merge to its baselines.

    It happens before anything is scored but baselines, and never again afterwards: what could not
    be learned by then is not there, so that a search goes on as it began.

    Args:
        campaign: at its first stage; its sources' weights are here.
        archive: open for writing, with this campaign in it.
        observer: hears what is learned, and why something could not be.
        stop: tells whether to take nothing more on; asked at each step.

    >>> from evomerge.campaign.observer import Silent
    >>> from evomerge.testing.campaigns import example_archive_of, example_campaign
    >>> campaign = example_campaign(hashed=True)  # which learns nothing
    >>> archive = example_archive_of(campaign)
    >>> learn_starts(campaign, archive, Silent(), lambda: False)
    >>> len(archive.baselines())
    4
    """
    known = {candidate.label for candidate in archive.baselines()}
    waiting = [section for section in campaign.learned if section.label not in known]
    if not waiting or _search_has_begun(archive):
        return
    add_baselines(campaign, archive)  # the sources come first
    try:
        _learn_all(waiting, campaign, archive, observer, stop)
    except _Stopped:
        log.info("stopped while it learned")
    _free_memory()


def _learn_all(
    waiting: Sequence[LearnerSection],
    campaign: Campaign,
    archive: Archive,
    observer: Observer,
    stop: Callable[[], bool],
) -> None:
    merge = _opened(campaign)
    if merge is not None:
        for section in waiting:
            _learn(section, campaign, archive, merge, observer, stop)


def _free_memory() -> None:
    """Give back what the model took, which its hooks hold in circles, before workers start."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _search_has_begun(archive: ArchiveReader) -> bool:
    others = (archive.candidates("seed", 0), archive.warm_starts())
    return bool(archive.proposed()) or any(others)


def _opened(campaign: Campaign) -> "LiveMerge | None":
    """Open what merges and differentiates; None, and a warning, where that cannot be."""
    import torch

    from evomerge.learning.live_merge import LiveMerge

    device = campaign.worker.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(campaign.worker.threads or cores())
    sources, base = campaign.sources, campaign.listed.base
    assert base is not None, "a plan that learns has a base"
    try:
        models = [sources[name] for name in campaign.models]
        trust = campaign.worker.trust.remote_code
        return LiveMerge(sources[base], models, device=device, trust_remote_code=trust)
    except Exception as error:  # whatever is wrong, the search can go on without
        labels = ", ".join(section.label for section in campaign.learned)
        _warn(labels, error)
        return None


def _learn(
    section: LearnerSection,
    campaign: Campaign,
    archive: Archive,
    merge: "LiveMerge",
    observer: Observer,
    stop: Callable[[], bool],
) -> None:
    """Learn one merge and record it, or say why it could not be learned."""
    label, began = section.label, time.monotonic()

    def step(number: int, loss: float) -> None:
        if stop():
            raise _Stopped
        if number % max(1, _steps(section) // _LINES) == 0:
            log.info("%s: step %d, loss %.4g", label, number, loss)

    try:
        own = own_texts(campaign, section)
        texts = [] if own else texts_of(campaign, section)
        problem = LearningProblem(merge, texts, campaign.plan.seed, own, step)
        count = sum(map(len, own.values())) if own else len(texts)
        observer.say(f"learning {label}: {count} texts, {section.effort}")
        learned: Learned = LEARNERS.get(section.kind).learn(problem, section)
        if not np.isfinite(learned.coefficients).all():
            raise Unlearnable("a coefficient is not finite")
        recipe = learned.parting.recipe(
            learned.coefficients, campaign.models, str(campaign.listed.base), campaign.worker.dtype
        )
    except _Stopped:
        raise
    except Exception as error:  # a baseline the less
        _warn(label, error)
        return
    archive.add_baseline(recipe.id(campaign.worker.hashes), recipe, label)
    losses, seconds = learned.losses, duration(time.monotonic() - began)
    line = f"learned {label} in {seconds}: loss {losses[0]:.4g} at first, {losses[-1]:.4g} at last"
    log.info("%s", line)
    observer.say(line)


def _steps(section: LearnerSection) -> int:
    return int(getattr(section, "steps", 1))


def _warn(labels: str, error: Exception) -> None:
    is_known = isinstance(error, Unlearnable | BadInput)
    reason = str(error) if is_known else one_line(error)
    log.warning("%s could not be learned: %s", labels, reason)
    if not is_known:
        log.info("where it went wrong", exc_info=error)
