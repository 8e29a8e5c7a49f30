"""What a campaign begins with: candidates of other runs, in the terms of its own space."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.archive.references import read_candidate
from evomerge.campaign.campaign import Adopted
from evomerge.errors import BadInput, Fault
from evomerge.recipes.parameters import Recipe
from evomerge.recipes.parse import from_json
from evomerge.recipes.routing import Routing
from evomerge.search.spaces import quantize


def adopted(entries: list[str], space: Any, hashes: Mapping[str, str], file: str) -> list[Adopted]:
    """Return the candidates of other runs that a campaign begins with, in this space's terms.

    Args:
        entries: `RUN#front`, `RUN#best` or `RUN#NUMBER`.
        space: the search space, which expresses each as nearly as it can.
        hashes: content hash of this campaign's sources by name: a candidate may have only
            these models, whatever they are called there.
        file: the name that faults carry.

    Raises:
        BadInput: a run or a candidate is not there, or merges other models.
    """
    found: dict[bytes, Adopted] = {}
    faults: list[Fault] = []
    for key, label, recipe, theirs in candidates_of(entries, space.first.kind, file):
        try:
            ours = _in_our_terms(recipe, theirs, space.sources, hashes, label, file, key)
            genome = quantize(space.encode(ours))
            found.setdefault(genome.tobytes(), Adopted(label, genome))
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    return list(found.values())


def candidates_of(
    entries: list[str], kind: str | None, file: str
) -> list[tuple[str, str, Recipe, dict[str, str]]]:
    """Return the candidates that entries mean: key, label, recipe, hashes of its run's sources.

    Args:
        entries, file: as of `adopted`.
        kind: of the recipes; None for any.

    Raises:
        BadInput: a run or a candidate is not there, or is of another kind.
    """
    found, faults = [], []
    for index, entry in enumerate(entries):
        key = f"init.{index}"
        try:
            rows = _candidates(entry, file, key)
        except BadInput as error:
            faults += error.faults
            continue
        if strange := [(n, r.kind) for n, r, _ in rows if kind not in (None, r.kind)]:
            wrong = f"'{strange[0][0]}' is of kind {strange[0][1]}, this space's are not"
            mend = "begin with a run over a space of the same kind"
            faults.append(Fault(file, key, wrong, mend))
        found += [(key, *row) for row in rows]
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    return found


def _candidates(entry: str, file: str, key: str) -> list[tuple[str, Recipe, dict[str, str]]]:
    run, _, which = entry.rpartition("#")
    archive, first, _ = read_candidate(f"{run}#best" if which == "front" else entry, file, key)
    chosen = archive.front() if which == "front" else [first.id]
    theirs = {s["name"]: s["sha256"] for s in archive.campaign["provenance"]["sources"].values()}
    rows = [c for i in chosen for c in archive.candidates("id = ? AND origin != 'baseline'", (i,))]
    if not rows:
        mend = "let that campaign run on, or name another candidate"
        raise BadInput(Fault(file, key, f"'{entry}' holds baselines only", mend))
    return [(f"{run}#{c.id}", from_json(c.recipe, f"{run}#{c.id}"), theirs) for c in rows]


def _in_our_terms(
    recipe: Recipe,
    theirs: Mapping[str, str],
    sources: Any,
    ours: Mapping[str, str],
    label: str,
    file: str,
    key: str,
) -> Recipe:
    """Return a recipe over our models in our order; those it does not merge weigh nothing."""
    if recipe.kind == "routing":
        return _rerouted(recipe, theirs, sources, ours, label, file, key)
    at = {theirs[name]: index for index, name in enumerate(recipe.models)}
    strange = [n for n in recipe.models if theirs[n] not in {ours[m] for m in sources.models}]
    if recipe.base and sources.base and theirs[recipe.base] != ours[sources.base]:
        strange = [recipe.base]
    _refuse(strange, label, file, key)
    order = [at.get(ours[m]) for m in sources.models]

    def in_order(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not isinstance(value, tuple):
            return value
        return tuple(0.0 if i is None else value[i] for i in order)

    groups = tuple(
        replace(g, values={k: in_order(v) for k, v in g.values.items()}) for g in recipe.groups
    )
    return replace(recipe, models=sources.models, base=sources.base, groups=groups)


def _refuse(strange: list[str], label: str, file: str, key: str) -> None:
    if strange:
        wrong = f"'{label}' has {strange[0]}, which is no source of this campaign"
        raise BadInput(Fault(file, key, wrong, "begin with a run over the same sources"))


def _rerouted(
    recipe: Routing,
    theirs: Mapping[str, str],
    sources: Any,
    ours: Mapping[str, str],
    label: str,
    file: str,
    key: str,
) -> Routing:
    """Return a path over our models in our order."""
    at = {ours[m]: index for index, m in enumerate(sources.models)}
    strange = [n for n in recipe.sources if theirs[n] not in at]
    _refuse(strange, label, file, key)
    path = tuple(h._replace(model=at[theirs[recipe.models[h.model]]]) for h in recipe.path)
    frame = at[theirs[recipe.models[recipe.frame]]]
    return replace(recipe, models=sources.models, path=path, frame=frame)
