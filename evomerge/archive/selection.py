"""One of the front: the best, the knee, an objective's best, or that of one's own weights."""

from collections.abc import Mapping

import numpy as np

from evomerge.archive.archive import Archive
from evomerge.errors import BadInput, Fault, nearest
from evomerge.search.objectives import Scale
from evomerge.search.pareto import hypervolume, hypervolume_contributions, knee

REFERENCE = -0.1  # of every objective: a tenth of the baselines' range below the worst of them


def front_points(archive: Archive) -> tuple[list[int], np.ndarray]:
    """Return the front's candidates, and their (n, objectives) objectives on the baselines' scale.

    Those that miss a constraint are left out, unless all do.
    """
    front = archive.front_means()
    least = min((violation for violation, _ in front.values()), default=0.0)
    scale = baselines_scale(archive)
    kept = {c: scale.vector(means) for c, (missed, means) in front.items() if missed <= least}
    return list(kept), np.array(list(kept.values()), float).reshape(-1, len(scale.objectives))


def baselines_scale(archive: Archive) -> Scale:
    """Return the scale that an archive's baselines fix."""
    means = [archive.means(c.id) for c in archive.baselines(first=True)]
    return Scale(archive.objectives, [m for m in means if m])


def finalists(archive: Archive, scale: Scale, most: int, stage: int) -> list[int]:
    """Return the baselines that were scored, the best, and up to `most` of the front.

    The best of all, and the best that a stage found, which a baseline may surpass.

    The front is ranked by hypervolume contribution against `REFERENCE`, equals by value.
    """
    baselines = [c.id for c in archive.baselines() if archive.means(c.id)]
    front = [i for i in archive.front() if i not in baselines]
    means = [archive.means(i) for i in front]
    vectors = np.array([scale.vector(m) for m in means], float)
    reference = np.full(len(scale.objectives), REFERENCE)
    contribution = hypervolume_contributions(vectors, reference)
    ranked = sorted(
        zip(front, contribution, means, strict=True),
        key=lambda row: (-row[1], -scale.value(row[2]), row[0]),
    )
    best = [b for b in (archive.best(), archive.best_found(stage)) if b is not None]
    return list(dict.fromkeys([*baselines, *best, *(i for i, _, _ in ranked[:most])]))


def hypervolume_of(archive: Archive) -> float | None:
    """Return the hypervolume of what keeps the constraints; None before the first score.

    Objectives are on the baselines' scale, and the reference is `REFERENCE` in each.
    """
    if archive.best() is None:
        return None
    _, points = front_points(archive)
    return hypervolume(points, np.full(points.shape[1], REFERENCE))


def is_number(which: str) -> bool:
    """Tell whether a candidate is asked for by its number."""
    return which.isascii() and which.isdigit() and len(which) < 20


def pick(archive: Archive, which: str, directory: str, key: str = "--pick") -> int:
    """Return the candidate that `export --pick` or `show` means.

    Args:
        archive: to pick from.
        which: best, a candidate's number, and of the front: knee, an objective's name for the
            best there, or weights=NAME:NUMBER,... for the highest such sum.
        directory, key: the names that faults carry.

    Raises:
        BadInput: there is no such candidate or objective.
    """

    def fault(wrong: str, mend: str = "let the campaign run on") -> BadInput:
        return BadInput(Fault(directory, key, wrong, mend))

    if is_number(which) and int(which) < 2**63:
        if not archive.means(int(which)):
            raise fault(f"candidate {which} is not there or has no scores", "see `evomerge front`")
        return int(which)
    best = archive.best()
    if best is None:
        raise fault("no candidate has been scored yet")
    if which == "best":
        return best
    ids, points = front_points(archive)
    if which == "knee":
        return ids[knee(points)]
    names = [o.name for o in archive.objectives]
    if which.startswith("weights="):
        weights = _weights(which.removeprefix("weights="), names, directory, key)
    elif which in names:
        weights = {which: 1.0}
    else:
        mend = f"write best, knee, a candidate's number, weights=... or one of {', '.join(names)}"
        raise fault(f"there is no '{which}'", mend)
    return ids[int(np.argmax(points @ [weights.get(name, 0.0) for name in names]))]


def _weights(text: str, names: list[str], directory: str, key: str) -> Mapping[str, float]:
    found = {}
    for part in text.split(","):
        name, _, number = part.rpartition(":")
        try:
            found[name] = float(number)
            if not np.isfinite(found[name]):
                raise ValueError
        except ValueError:
            mend = f"write e.g. weights={names[0]}:2,{names[-1]}:1"
            raise BadInput(Fault(directory, key, f"'{part}' is no weight", mend)) from None
        if name not in names:
            mend = nearest(name, names)
            raise BadInput(Fault(directory, key, f"there is no objective '{name}'", mend))
    return found
