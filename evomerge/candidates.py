"""Archived candidates as models: exported, taken as sources, or as a search's first proposals.

A candidate is written `RUN#NUMBER` (or `RUN#best`), RUN a run's directory. As a source it is
materialized once, into the cache, and is a model directory from then on.
"""

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.archive import Archive, Candidate
from evomerge.campaign import Adopted
from evomerge.card import model_card
from evomerge.checkpoints import DTYPES, SIZE, Tensor
from evomerge.errors import BadInput, Fault
from evomerge.export import merge_to
from evomerge.folding import routed_config, routed_tensors
from evomerge.lineage import ancestry, expanded
from evomerge.machine import cache_folder
from evomerge.picking import pick
from evomerge.recipe import Group, Recipe, from_json
from evomerge.routing import Routing
from evomerge.sources import Source, digest, moved_faults, open_source
from evomerge.spaces import quantize
from evomerge.views import open_run

_MEND = "write RUN#best or RUN#NUMBER, RUN a folder in which `evomerge run` was started"


def is_candidate(name: str) -> bool:
    """Tell whether a source's name means an archived candidate."""
    return "#" in name and not os.path.isdir(name)


def pinned(plan: Mapping[str, Any], begun: Mapping[str, Any] | None, file: str) -> dict:
    """Return the plan with each source `RUN#best` written as the number that it means.

    Args:
        plan: of a campaign.
        begun: the plan that this campaign was begun with, whose numbers stay.
        file: the name that faults carry.

    Raises:
        BadInput: a run or a candidate is not there.
    """
    faults: list[Fault] = []

    def number(name: str | None, before: str | None, key: str) -> str | None:
        if name is None or not is_candidate(name):
            return name
        run, _, which = name.rpartition("#")
        if before is not None and which == "best" and before.rpartition("#")[0] == run:
            return before
        try:
            return f"{run}#{pick(open_run(run), which, run)}"
        except BadInput as error:
            faults.extend(Fault(file, key, f"{f.file}: {f.wrong}", _MEND) for f in error.faults)
            return name

    sources, then = plan["sources"], (begun or {}).get("sources", {})
    models = {
        label: number(name, then.get("models", {}).get(label), f"sources.models.{label}")
        for label, name in sources["models"].items()
    }
    base = number(sources["base"], then.get("base"), "sources.base")
    if faults:
        raise BadInput(*faults)
    return {**plan, "sources": {**sources, "base": base, "models": models}}


def open_candidate(name: str, file: str, key: str) -> Source:
    """Open a candidate by the headers of its own sources; nothing is merged.

    Raises:
        BadInput: it is not there, or its sources are not.
    """
    archive, _, recipe = _read(name, file, key)
    trust = archive.campaign["plan"]["sources"]["trust_remote_code"]

    def opened(source: str) -> Source:
        if is_candidate(source):
            return open_candidate(source, file, key)
        place = _place(archive, source, {})
        return open_source(place, file=file, key=key, trust_remote_code=trust)

    stored = next(code for code, dtype in DTYPES.items() if dtype == recipe.dtype)

    def as_merged(tensor: Any) -> Tensor:
        size = math.prod(tensor.shape) * SIZE[stored]
        return Tensor(stored, tensor.shape, Path(), "", 0, size)

    if recipe.kind == "routing":
        sources = {source: opened(source) for source in recipe.sources}
        tensors, config = routed_tensors(recipe, sources), routed_config(recipe, sources)
        frame = replace(sources[recipe.sources[0]], config=config)
    else:
        frame = opened(recipe.sources[0])
        tensors = frame.tensors
    merged = {n: as_merged(t) for n, t in tensors.items()}
    return replace(frame, name=name, tensors=merged, adapter=None)


def materialize(name: str, file: str = "recipe", key: str = "models") -> Path:
    """Return a candidate's model directory in the cache, merging it if it is not there yet.

    Raises:
        BadInput: it, or one of its sources, is not there or has changed.
        EvomergeError: its weights are not those that were scored.
    """
    archive, candidate, recipe = _read(name, file, key)
    hashes = {s["name"]: s["sha256"] for s in archive.campaign["provenance"]["sources"].values()}
    folder = cache_folder("candidates") / recipe.id(hashes)
    if not folder.exists():
        run = name.rpartition("#")[0]
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        export_candidate(Path(run), beside, str(candidate.id))
        try:
            beside.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def _read(name: str, file: str, key: str) -> tuple[Archive, Candidate, Recipe]:
    run, _, which = name.rpartition("#")
    try:
        archive = open_run(run)
        (candidate,) = archive.candidates("id = ?", (pick(archive, which, run),))
    except BadInput as error:
        raise BadInput(
            *(Fault(file, key, f"{f.file}: {f.wrong}", _MEND) for f in error.faults)
        ) from None
    return archive, candidate, from_json(candidate.recipe, name)


def _alone(archive: Archive, candidate: Candidate, recipe: Any) -> Any:
    """Return a recipe that needs no archive: with its whole lineage, where it is one's child."""
    if recipe.kind != "explicit":
        return recipe

    return expanded(ancestry(candidate.recipe_id, recipe, archive.recipe))


def _place(archive: Archive, name: str, moved: Mapping[str, str]) -> str:
    """Return the directory where a source of a run lies now."""
    for label, source in archive.campaign["provenance"]["sources"].items():
        if source["name"] == name and label in moved:
            return moved[label]
        if source["name"] == name and not os.path.isdir(name):
            return str(materialize(name)) if is_candidate(name) else source["path"]
    return name


def places_of(recipe: Recipe, file: str) -> dict[str, str]:
    """Return source name -> directory for the candidates among a recipe's sources."""
    return {n: str(materialize(n, file)) for n in recipe.sources if is_candidate(n)}


def export_candidate(
    directory: Path,
    out: Path,
    which: str,
    moved: Mapping[str, str] | None = None,
    verify: bool = True,
) -> tuple[int, str, str]:
    """Export a candidate of a run as a model directory.

    Args:
        directory: the run's.
        out: a path that does not exist yet.
        which: as `picking.pick` takes it.
        moved: label -> directory of sources that lie elsewhere.
        verify: compare the weights with the checksum of those that were scored.

    Returns:
        The candidate's number, the weights' checksum, and how they compare with those scored.

    Raises:
        BadInput: there is no such candidate, or a source is not where and what it was.
        EvomergeError: the weights are not the ones that were scored.
    """
    archive, moved = open_run(directory), moved or {}
    candidate = pick(archive, which, str(directory))
    (found,) = archive.candidates("id = ?", (candidate,))
    recipe = _alone(archive, found, from_json(found.recipe, f"{directory} candidate {candidate}"))
    provenance = archive.campaign["provenance"]["sources"]
    trust = archive.campaign["plan"]["sources"]["trust_remote_code"]
    faults = moved_faults(moved, provenance)
    places = {name: _place(archive, name, moved) for name in recipe.sources}
    for label, source in provenance.items():
        where = places.get(source["name"])
        if where is None:
            continue
        key = f"sources.{label}"
        try:
            opened = open_source(where, file=str(directory), key=key, trust_remote_code=trust)
        except BadInput as error:
            faults += error.faults
            continue
        if digest(opened).sha256 != source["sha256"]:
            wrong = f"{where} is not the model that was searched"
            faults.append(Fault(str(directory), key, wrong, "restore the model"))
    if faults:
        raise BadInput(*faults)
    outcome = archive.outcome(candidate)
    scored = outcome["weights_checksum"]
    on_gpu = outcome["worker"].endswith("cuda") and _has_cuda()
    checksum = merge_to(
        recipe,
        out,
        places=places,
        card=model_card(archive, candidate, recipe),
        checksum=scored if verify else None,
        trust_remote_code=trust,
        device="cuda" if on_gpu else "cpu",
    )
    if not scored:
        return candidate, checksum, "scales folded in"
    return candidate, checksum, "as scored" if verify else "not compared"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


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
    for index, entry in enumerate(entries):
        key = f"init.{index}"
        try:
            for label, recipe, theirs in _candidates_of(entry, file, key):
                if recipe.kind != space.first.kind:
                    wrong = f"'{label}' is of kind {recipe.kind}, this space's are not"
                    mend = "begin with a run over a space of the same kind"
                    raise BadInput(Fault(file, key, wrong, mend))
                ours = _in_our_terms(recipe, theirs, space.sources, hashes, label, file, key)
                genome = quantize(space.encode(ours))
                found.setdefault(genome.tobytes(), Adopted(label, genome))
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    return list(found.values())


def _candidates_of(entry: str, file: str, key: str) -> list[tuple[str, Recipe, dict[str, str]]]:
    run, _, which = entry.rpartition("#")
    archive, first, _ = _read(f"{run}#best" if which == "front" else entry, file, key)
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
    if strange:
        wrong = f"'{label}' merges {strange[0]}, which is no source of this campaign"
        raise BadInput(Fault(file, key, wrong, "begin with a run over the same sources"))
    order = [at.get(ours[m]) for m in sources.models]

    def in_order(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not isinstance(value, tuple):
            return value
        return tuple(0.0 if i is None else value[i] for i in order)

    groups = tuple(
        Group(g.layers, g.modules, {k: in_order(v) for k, v in g.values.items()})
        for g in recipe.groups
    )
    return replace(recipe, models=sources.models, base=sources.base, groups=groups)


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
    if strange:
        wrong = f"'{label}' routes through {strange[0]}, which is no source of this campaign"
        raise BadInput(Fault(file, key, wrong, "begin with a run over the same sources"))
    path = tuple(h._replace(model=at[theirs[recipe.models[h.model]]]) for h in recipe.path)
    frame = at[theirs[recipe.models[recipe.frame]]]
    return replace(recipe, models=sources.models, path=path, frame=frame)
