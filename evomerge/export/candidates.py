"""Archived candidates as models: exported, or taken as sources.

A candidate is written `RUN#NUMBER` (or `RUN#best`), RUN a run's directory. As a source it is
materialized once, into the cache, and is a model directory from then on.
"""

import math
import os
import shutil
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.archive.archive import Archive, Candidate
from evomerge.archive.references import read_candidate
from evomerge.archive.selection import pick
from evomerge.archive.summary import open_run
from evomerge.dtypes import SIZE, STORED_DTYPES
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, Fault
from evomerge.export.model_card import model_card
from evomerge.export.model_directory import merge_to
from evomerge.merging.lineage_weights import ancestry, expanded
from evomerge.merging.routed_checkpoint import routed_config, routed_tensors
from evomerge.recipes.parameters import Recipe
from evomerge.recipes.parse import from_json
from evomerge.sources.digest import digest
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source, is_candidate, moved_faults, open_source


def open_candidate(
    name: str,
    file: str,
    key: str,
    moved: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Open a candidate by the headers of its own sources; nothing is merged.

    Args:
        name: RUN#NUMBER.
        file, key: that faults carry.
        moved: label -> directory of the run's sources that lie elsewhere.
        trust_remote_code: as of `open_source`.

    Raises:
        BadInput: it is not there, or its sources are not.
    """
    archive, _, recipe = read_candidate(name, file, key)

    def opened(source: str) -> Source:
        if is_candidate(source):
            inner = _own(archive, source) or source
            return open_candidate(inner, file, key, moved, trust_remote_code)
        place = _place(archive, source, moved or {})
        return open_source(place, file=file, key=key, trust_remote_code=trust_remote_code)

    stored = next(code for code, dtype in STORED_DTYPES.items() if dtype == recipe.dtype)

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


def materialize(
    name: str,
    file: str = "recipe",
    key: str = "models",
    moved: Mapping[str, str] | None = None,
) -> Path:
    """Return a candidate's model directory in the cache, merging it if it is not there yet.

    Args:
        name, file, key, moved: see `open_candidate`. Its own run says whether to trust its code.

    Raises:
        BadInput: it, or one of its sources, is not there or has changed.
        EvomergeError: its weights are not those that were scored on this kind of device.
    """
    archive, candidate, recipe = read_candidate(name, file, key)
    hashes = {s["name"]: s["sha256"] for s in archive.campaign["provenance"]["sources"].values()}
    folder = cache_folder("candidates") / recipe.id(hashes)
    if not folder.exists():
        run = name.rpartition("#")[0]
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        labels = archive.campaign["provenance"]["sources"]
        known = {label: place for label, place in (moved or {}).items() if label in labels}
        worker = archive.outcome(candidate.id)["worker"]
        same = _device_like(worker) == _kind_of(worker)  # else a last bit may differ
        export_candidate(Path(run), beside, str(candidate.id), known, verify=same)
        try:
            beside.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def _alone(archive: Archive, candidate: Candidate, recipe: Any) -> Any:
    """Return a recipe that needs no archive: with its whole lineage, where it is one's child."""
    if recipe.kind != "explicit":
        return recipe

    return expanded(ancestry(candidate.recipe_id, recipe, archive.recipe))


def _own(archive: Archive, name: str) -> str | None:
    """Return a stage's own model as a candidate of the run where it lies now, or None."""
    sources = archive.campaign["provenance"]["sources"].values()
    if any(source["name"] == name and source.get("own") for source in sources):
        return f"{archive.path.parent}#{name.rpartition('#')[2]}"
    return None


def _place(archive: Archive, name: str, moved: Mapping[str, str]) -> str:
    """Return the directory where a source of a run lies now."""
    if own := _own(archive, name):
        return str(materialize(own, moved=moved))
    for label, source in archive.campaign["provenance"]["sources"].items():
        if source["name"] == name and label in moved:
            return moved[label]
        if source["name"] == name and not os.path.isdir(name):
            if is_candidate(name) and not Path(source["path"]).is_dir():
                return str(materialize(name))
            return source["path"]  # its hash is compared
    return name


def places_of(recipe: Recipe, file: str, known: Container[str] = ()) -> dict[str, str]:
    """Return source name -> directory for the candidates among a recipe's sources.

    Args:
        recipe: of any kind.
        file: the name that faults carry.
        known: names whose places are known.
    """
    wanted = [n for n in recipe.sources if is_candidate(n) and n not in known]
    return {name: str(materialize(name, file)) for name in wanted}


def self_contained(recipe: Any, archive: Archive) -> dict:
    """Return a recipe's JSON with candidates of runs among its models as their own recipes.

    One whose run is gone, of which only the merged model is left, keeps its name.
    """
    data = recipe.to_json()

    def whole(name: str | None) -> Any:
        if name is None or not is_candidate(name):
            return name
        there = _own(archive, name) or name
        try:
            inner, candidate, found = read_candidate(there, str(archive.path), "models")
        except BadInput:
            return name
        return self_contained(_alone(inner, candidate, found), inner)

    data["models"] = [whole(model) for model in data["models"]]
    return data | ({"base": whole(data["base"])} if "base" in data else {})


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
    checksum = merge_to(
        recipe,
        out,
        places=places,
        card=model_card(archive, candidate, recipe),
        checksum=scored if verify else None,
        trust_remote_code=trust,
        device=_device_like(outcome["worker"]),
        written=self_contained(recipe, archive),
    )
    if not scored:
        return candidate, checksum, "scales folded in"
    return candidate, checksum, "as scored" if verify else "not compared"


def _kind_of(worker: str) -> str:
    """Return the kind of device of a worker, HOST/PID/DEVICE: "cpu" or "cuda"."""
    return "cuda" if worker.rpartition("/")[2].startswith("cuda") else "cpu"


def _device_like(worker: str) -> str:
    """Return a device of the kind of a worker's if there is one here, else the processor."""
    import torch

    return _kind_of(worker) if torch.cuda.is_available() else "cpu"
