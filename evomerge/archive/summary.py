"""What people ask of a run's directory: status, front, one candidate. Data in, data out."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from evomerge.archive.archived_plan import whole_budget
from evomerge.archive.database import DatabaseError
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Agreement
from evomerge.archive.run_lock import RunLock
from evomerge.archive.selection import candidate_number, hypervolume_of, pick
from evomerge.archive.shapes import (
    CandidateShape,
    DetailsShape,
    ObjectiveShape,
    ProgressShape,
    ScoreShape,
    SidesShape,
    SourceShape,
    StageShape,
    StatusShape,
    ValuedShape,
    fits,
)
from evomerge.archive.time_left import seconds_left
from evomerge.errors import BadInput, EvomergeError, Fault, one_line
from evomerge.scoring.outcome import Score

_T = TypeVar("_T")

_NOT_OURS = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    DatabaseError,
)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Say in one line where what is read within is not what evomerge writes into an archive.

    A disk, an editor of databases or a stranger may have put anything there.

    Raises:
        BadInput: it is so.

    >>> with as_written():
    ...     int("some")
    Traceback (most recent call last):
    evomerge.errors.BadInput: archive.db: holds what evomerge does not write (ValueError: ...
    """
    try:
        yield
    except _NOT_OURS as error:
        wrong = f"holds what evomerge does not write ({one_line(error)})"
        raise BadInput(Fault("archive.db", wrong, "restore it from a copy")) from error


def _fitting(found: _T, form: Any) -> _T:
    """Return what has a form; see `fits`.

    Raises:
        ValueError: it has not.
    """
    if not fits(found, form):
        raise ValueError(f"no {form.__name__}" if isinstance(form, type) else "rows of no form")
    return found


def open_run(directory: Path | str) -> ArchiveReader:
    """Open a run's archive for reading; who asks closes it.

    Raises:
        BadInput: the directory holds none.

    >>> open_run("runs/absent")
    Traceback (most recent call last):
    evomerge.errors.BadInput: is no run's directory; name a folder under runs/ in which \
`evomerge run` was started
    """
    path = Path(directory) / "archive.db"
    mend = "name a folder under runs/ in which `evomerge run` was started"
    if not path.is_file():
        raise BadInput(Fault("", "is no run's directory", mend))
    try:
        with as_written(), contextlib.ExitStack() as unless_fit:
            archive = unless_fit.enter_context(contextlib.closing(ArchiveReader(path)))
            if not archive.begun:
                raise EvomergeError("the campaign has not begun")
            _fitting(archive.campaign["plan"], dict)
            for source in archive.sources:
                _fitting(source._asdict(), SourceShape)
            for objective in archive.objectives:
                _fitting(vars(objective), ObjectiveShape)
            unless_fit.pop_all()  # it stays open
    except BadInput:
        raise
    except EvomergeError as error:
        raise BadInput(Fault("", str(error), mend)) from error
    return archive


@as_written()
def status(directory: Path | str) -> StatusShape:
    """Return a run's progress, in the form that `evomerge status --json` prints.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     found = status(run)
    >>> found["state"], found["candidates"]  # nobody holds its lock, and it is not finished
    ('interrupted', {'ok': 4, 'stopped': 0, 'failed': 1, 'running': 0})
    """
    with contextlib.closing(open_run(directory)) as archive:
        found = snapshot(archive)
        if found["state"] == "running" and not RunLock.held(Path(directory)):
            found["state"] = "interrupted"
        reason, hypervolume = archive.campaign["reason"], hypervolume_of(archive)
    whole: StatusShape = {**found, "reason": reason, "hypervolume": hypervolume}
    return _fitting(whole, StatusShape)


def snapshot(archive: ArchiveReader) -> ProgressShape:
    """Return a campaign's progress as the archive has it, the state left open.

    >>> from evomerge.testing.archives import example_archive
    >>> snapshot(example_archive())["budget"]
    {'items': None, 'evaluations': 8, 'hours': None, 'proposed': 3}
    """
    campaign, counts, seconds = archive.campaign, archive.counts(), archive.seconds
    budget = whole_budget(campaign["plan"])
    items = archive.items_scored()
    best, baselines = archive.best(), archive.baselines()

    scored = counts["ok"] + counts["stopped"] + counts["failed"]
    per_hour = 3600.0 * scored / seconds if seconds else 0.0
    proposed = archive.proposed()
    work = archive.work_seconds()
    stages: list[StageShape] = []
    for number, stage in enumerate(campaign["plan"]["stages"]):
        stages.append(
            {
                "name": stage["name"],
                "items": stage["budget"].get("items"),
                "evaluations": stage["budget"]["evaluations"],
                "hours": stage["budget"]["hours"],
                "proposed": archive.proposed_in(number),
            }
        )
    return {
        "name": campaign["name"],
        "state": campaign["state"],
        "stages": stages,
        "candidates": counts,
        "budget": {**budget, "proposed": proposed},
        "items": {"search": items, "heldout": archive.heldout_items_scored()},
        "in_parts": archive.counts_in_parts(),
        "best": None if best is None else _valued_row(archive, best),
        "seconds": {
            "total": seconds,
            "left": seconds_left(archive),
            "merge": work["merge"],
            "score": work["score"],
        },
        "per_hour": per_hour,
        "baselines": [_valued_row(archive, candidate.id) for candidate in baselines],
    }


@as_written()
def front(directory: Path | str) -> list[CandidateShape]:
    """Return the non-dominated candidates and all baselines, as `front --json` prints them.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     rows = front(run)
    >>> [(r["id"], r["label"]) for r in rows]  # the highest accuracy first
    [(3, None), (4, None), (2, 'maths'), (1, 'ja')]
    """
    with contextlib.closing(open_run(directory)) as archive:
        baselines = [c.id for c in archive.baselines()]
        rows = [row(archive, c) for c in dict.fromkeys([*archive.front(), *baselines])]
        first = archive.objectives[0]

    def badness(of: CandidateShape) -> float:
        score = of["scores"][first.name]["search"]
        return -first.sign * score["mean"] if score else math.inf

    return sorted(_fitting(rows, list[CandidateShape]), key=badness)


@as_written()
def gap(directory: Path | str) -> dict[str, ScoreShape]:
    """Return by how much the best scored higher on the search's items than on those held out.

    The search chose it by the former: what it owes to luck is in this gap. By objective, with the
    standard error of the difference; none of one that was not scored on held-out items.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     gap(run)["accuracy"]["mean"]
    0.125
    """
    found: dict[str, ScoreShape] = {}
    with contextlib.closing(open_run(directory)) as archive:
        best = archive.best()
        if best is None:
            return {}
        search, heldout = archive.scores(best, "search"), archive.scores(best, "heldout")
        for objective in archive.objectives:
            if objective.cost or objective.name not in heldout or objective.name not in search:
                continue
            a, b = search[objective.name], heldout[objective.name]
            found[objective.name] = {
                "mean": a.mean - b.mean,
                "stderr": math.hypot(a.stderr, b.stderr),
                "items": min(a.items, b.items),
            }
    return found


@as_written()
def agreement(directory: Path | str) -> dict[str, Agreement]:
    """Return how the best's held-out scores by its engine and by transformers compare.

    By objective; none where transformers scored the whole campaign.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     agreement(run)
    {}
    """
    with contextlib.closing(open_run(directory)) as archive:
        best = archive.best()
        return {} if best is None else archive.agreement(best)


@as_written()
def standing(directory: Path | str) -> dict[int, tuple[bool, float | None]]:
    """Return, of each row of `front`, whether it is on the front, and its value.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     standing(run)[3]
    (True, 1.25)
    """
    with contextlib.closing(open_run(directory)) as archive:
        best = set(archive.front())
        listed = best | {c.id for c in archive.baselines()}
        values = _fitting({c: _value(archive, c) for c in listed}, dict[int, float | None])
    return {c: (c in best, value) for c, value in values.items()}


@as_written()
def show(directory: Path | str, which: int | str) -> DetailsShape:
    """Return all that the archive knows of one candidate.

    Args:
        directory: the run's.
        which: its number, failed or not, or whatever else `selection.pick` takes.

    Raises:
        BadInput: there is no such candidate.

    >>> import tempfile
    >>> from evomerge.testing.archives import example_archive
    >>> with tempfile.TemporaryDirectory() as run:
    ...     example_archive(f"{run}/archive.db").close()
    ...     show(run, 5)["outcome"]["reason"]
    'a merged tensor is not finite'
    """
    with contextlib.closing(open_run(directory)) as archive:
        return _details(archive, which)


def _details(archive: ArchiveReader, which: int | str) -> DetailsShape:
    """Return all that an archive knows of one candidate; see `show`."""
    number = candidate_number(str(which))
    candidate = archive.find_candidate(pick(archive, str(which)) if number is None else number)
    if candidate is None:
        last = archive.last_candidate()
        mend = f"write a number from 1 to {last.id}" if last else "none is there yet"
        raise BadInput(Fault("", f"there is no candidate {which}", mend))
    details: DetailsShape = {
        **row(archive, candidate.id),
        "parents": list(candidate.parents),
        "genome": None if candidate.genome is None else candidate.genome.tolist(),
        "recipe": candidate.recipe_json,
        "outcome": archive.outcome(candidate.id),
        "answers": archive.answers(candidate.id, limit=5),
    }
    return _fitting(details, DetailsShape)


def row(archive: ArchiveReader, number: int) -> CandidateShape:
    """Return one candidate with its scores on both splits.

    It has `violation` only where the campaign has constraints, and `heldout_failure`, a reason,
    only where it could not be scored on held-out items.

    >>> from evomerge.testing.archives import example_archive
    >>> found = row(example_archive(), 4)
    >>> found["scores"]["length"]["search"]["mean"], found["heldout_failure"]
    (10.0, 'OutOfMemoryError')
    """
    candidate, final = archive.candidate(number), archive.final(number)
    search, heldout = archive.scores(number, "search"), archive.scores(number, "heldout")

    def sides(name: str) -> SidesShape:
        return {"search": _score(search.get(name)), "heldout": _score(heldout.get(name))}

    found: CandidateShape = {
        "id": number,
        "recipe_id": candidate.recipe_id,
        "origin": candidate.origin,
        "label": candidate.label,
        "scores": {objective.name: sides(objective.name) for objective in archive.objectives},
    }
    if archive.guards:
        found["guards"] = {name: sides(name) for name in archive.guards}
    if archive.guards or any(objective.constraint for objective in archive.objectives):
        found["violation"] = archive.violation(number)
    if final is not None and final["status"] != "ok":
        found["heldout_failure"] = final["reason"]
    return found


def mean_score(archive: ArchiveReader, candidate: int, split: str) -> Score | None:
    """Return the weighted mean over objectives (unsigned, unscaled) with its standard error.

    Costs do not count beside scores. The error takes the objectives' items as independent. None
    if an objective is missing.

    >>> from evomerge.testing.archives import example_archive
    >>> mean_score(example_archive(), 3, "search").mean  # (0.75 + 16) / 2
    8.375
    """
    scores = archive.scores(candidate, split)
    counted = [o for o in archive.objectives if not o.cost] or archive.objectives
    if any(o.name not in scores or not scores[o.name].items for o in counted):
        return None
    total = sum(o.weight for o in counted)
    mean = sum(o.weight * scores[o.name].mean for o in counted) / total
    variance = sum((o.weight * scores[o.name].stderr) ** 2 for o in counted)
    items = sum(s.items for s in scores.values())
    return Score(mean, math.sqrt(variance) / total, items)


def _valued_row(archive: ArchiveReader, candidate: int) -> ValuedShape:
    return {**row(archive, candidate), "value": _value(archive, candidate)}


def _score(score: Score | None) -> ScoreShape | None:
    if score is None or not score.items:
        return None
    return {"mean": score.mean, "stderr": score.stderr, "items": score.items}


def _value(archive: ArchiveReader, candidate: int) -> float | None:
    outcome = archive.outcome(candidate)
    return outcome["value"] if outcome else None
