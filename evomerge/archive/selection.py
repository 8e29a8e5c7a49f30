"""One candidate of many: the best, the knee, an objective's best, or that of one's own weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.archive.reader import ArchiveReader
from evomerge.errors import BadInput, Fault, nearest
from evomerge.search.objectives import Scale
from evomerge.search.pareto import hypervolume, hypervolume_contributions, knee

REFERENCE = -0.1  # of every objective: a tenth of the baselines' range below the worst of them


def front_points(archive: ArchiveReader) -> tuple[list[int], np.ndarray]:
    """Return the front's candidates, and their (n, objectives) objectives on the baselines' scale.

    Those that miss a constraint are left out, unless all do.

    >>> from evomerge.testing.archives import example_archive
    >>> front_points(example_archive())
    ([3, 4], array([[2.  , 0.5 ],
           [1.  , 1.25]]))
    """
    front = archive.front_means()
    least = min((violation for violation, _ in front.values()), default=0.0)
    scale = baselines_scale(archive)
    ids, points = [], []
    for candidate, (violation, means) in front.items():
        if violation <= least:
            ids.append(candidate)
            points.append(scale.vector(means))
    return ids, np.array(points, float).reshape(-1, len(scale.objectives))


def baselines_scale(archive: ArchiveReader) -> Scale:
    """Return the scale that an archive's baselines fix.

    >>> from evomerge.testing.archives import example_archive
    >>> baselines_scale(example_archive()).range
    [0.25, 8.0]
    """
    means = [archive.means(c.id) for c in archive.baselines(stage=0)]
    return Scale(archive.objectives, [m for m in means if m])


def finalists(archive: ArchiveReader, scale: Scale, most: int, stage: int) -> list[int]:
    """Return the baselines that were scored, the best, and up to `most` of the front.

    The best of all, and the best that a stage found, which a baseline may surpass. The front is
    ranked by hypervolume contribution against `REFERENCE`, equals by value.

    >>> from evomerge.testing.archives import example_archive
    >>> archive = example_archive()
    >>> finalists(archive, baselines_scale(archive), most=16, stage=0)
    [1, 2, 3, 4]
    """
    baselines = [c.id for c in archive.baselines() if archive.means(c.id)]
    front = [candidate for candidate in archive.front() if candidate not in baselines]
    means = [archive.means(candidate) for candidate in front]
    vectors = np.array([scale.vector(m) for m in means], float)
    reference = np.full(len(scale.objectives), REFERENCE)
    contributions = hypervolume_contributions(vectors, reference)
    ranked = sorted(
        zip(front, contributions, means, strict=True),
        key=lambda row: (-row[1], -scale.value(row[2]), row[0]),
    )
    best = [b for b in (archive.best(), archive.best_found(stage)) if b is not None]
    chosen = [*baselines, *best, *(candidate for candidate, _, _ in ranked[:most])]
    return list(dict.fromkeys(chosen))


def hypervolume_of(archive: ArchiveReader) -> float | None:
    """Return the hypervolume of what keeps the constraints; None before the first score.

    Objectives are on the baselines' scale, and the reference is `REFERENCE` in each.

    >>> from evomerge.testing.archives import example_archive
    >>> round(hypervolume_of(example_archive()), 4)  # 2.1 * 0.6 + 1.1 * 0.75
    2.085
    """
    if archive.best() is None:
        return None
    _, points = front_points(archive)
    return hypervolume(points, np.full(points.shape[1], REFERENCE))


def candidate_number(which: str) -> int | None:
    """Return the number by which a candidate is asked for, or None if it is by something else.

    >>> candidate_number("142"), candidate_number("best")
    (142, None)
    """
    if not (which.isascii() and which.isdigit()):
        return None
    return min(int(which[:20]), 2**63 - 1)  # SQLite counts no further


def pick(archive: ArchiveReader, which: str) -> int:
    """Return the candidate that `export --pick` or `show` means.

    Args:
        archive: to pick from.
        which: best, a candidate's number, and of the front: knee, an objective's name for the
            best there, or weights=NAME:NUMBER,... for the highest such sum.

    Raises:
        BadInput: there is no such candidate or objective.

    >>> from evomerge.testing.archives import example_archive
    >>> pick(example_archive(), "weights=accuracy:1,length:3")
    4
    """
    number = candidate_number(which)
    if number is not None:
        if not archive.means(number):
            wrong = f"candidate {which} is not there or has no scores"
            raise BadInput(Fault("", wrong, "see `evomerge front`"))
        if archive.candidate(number).part is not None or archive.is_stopped(number):
            scored = sum(score.items for score in archive.scores(number, "search").values())
            whole = sum(len(archive.item_hashes(o.name, "search")) for o in archive.objectives)
            wrong = f"candidate {which} was scored on {scored} of {whole} items only"
            mend = "write best, or a number that `evomerge front` lists: these are scored in full"
            raise BadInput(Fault("", wrong, mend))
        return number
    best = archive.best()
    if best is None:
        raise BadInput(Fault("", "no candidate has been scored yet", "let the campaign run on"))
    if which == "best":
        return best
    ids, points = front_points(archive)
    if which == "knee":
        return ids[knee(points)]
    names = [o.name for o in archive.objectives]
    if which.startswith("weights="):
        weights = _weights(which.removeprefix("weights="), names)
    elif which in names:
        weights = {which: 1.0}
    else:
        mend = f"write best, knee, a candidate's number, weights=... or one of {', '.join(names)}"
        raise BadInput(Fault("", f"there is no '{which}'", mend))
    return ids[int(np.argmax(points @ [weights.get(name, 0.0) for name in names]))]


def _weights(text: str, names: Sequence[str]) -> Mapping[str, float]:
    """Read NAME:NUMBER,... over objectives."""
    weights = {}
    for part in text.split(","):
        name, _, number = part.rpartition(":")
        try:
            weights[name] = float(number)
            if not np.isfinite(weights[name]):
                raise ValueError
        except ValueError:
            mend = f"write e.g. weights={names[0]}:2,{names[-1]}:1"
            raise BadInput(Fault("", f"'{part}' is no weight", mend)) from None
        if name not in names:
            raise BadInput(Fault("", f"there is no objective '{name}'", nearest(name, names)))
    return weights
