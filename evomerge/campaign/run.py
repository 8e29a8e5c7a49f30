"""A campaign file checked, and run in its directory: started, continued, finished."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evomerge.archive.archive import Archive
from evomerge.archive.database import DatabaseError
from evomerge.archive.run_lock import RunLock
from evomerge.campaign.agreement import compare_best
from evomerge.campaign.build import checked_campaigns, open_campaign, pinned_plan, read_and_check
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.engine_choice import with_engine
from evomerge.campaign.judging import with_judges
from evomerge.campaign.learned import learn_starts
from evomerge.campaign.observer import Observer, Silent
from evomerge.campaign.resume import begin, earlier_starts, is_spent
from evomerge.campaign.run_log import logging_to
from evomerge.campaign.runner import Runner, never
from evomerge.campaign.source_hashes import hash_sources
from evomerge.campaign.tracked import Tracked
from evomerge.campaign.warm_start import warm_starts
from evomerge.config.parts import WorkersSection
from evomerge.config.schema import CampaignPlan
from evomerge.errors import EvomergeError, one_line, placed
from evomerge.text import byte_size

if TYPE_CHECKING:
    from evomerge.workers.ray_cluster import RayCluster

log = logging.getLogger("evomerge")


def run_campaign(
    file: Path | str,
    *,
    directory: Path | str | None = None,
    settings: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
    rebuild_controller: bool = False,
    observer: Observer | None = None,
    stop: Callable[[], bool] = never,
) -> bool:
    """Start or continue a campaign; return whether it is finished (False: interrupted).

    It may run in any thread. It installs no signal handlers; those of the command line answer
    `stop`.

    Args:
        file: the campaign's YAML.
        directory: the run's; runs/NAME by default.
        settings: `a.b=YAML` overrides.
        moved: label -> directory of sources that lie elsewhere.
        rebuild_controller: see `Runner`.
        observer: hears of the progress; by default nobody does.
        stop: asked about once a second; once it says True, what is in flight is waited for.

    Raises:
        BadInput: nothing was loaded or written.
        EvomergeError: the campaign failed, or another process holds the directory.

    >>> from evomerge.testing.campaigns import example_campaign_file
    >>> file = example_campaign_file()
    >>> run_campaign(file, directory=file.parent / "run")
    True
    """
    file, observer = Path(file), observer or Silent()
    plan = read_and_check(file, settings, moved)
    directory = Path(directory or Path("runs") / plan.name)
    earlier = earlier_starts(directory)
    with placed(file=str(file)):
        plan = pinned_plan(plan, earlier.plan)
        if is_spent(earlier, plan):
            with Tracked(observer, plan.track, directory) as tracked:
                tracked.finished(directory)
            return True
        campaign = checked_campaigns(plan, moved, earlier.is_fresh)[0]
    with (
        Tracked(observer, plan.track, directory) as observer,
        _cluster(plan.workers, file, observer) as cluster,  # before anything is hashed
    ):
        with placed(file=str(file)):
            if campaign.to_fetch:  # now that nothing is wrong
                size = byte_size(sum(campaign.to_fetch.values()))
                observer.say(f"fetching {size} of weights from the hub")
                campaign = open_campaign(plan, 0, moved, weights=True)
            campaign = hash_sources(campaign, moved)
            if earlier.is_fresh:
                campaign = replace(campaign, warm_starts=warm_starts(campaign))
        for warning in campaign.warnings:
            observer.say(f"warning: {warning}")
        start = _Start(directory, file, moved or {}, rebuild_controller, observer, stop, cluster)
        finished = _in_directory(campaign, start)
        if finished:
            observer.finished(directory)
    return finished


class _Start(NamedTuple):
    """One start of a campaign: what all of its searches are run with."""

    directory: Path
    file: Path
    moved: Mapping[str, str]
    rebuild_controller: bool
    observer: Observer
    stop: Callable[[], bool]
    cluster: "RayCluster | None"


@contextlib.contextmanager
def _cluster(
    workers: WorkersSection, file: Path, observer: Observer
) -> "Iterator[RayCluster | None]":
    """Connect the Ray that workers are to run on, and say if it has no room for all of them.

    Raises:
        BadInput: it has room for none.
        EvomergeError: it cannot be reached.
    """
    if workers.pool == "inline":
        yield None
        return
    from evomerge.workers.ray_cluster import RayCluster

    with placed(file=str(file)):
        cluster = RayCluster(workers)
    with cluster:
        if warning := cluster.warning():
            observer.say(f"warning: {warning}")
        yield cluster


def _in_directory(campaign: Campaign, start: _Start) -> bool:
    """Run a campaign's searches in its directory; return whether all are finished."""
    directory = start.directory
    _make_directory(directory)
    try:
        with (
            RunLock(directory),
            contextlib.closing(Archive(directory / "archive.db", write=True)) as archive,
        ):
            with placed(file=str(start.file)):
                begin(archive, campaign, directory)
            return _run_stages(campaign, archive, start)
    except (OSError, DatabaseError) as error:
        reason = f"{directory} cannot be written: {one_line(error)}"
        mend = "what is archived stays; make room or mend the disk, and run the same again"
        raise EvomergeError(f"{reason}; {mend}") from error


def _run_stages(campaign: Campaign, archive: Archive, start: _Start) -> bool:
    """Run the searches of a campaign that are not done; return whether all are finished."""
    plan = campaign.plan
    for stage in range(len(plan.searches)):
        if archive.stage_has_begun(stage + 1):
            continue
        if stage:
            campaign = _next_stage(archive, plan, stage, start)
        if not _drive(campaign, archive, start):
            return False
    return True


def _next_stage(archive: Archive, plan: CampaignPlan, stage: int, start: _Start) -> Campaign:
    """Open a later stage: the best of those before are among its sources.

    Raises:
        EvomergeError: a stage before has no candidate that could be scored, or what it found does
            not fit; the archive has the reason.
    """
    known = {source.label: source for source in archive.sources}
    try:
        names, places = [], dict(start.moved)
        for number, before in enumerate(plan.stages[:stage]):
            best = archive.best_found(number)
            if best is None:
                wrong = f"no candidate of the stage '{before.name}' could be scored"
                raise EvomergeError(f"{wrong}; mend its space")
            # The name stays that of the first start, wherever the run's directory lies now.
            candidate = f"{start.directory}#{best}"
            places[before.name] = candidate
            names.append(known[before.name].name if before.name in known else candidate)
        with placed(file=str(start.file)):
            campaign = open_campaign(plan, stage, places, names, weights=True)
            campaign = hash_sources(campaign, start.moved)
        sources = campaign.provenance()["sources"]
        for label, source in sources.items():
            if label in known and known[label].sha256 != source["sha256"]:
                wrong = f"what the stage '{label}' found is not what it was"
                raise EvomergeError(f"{wrong}: the merge gives other weights; restore evomerge")
    except EvomergeError as error:
        archive.set_state("failed", str(error))
        raise EvomergeError(str(error)) from error
    archive.add_genes(plan.stages[stage].name, campaign.genes())
    stages = {before.name for before in plan.stages}
    archive.add_sources(
        {
            label: {**source, "own": label in stages}
            for label, source in sources.items()
            if label not in known
        }
    )
    return campaign


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".lock").touch()
    except OSError as error:
        raise EvomergeError(f"{directory} cannot be written: {error.strerror}") from None


def _drive(campaign: Campaign, archive: Archive, start: _Start) -> bool:
    """Run one search with workers of its own; return whether it is finished."""
    from evomerge.workers.pool import make_pool  # which needs torch

    workers, observer, stop = campaign.plan.workers, start.observer, start.stop
    with logging_to(start.directory / "log.txt", observer):
        pool = None
        try:
            stage = f", stage {campaign.search.name}" if campaign.plan.stages else ""
            observer.say(
                f"{campaign.plan.name}{stage}: {campaign.space.dimension} genes,"
                f" {workers.count} worker(s), pool {workers.pool}; starting"
            )
            log.info("start on %s", json.dumps(campaign.machine()))
            campaign = with_engine(campaign, archive, observer, start.cluster)
            learn_starts(campaign, archive, observer, stop)  # before workers take the memory
            pool = make_pool(campaign.worker, workers, start.cluster)
            pool = with_judges(pool, campaign, archive)
            rebuild = start.rebuild_controller
            runner = Runner(
                campaign, archive, pool, observer, rebuild_controller=rebuild, stop=stop
            )
            finished = runner.run()
            if finished and campaign.is_last:
                pool.close()  # whose engine may take all of a GPU
                pool = None
                finished = compare_best(campaign, archive, observer, stop, start.cluster)
            if campaign.is_last or not finished:
                archive.set_state("finished" if finished else "interrupted")
            log.info("finished" if finished else "interrupted")
            return finished
        except KeyboardInterrupt:
            archive.set_state("interrupted")
            log.info("left at once")
            return False
        except Exception as error:
            is_known = isinstance(error, EvomergeError)
            reason = str(error) if is_known else one_line(error)
            log.exception("failed")
            if is_known and stop():
                # told to stop, as Ray's own processes may have been: they end beneath the workers
                archive.set_state("interrupted")
                return False
            with contextlib.suppress(DatabaseError):  # the disk may be what failed
                archive.set_state("failed", reason)
            if isinstance(error, DatabaseError):
                raise
            if is_known:
                raise EvomergeError(reason) from error
            raise EvomergeError(f"{reason} (details in {start.directory / 'log.txt'})") from error
        finally:
            if pool is not None:
                pool.close()
