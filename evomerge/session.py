"""The commands' work: a campaign file checked, run in its directory, and exported."""

import contextlib
import json
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge import config, views
from evomerge.archive import Archive, DatabaseError
from evomerge.campaign import Campaign, Runner
from evomerge.check import hash_sources, moved_faults, prepare, read_plan
from evomerge.errors import BadInput, EvomergeError, Fault, one_line
from evomerge.lock import RunLock
from evomerge.recipe import Recipe, from_json

log = logging.getLogger("evomerge")


def checked(file: Path, settings: Sequence[str], moved: Mapping[str, str]) -> Campaign:
    """Load and check a campaign file; see `check.read_plan` and `check.prepare`."""
    return prepare(read_plan(file, settings, moved), str(file), moved)


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
        progress: has `say(text)` and is called with the archive; see `progress.Progress`.

    Raises:
        BadInput: nothing was loaded or written.
        EvomergeError: the campaign failed, or another process holds the directory.
    """
    plan = read_plan(file, settings, moved or {})
    directory = directory or Path("runs") / plan["name"]
    if _finished(directory, plan, str(file)):
        progress.say(_summary(directory))
        return True
    campaign = hash_sources(prepare(plan, str(file), moved), str(file))
    for warning in campaign.warnings:
        progress.say(f"warning: {warning}")
    _make_directory(directory)
    try:
        with RunLock(directory):
            archive = Archive(directory / "archive.db", write=True)
            _begin(archive, campaign, directory, str(file))
            finished = _drive(campaign, archive, adopt, progress, directory)
            archive.close()
    except (OSError, DatabaseError) as error:
        raise EvomergeError(f"{directory} cannot be written: {one_line(error)}") from error
    if finished:
        progress.say(_summary(directory))
    return finished


def _finished(directory: Path, plan: dict, file: str) -> bool:
    """Tell whether the run there has spent its budget.

    Raises:
        BadInput: it was started with another plan than this one.
    """
    if not (directory / "archive.db").exists():
        return False
    with contextlib.closing(Archive(directory / "archive.db")) as archive:
        begun = archive.campaign
        if begun is None:
            return False
        if keys := config.differences(begun["plan"], plan):
            mend = f"restore it, or give the new campaign a name or --run of its own ({directory})"
            raise BadInput(*(Fault(file, k, "differs from the campaign begun", mend) for k in keys))
        hours = plan["budget"]["hours"]
        spent = archive.proposed() >= plan["budget"]["evaluations"]
        timed_out = hours is not None and archive.seconds >= hours * 3600
        same_finals = plan["finals"] == begun["plan"]["finals"]
        return begun["state"] == "finished" and (spent or timed_out) and same_finals


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".lock").touch()
    except OSError as error:
        raise EvomergeError(f"{directory} cannot be written: {error.strerror}") from None


def _begin(archive: Archive, campaign: Campaign, directory: Path, file: str) -> None:
    """Write the plan into a new archive, or check that what it names is still the same."""
    text = yaml.safe_dump(campaign.plan, sort_keys=False, allow_unicode=True)
    begun = archive.campaign
    if begun is None:
        (directory / "campaign.yaml").write_text(text, encoding="utf-8")
        archive.begin(campaign.plan["name"], campaign.plan, campaign.provenance(), campaign.items())
        return
    faults = [
        *_changed_sources(begun["provenance"], campaign, file),
        *_changed_fitness(begun["provenance"], campaign, archive, file),
    ]
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    (directory / "campaign.yaml").write_text(text, encoding="utf-8")
    archive.set_plan(campaign.plan)
    archive.set_state("running")


def _changed_sources(provenance: Mapping, campaign: Campaign, file: str) -> Iterator[Fault]:
    for label, source in provenance["sources"].items():
        now = campaign.worker.hashes[source["name"]]
        if now != source["sha256"]:
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


def _drive(
    campaign: Campaign, archive: Archive, adopt: bool, progress: Any, directory: Path
) -> bool:
    from evomerge.pool import make_pool

    logging.raiseExceptions = False  # a full disk is told once, not at every line of the log
    handler = logging.FileHandler(directory / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    pool = None
    try:
        workers = campaign.plan["workers"]
        progress.say(
            f"{campaign.plan['name']}: {campaign.space.dimension} genes,"
            f" {workers['count']} worker(s), pool {workers['pool']}; starting"
        )
        log.info("start on %s", json.dumps(campaign.machine()))
        pool = make_pool(campaign.worker, workers)
        runner = Runner(campaign, archive, pool, adopt=adopt, on_progress=progress)
        with _stop_on_signal(runner, progress):
            finished = runner.run()
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


def _summary(directory: Path) -> str:
    from evomerge import tables

    status = views.status(directory)
    parts = [tables.status(status)]
    rows = views.front(directory)
    parts += ["", "Pareto front and baselines:", tables.front(rows)]
    parts += ["", f"Export the best: evomerge export {directory} OUT --pick best"]
    return "\n".join(parts)


def export_candidate(
    directory: Path, out: Path, which: str, moved: Mapping[str, str], verify: bool
) -> tuple[int, str]:
    """Export a candidate of a run; return its number and the weights' checksum.

    Raises:
        BadInput: there is no such candidate, or a source is not where and what it was.
        EvomergeError: the weights are not the ones that were scored.
    """
    from evomerge.card import model_card
    from evomerge.export import merge_to
    from evomerge.sources import digest, open_source

    archive = views.open_run(directory)
    candidate = views.pick(archive, which, str(directory))
    (found,) = archive.candidates("id = ?", (candidate,))
    recipe = from_json(found.recipe, f"{directory} candidate {candidate}")
    provenance = archive.campaign["provenance"]
    trust = archive.campaign["plan"]["sources"]["trust_remote_code"]
    places, faults = {}, moved_faults(moved, provenance["sources"])
    for label, source in provenance["sources"].items():
        if source["name"] not in recipe.sources:
            continue
        where = source["name"] if Path(source["name"]).is_dir() else source["path"]
        where = places[source["name"]] = moved.get(label, where)
        opened = open_source(
            where, file=str(directory), key=f"sources.{label}", trust_remote_code=trust
        )
        if digest(opened).sha256 != source["sha256"]:
            wrong = f"{where} is not the model that was searched"
            faults.append(Fault(str(directory), f"sources.{label}", wrong, "restore the model"))
    if faults:
        raise BadInput(*faults)
    outcome = archive.outcome(candidate)
    checksum = outcome["weights_checksum"] if verify else None
    on_gpu = outcome["worker"].endswith("cuda") and _has_cuda()
    card = model_card(archive, candidate, recipe)
    written = merge_to(
        recipe,
        out,
        places=places,
        card=card,
        checksum=checksum,
        trust_remote_code=trust,
        device="cuda" if on_gpu else "cpu",
    )
    return candidate, written


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def read_recipe(file: Path) -> Recipe:
    """Read a recipe's JSON file.

    Raises:
        BadInput: it cannot be read or is no recipe.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(Fault(str(file), "", f"cannot be read ({error.strerror})")) from None
    except ValueError as error:
        raise BadInput(Fault(str(file), "", f"is not JSON ({error})", "mend it")) from None
    return from_json(data, str(file))
