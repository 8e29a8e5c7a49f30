"""What people ask of a run's directory: status, front, one candidate. Data in, data out."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.archive.archive import Archive
from evomerge.archive.run_lock import RunLock
from evomerge.archive.selection import hypervolume_of, is_number, pick
from evomerge.errors import BadInput, EvomergeError, Fault
from evomerge.scoring.outcome import Score


def open_run(directory: Path | str) -> Archive:
    """Open a run's archive for reading.

    Raises:
        BadInput: the directory holds none.
    """
    path = Path(directory) / "archive.db"
    mend = "name a folder under runs/ in which `evomerge run` was started"
    if not path.is_file():
        raise BadInput(Fault(str(directory), "", "is no run's directory", mend))
    try:
        archive = Archive(path)
        if archive.campaign is None:
            raise EvomergeError(f"{directory}: the campaign has not begun")
    except EvomergeError as error:
        raise BadInput(Fault(str(directory), "", str(error), mend)) from error
    return archive


def status(directory: Path | str) -> dict:
    """Return a run's progress, in the form that `evomerge status --json` prints."""
    archive = open_run(directory)
    campaign = archive.campaign
    state = campaign["state"]
    if state == "running" and not RunLock.held(Path(directory)):
        state = "interrupted"
    more = {"reason": campaign["reason"], "hypervolume": hypervolume_of(archive)}
    return snapshot(archive) | {"state": state} | more


def snapshot(archive: Archive) -> dict:
    """Return a campaign's progress as the archive has it, the state left open."""
    campaign = archive.campaign
    best = archive.best()
    seconds = archive.seconds
    proposed, counts = archive.proposed(), archive.counts()
    baselines = [c.id for c in archive.baselines()]
    scored = sum(counts[k] for k in ("ok", "stopped", "failed"))
    per_hour = 3600.0 * scored / seconds if seconds else 0.0
    left = max(0, campaign["plan"]["budget"]["evaluations"] - scored + len(baselines))
    stages = enumerate(campaign["plan"].get("stages") or ())
    return {
        "name": campaign["name"],
        "state": campaign["state"],
        "stages": [
            {"name": s["name"], "proposed": archive.proposed_in(i), **s["budget"]}
            for i, s in stages
        ],
        "candidates": counts,
        "budget": campaign["plan"]["budget"] | {"proposed": proposed},
        "best": None if best is None else row(archive, best) | {"value": _value(archive, best)},
        "seconds": {
            "total": seconds,
            "left": 3600.0 * left / per_hour if per_hour else None,
            **archive.work_seconds(),
        },
        "per_hour": per_hour,
        "baselines": [row(archive, c) | {"value": _value(archive, c)} for c in baselines],
    }


def front(directory: Path | str) -> list[dict]:
    """Return the non-dominated candidates and all baselines, as `front --json` prints them."""
    archive = open_run(directory)
    baselines = [c.id for c in archive.baselines()]
    rows = [row(archive, c) for c in dict.fromkeys([*archive.front(), *baselines])]
    first = archive.objectives[0]
    return sorted(rows, key=lambda r: -first.sign * _search_mean(r, first.name))


def standing(directory: Path | str) -> dict[int, tuple[bool, float | None]]:
    """Return, of each row of `front`, whether it is on the front, and its value."""
    archive = open_run(directory)
    best = set(archive.front())
    listed = best | {c.id for c in archive.baselines()}
    return {c: (c in best, _value(archive, c)) for c in listed}


def show(directory: Path | str, which: int | str) -> dict:
    """Return all that the archive knows of one candidate.

    Args:
        directory: the run's.
        which: its number, failed or not, or whatever else `picking.pick` takes.

    Raises:
        BadInput: there is no such candidate.
    """
    archive = open_run(directory)
    if is_number(str(which)):
        candidate = int(which)
    else:
        candidate = pick(archive, str(which), str(directory), "CANDIDATE")
    found = archive.candidates("id = ?", (candidate,)) if candidate < 2**63 else []
    if not found:
        last = archive.candidates("id = (SELECT MAX(id) FROM candidates)")
        mend = f"write a number from 1 to {last[0].id}" if last else "none is there yet"
        raise BadInput(Fault(str(directory), "", f"there is no candidate {candidate}", mend))
    return row(archive, candidate) | {
        "parents": archive.parents(candidate),
        "genome": None if found[0].genome is None else found[0].genome.tolist(),
        "recipe": found[0].recipe,
        "outcome": archive.outcome(candidate),
        "answers": archive.answers(candidate, limit=5),
    }


def row(archive: Archive, candidate: int) -> dict:
    """Return one candidate with its scores on both splits."""
    (found,) = archive.candidates("id = ?", (candidate,))
    search, heldout = (archive.scores(candidate, split) for split in ("search", "heldout"))
    constrained = any(o.constraint for o in archive.objectives)
    missed = {"violation": archive.violation(candidate)} if constrained else {}
    return missed | {
        "id": candidate,
        "recipe_id": found.recipe_id,
        "origin": found.origin,
        "label": found.label,
        "scores": {
            o.name: {
                "search": _score(search.get(o.name)),
                "heldout": _score(heldout.get(o.name)),
            }
            for o in archive.objectives
        },
    }


def mean_score(archive: Archive, candidate: int, split: str) -> Score | None:
    """Return the weighted mean over objectives (unsigned, unscaled) with its standard error.

    Costs do not count beside scores. The error takes the objectives' items as independent. None
    if an objective is missing.
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


def _score(score: Score | None) -> dict | None:
    if score is None or not score.items:
        return None
    return score._asdict()


def _value(archive: Archive, candidate: int) -> float | None:
    outcome = archive.outcome(candidate)
    return outcome["value"] if outcome else None


def _search_mean(found: dict, objective: str) -> Any:
    score = found["scores"][objective]["search"]
    return score["mean"] if score else -math.inf


def searches(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts of a plan that have space, controller and budget: its stages, or itself."""
    return plan.get("stages") or [plan]
