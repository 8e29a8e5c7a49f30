"""An archive's candidates as trials, for the tools that people know from hyperparameter search."""

from typing import Any

from evomerge.archive.archived_plan import searches
from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import Candidate, Told
from evomerge.search.axes import GeneRange
from evomerge.search.optuna_study import Study, Trial


def studies_of(archive: ArchiveReader) -> list[Study]:
    """Return a campaign as studies, one a stage: its trials are the candidates that have genes.

    An estimate from a part of the items, or until a race stopped it, is a trial that misses a
    constraint: so the best trials are among those that were scored in full, as our front is. The
    baselines have no genes: their scores are attributes of the study.

    >>> from evomerge.testing.archives import example_archive
    >>> (study,) = studies_of(example_archive())
    >>> study.names, [trial.values for trial in study.trials]
    (['gene 1'], [(0.75, 16.0), (0.5, 10.0), None])
    >>> study.attributes["baselines"]["ja"]
    {'accuracy': 0.25, 'length': 12.0}
    """
    campaign, told = archive.campaign, archive.told()
    by_number = {one.candidate: one for one in told}
    begun, methods = archive.begun_at(), archive.methods()
    heldout = {number: archive.means(number, "heldout") for number in archive.finals_done()}
    studies = []
    for stage, part in enumerate(searches(campaign["plan"])):
        trials, dimension = [], 0
        for candidate in archive.candidates(stage=stage):
            one = by_number.get(candidate.id)
            if candidate.genome is None or one is None:
                continue
            dimension = len(candidate.genome)
            found = _attributes(candidate, one) | {"method": methods[candidate.id]}
            for objective, mean in heldout.get(candidate.id, {}).items():
                found[f"heldout {objective}"] = mean
            trials.append(_trial(archive, candidate, one, begun.get(candidate.id, one.at), found))
        names, ranges = _genes(archive, stage, dimension)
        name = f"{campaign['name']}: {part['name']}" if stage or campaign["plan"]["stages"] else ""
        about = {"campaign": campaign["name"], "state": campaign["state"]}
        baselines = {
            c.label or str(c.id): archive.means(c.id) for c in archive.baselines(stage=stage)
        }
        attributes = {**about, "baselines": baselines}
        study = Study(
            name or campaign["name"], archive.objectives, names, ranges, attributes, trials
        )
        studies.append(study)
    return [study for study in studies if study.trials or study.name == campaign["name"]]


def _trial(
    archive: ArchiveReader, candidate: Candidate, told: Told, begun: float, found: dict[str, Any]
) -> Trial:
    assert candidate.genome is not None
    values = None
    if told.status != "failed" and all(o.name in told.means for o in archive.objectives):
        values = tuple(told.means[objective.name] for objective in archive.objectives)
    is_whole = told.status == "ok" and not told.is_part
    constraints = (told.violation, 0.0 if is_whole else 1.0)
    return Trial(candidate.genome, values, constraints, begun, told.at, found)


def _attributes(candidate: Candidate, told: Told) -> dict[str, Any]:
    """Return what is known of a candidate besides its scores."""
    how = "in part: an estimate" if told.is_part else "in full"
    if told.status != "ok":
        how = "until a race stopped it: an estimate" if told.status == "stopped" else "failed"
    found: dict[str, Any] = {
        "candidate": candidate.id,
        "recipe": candidate.recipe_id,
        "origin": candidate.origin,
        "scored": how,
        "items": told.items,
        "seconds": told.seconds_merge + told.seconds_score,
    }
    if candidate.label:
        found["label"] = candidate.label
    if candidate.parents:
        found["parents"] = list(candidate.parents)
    if candidate.again is not None:
        found["again"] = candidate.again
    if told.is_copy:
        found["copy"] = True
    if told.value is not None:
        found["value"] = told.value
    return found


def _genes(archive: ArchiveReader, stage: int, dimension: int) -> tuple[list[str], list[GeneRange]]:
    """Return the names of a stage's genes and their ranges; [0, 1] where these are not archived."""
    campaign = archive.campaign
    known: dict[str, Any] = campaign["provenance"]
    if stage:
        name = campaign["plan"]["stages"][stage]["name"]
        known = known.get("stages", {}).get(name, {})
    names = list(known.get("genes") or [f"gene {n + 1}" for n in range(dimension)])
    rows = known.get("ranges") or [[] for _ in names]
    return names, [GeneRange(*row) for row in rows]
