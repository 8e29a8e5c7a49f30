"""The commands' work: a campaign file checked, run in its directory, and exported."""

import contextlib
import json
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.archive.archive import Archive, DatabaseError
from evomerge.archive.references import pinned
from evomerge.archive.run_lock import RunLock
from evomerge.archive.summary import searches
from evomerge.campaign.build import prepare, read_plan
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.resume import before_of, begin, is_spent
from evomerge.campaign.runner import Runner
from evomerge.campaign.source_hashes import hash_sources
from evomerge.campaign.warm_start import adopted, candidates_of
from evomerge.config.stages import stage_plan
from evomerge.errors import BadInput, EvomergeError, Fault, one_line

log = logging.getLogger("evomerge")


def checked(file: Path, settings: Sequence[str], moved: Mapping[str, str]) -> list[Campaign]:
    """Load and check a campaign file; see `check.read_plan` and `check.prepare`.

    Returns:
        Its stages, each as a campaign; in later ones a model stands for what is not found yet.
    """
    plan, faults = read_plan(file, settings, moved), []
    try:
        plan = pinned(plan, None, str(file))
    except BadInput as error:
        faults += error.faults
    return _prepared(plan, str(file), moved, faults)


def _prepared(
    plan: Mapping[str, Any],
    file: str,
    moved: Mapping[str, str],
    faults: Sequence[Fault] = (),
    fresh: bool = True,
) -> list[Campaign]:
    """Return a plan's stages as campaigns.

    Raises:
        BadInput: with `faults`, those of all stages, and of what a fresh campaign begins with.
    """
    found, faults, kind = [], list(faults), None
    for number in range(len(searches(plan))):
        prefix = f"stages.{number}." if plan["stages"] else ""
        try:
            found.append(prepare(stage_plan(plan, number), file, moved, fresh))
            kind = found[0].space.first.kind if number == 0 else kind
        except BadInput as error:
            faults += [
                replace(f, key=prefix + f.key) if f.key.startswith("space.") else f
                for f in error.faults
            ]
    if fresh:
        try:
            candidates_of(plan["init"], kind, file)
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    return found


def run_campaign(
    file: Path,
    *,
    directory: Path | None = None,
    settings: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
    adopt: bool = False,
    progress: Any,
) -> bool:
    """Start or continue a campaign; return whether it is finished (False: interrupted).

    Args:
        file: the campaign's YAML.
        directory: the run's; runs/NAME by default.
        settings: `a.b=YAML` overrides.
        moved: label -> directory of sources that lie elsewhere.
        adopt: see `Runner`.
        progress: has `say(text)` and `finished(directory)`, and is called with the archive.

    Raises:
        BadInput: nothing was loaded or written.
        EvomergeError: the campaign failed, or another process holds the directory.
    """
    plan = read_plan(file, settings, moved or {})
    directory = directory or Path("runs") / plan["name"]
    before = before_of(directory)
    plan = pinned(plan, before.plan, str(file))
    if is_spent(before, plan, str(file)):
        progress.finished(directory)
        return True
    stages = len(searches(plan))
    campaign = _prepared(plan, str(file), moved or {}, fresh=before.fresh)[0]
    campaign = hash_sources(campaign, str(file), moved)
    if before.fresh:
        hashes = campaign.worker.hashes
        campaign.adopted = adopted(plan["init"], campaign.space, hashes, str(file))
    for warning in campaign.warnings:
        progress.say(f"warning: {warning}")
    _make_directory(directory)
    try:
        with RunLock(directory):
            archive = Archive(directory / "archive.db", write=True)
            begin(archive, plan, campaign, directory, str(file))
            for number in range(stages):
                finished = _done(archive, number)
                if finished:
                    continue
                if number:
                    campaign = _next_stage(archive, plan, number, directory, str(file), moved or {})
                campaign.stage, campaign.last = number, number == stages - 1
                finished = _drive(campaign, archive, adopt, progress, directory)
                if not finished:
                    break
            archive.close()
    except (OSError, DatabaseError) as error:
        reason = f"{directory} cannot be written: {one_line(error)}"
        mend = "what is archived stays; make room or mend the disk, and run the same again"
        raise EvomergeError(f"{reason}; {mend}") from error
    if finished:
        progress.finished(directory)
    return finished


def _done(archive: Archive, stage: int) -> bool:
    """Tell whether a later stage has begun."""
    return bool(
        archive.candidates("id = (SELECT MIN(id) FROM candidates WHERE stage > ?)", (stage,))
    )


def _next_stage(
    archive: Archive,
    plan: Mapping[str, Any],
    number: int,
    directory: Path,
    file: str,
    moved: Mapping[str, str],
) -> Campaign:
    """Open a later stage: the best of those before are among its sources.

    Raises:
        EvomergeError: a stage before has no candidate that could be scored, or what it found does
            not fit; the archive has the reason.
    """
    known = archive.campaign["provenance"]["sources"]
    try:
        names, there = [], dict(moved)
        for before, stage in enumerate(plan["stages"][:number]):
            best = archive.best_found(before)
            if best is None:
                wrong = f"no candidate of the stage '{stage['name']}' could be scored"
                raise EvomergeError(f"{wrong}; mend its space")
            there[stage["name"]] = f"{directory}#{best}"  # wherever it was when it was named
            names.append(known.get(stage["name"], {"name": f"{directory}#{best}"})["name"])
        campaign = prepare(stage_plan(plan, number, names), file, there, fresh=False)
        campaign = hash_sources(campaign, file, moved)
        own = campaign.provenance()["sources"]
        for label, source in own.items():
            if label in known and known[label]["sha256"] != source["sha256"]:
                wrong = f"what the stage '{label}' found is not what it was"
                raise EvomergeError(f"{wrong}: the merge gives other weights; restore evomerge")
    except EvomergeError as error:
        archive.set_state("failed", str(error))
        raise EvomergeError(str(error)) from error
    found = {stage["name"] for stage in plan["stages"]}
    rows = {label: s | {"own": label in found} for label, s in own.items() if label not in known}
    archive.add_sources(rows)
    return campaign


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".lock").touch()
    except OSError as error:
        raise EvomergeError(f"{directory} cannot be written: {error.strerror}") from None


def _drive(
    campaign: Campaign, archive: Archive, adopt: bool, progress: Any, directory: Path
) -> bool:
    from evomerge.workers.pool import make_pool

    logging.raiseExceptions = False  # a full disk is told once, not at every line of the log
    handler = logging.FileHandler(directory / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    pool = None
    try:
        workers = campaign.plan["workers"]
        stages = campaign.plan["stages"]
        of = f", stage {stages[campaign.stage]['name']}" if stages else ""
        progress.say(
            f"{campaign.plan['name']}{of}: {campaign.space.dimension} genes,"
            f" {workers['count']} worker(s), pool {workers['pool']}; starting"
        )
        log.info("start on %s", json.dumps(campaign.machine()))
        pool = make_pool(campaign.worker, workers)
        runner = Runner(campaign, archive, pool, adopt=adopt, on_progress=progress)
        with _stop_on_signal(runner, progress):
            finished = runner.run()
        if campaign.last or not finished:
            archive.set_state("finished" if finished else "interrupted")
        log.info("finished" if finished else "interrupted")
        return finished
    except KeyboardInterrupt:
        archive.set_state("interrupted")
        log.info("left at once")
        return False
    except Exception as error:
        known = isinstance(error, EvomergeError)
        reason = str(error) if known else one_line(error)
        log.exception("failed")
        with contextlib.suppress(DatabaseError):  # the disk may be what failed
            archive.set_state("failed", reason)
        if isinstance(error, DatabaseError):
            raise
        if known:
            raise EvomergeError(reason) from error
        raise EvomergeError(f"{reason} (details in {directory / 'log.txt'})") from error
    finally:
        if pool is not None:
            pool.close()
        log.removeHandler(handler)
        handler.close()


class _stop_on_signal:
    """First Ctrl-C or SIGTERM: stop asking and wait for what is in flight. Second: leave."""

    def __init__(self, runner: Runner, progress: Any):
        self._runner, self._progress = runner, progress

    def __enter__(self) -> None:
        self._before = {s: signal.signal(s, self._caught) for s in (signal.SIGINT, signal.SIGTERM)}

    def _caught(self, number: int, frame: Any) -> None:
        if self._runner.stop:
            raise KeyboardInterrupt
        self._runner.stop = True
        self._progress.say("stopping: waiting for what is in flight; again to leave at once")

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
