"""Archived candidates as models: exported, or taken as sources.

A candidate is written `RUN#NUMBER` (or `RUN#best`), RUN a run's directory. As a source it is
materialized once, into the cache, and is a model directory from then on.
"""

import contextlib
import math
import os
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.references import read_candidate
from evomerge.archive.selection import pick
from evomerge.archive.summary import as_written, open_run
from evomerge.cache.eviction import make_room
from evomerge.cache.holding import hold
from evomerge.cache.private import exposed
from evomerge.dtypes import CODES, SIZE
from evomerge.environment import cache_folder
from evomerge.errors import BadInput, EvomergeError, Fault, Faults, placed
from evomerge.export.hub_ids import folders
from evomerge.export.merged_places import folder_of, merged_like, source_labelled
from evomerge.export.model_card import model_card, served_adapters
from evomerge.export.model_directory import merge_to, source_key
from evomerge.export.scored_by import scored_by
from evomerge.export.whole_recipes import of_this_run, self_contained, stands_alone
from evomerge.merging.routed_checkpoint import routed_config, routed_tensors
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.routing import RoutingRecipe
from evomerge.sources.alignment import aligned
from evomerge.sources.digest import digest
from evomerge.sources.named_parts import like, split_parts
from evomerge.sources.own_cards import inherited
from evomerge.sources.safetensors_file import Tensor
from evomerge.sources.source import Source, is_candidate, moved_faults, open_source
from evomerge.sources.trust import NOBODY, Trust


class Exported(NamedTuple):
    """What became of an export.

    Attributes:
        candidate: its number.
        checksum: of the weights.
        compared: how they compare with those that were scored.
        doubt: why the card names no licence, as a sentence; "" if it does.

    >>> Exported(7, "5f0c", "as scored").compared
    'as scored'
    """

    candidate: int
    checksum: str
    compared: str
    doubt: str = ""


def open_candidate(
    name: str,
    moved: Mapping[str, str] | None = None,
    trust: Trust = NOBODY,
) -> Source:
    """Open a candidate by the headers of its own sources; nothing is merged.

    Args:
        name: RUN#NUMBER.
        moved: label -> directory of the run's sources that lie elsewhere.
        trust: as of `open_source`.

    Raises:
        BadInput: it is not there, or its sources are not.

    >>> open_candidate("runs/absent#7")
    Traceback (most recent call last):
    evomerge.errors.BadInput: runs/absent: is no run's directory; write RUN#best or RUN#NUMBER, ...
    """
    archive, candidate = read_candidate(name)
    with contextlib.closing(archive):
        return _by_headers(name, archive, candidate.recipe, moved or {}, trust)


def _by_headers(
    name: str, archive: ArchiveReader, recipe: Recipe, moved: Mapping[str, str], trust: Trust
) -> Source:
    """See `open_candidate`."""

    def opened(source: str) -> Source:
        if is_candidate(source):
            if own := of_this_run(archive, source):
                return open_candidate(own, moved, trust)
            return open_candidate(source, moved, trust.of_others)
        return open_source(_place(archive, source, moved, trust), trust, weights=False)

    if isinstance(recipe, RoutingRecipe):
        sources = {source: opened(source) for source in recipe.sources}
        frame = replace(sources[recipe.sources[0]], config=routed_config(recipe, sources))
        origins = routed_tensors(recipe, sources)
        shapes = {tensor: origin.shape for tensor, origin in origins.items()}
    else:
        frame = aligned(opened(archive.sources[0].name), opened(recipe.sources[0]))
        shapes = {tensor: stored.shape for tensor, stored in frame.tensors.items()}
    merged = {}
    for tensor, shape in shapes.items():
        known = frame.tensors.get(tensor)
        code = CODES[recipe.dtype if known is None else frame.dtype_of(tensor, recipe.dtype)]
        # no file yet: these tensors are to be looked at, not to be read
        merged[tensor] = Tensor(code, shape, Path(), "", 0, math.prod(shape) * SIZE[code])
    return replace(frame, name=name, tensors=merged, adapter=None, unaligned=None)


def materialize(
    name: str,
    moved: Mapping[str, str] | None = None,
    trust: Trust = NOBODY,
) -> Path:
    """Return a candidate's model directory in the cache, merging it if it is not there yet.

    Args:
        name: RUN#NUMBER.
        moved: label -> directory of the run's sources that lie elsewhere; other labels are ignored.
        trust: what code of its sources may run, whatever its run's plan says.

    Raises:
        BadInput: it, or one of its sources, is not there or has changed.
        EvomergeError: its weights are not those that were scored on this kind of device.

    >>> materialize("runs/absent#7")
    Traceback (most recent call last):
    evomerge.errors.BadInput: runs/absent: is no run's directory; write RUN#best or RUN#NUMBER, ...
    """
    archive, candidate = read_candidate(name)
    with contextlib.closing(archive):
        hashes = {source.name: source.sha256 for source in archive.sources}
        folder = cache_folder("candidates") / candidate.recipe.id(hashes)
        if _is_cached(folder, trust):
            return folder
        labels = {source.label for source in archive.sources}
        moved_here = {label: place for label, place in (moved or {}).items() if label in labels}
        worker = _worker_of(archive, candidate.id)
        with contextlib.suppress(EvomergeError):  # which is told when it is merged
            frame = _by_headers(name, archive, candidate.recipe, moved or {}, trust)
            make_room(sum(tensor.bytes for tensor in frame.tensors.values()))
    # only on the kind of device that scored it are the weights the same to the last bit
    verify = _device_like(worker) == _kind_of(worker)
    run = name.rpartition("#")[0]
    try:
        with placed(file=run):
            export_candidate(Path(run), folder, str(candidate.id), moved_here, verify, trust)
    except EvomergeError:
        if not folder.exists():  # else another process was quicker
            raise
    _is_cached(folder, trust)  # where others may write, it is refused
    return folder


def _is_cached(folder: Path, trust: Trust) -> bool:
    """Tell whether a candidate is in the cache, from where nobody removes it from now on.

    Raises:
        BadInput: code may run that others than the user may have put there.
    """
    hold(folder)
    is_there = folder.is_dir()
    if is_there and trust.remote_code and (reason := exposed(folder.resolve())):
        wrong = f"code of {folder} may run, and {reason}"
        raise BadInput(Fault("", wrong, "let nobody else write there, and remove what is there"))
    return is_there


def _place(archive: ArchiveReader, name: str, moved: Mapping[str, str], trust: Trust) -> str:
    """Return the directory where a source of a run lies now."""
    if own := of_this_run(archive, name):
        path = next(source.path for source in archive.sources if source.name == name)
        return merged_like(materialize(own, moved, trust), path)
    for source in archive.sources:
        if source.name != name:
            continue
        if source.label in moved:
            return like(moved[source.label], name)
        if os.path.isdir(name):
            continue
        if is_candidate(name) and not _is_cached(folder_of(source.path), trust):
            return merged_like(materialize(name, trust=trust.of_others), source.path)
        return source.path  # its hash is compared
    return name


def places_of(
    recipe: Recipe,
    known: Container[str] = (),
    trust: Trust = NOBODY,
) -> dict[str, str]:
    """Return source name -> directory for the candidates among a recipe's sources.

    Args:
        recipe: of any kind.
        known: names whose places are known.
        trust: what code of their sources may run.

    Raises:
        BadInput: see `materialize`.

    >>> from evomerge.recipes.parameters import uniform
    >>> places_of(uniform(("models/a", "models/b"), "float32"))
    {}
    """
    faults = Faults()
    places = {}
    for name in recipe.sources:
        if is_candidate(name) and name not in known:
            with faults.gather(under=source_key(recipe, name)):
                places[name] = str(materialize(name, trust=trust.of_others))
    faults.check()
    return places


def export_candidate(
    directory: Path,
    out: Path,
    which: str,
    moved: Mapping[str, str] | None = None,
    verify: bool = True,
    trust: Trust = NOBODY,
    as_adapter: bool = False,
    head: str | None = None,
) -> Exported:
    """Export a candidate of a run as a model directory.

    Args:
        directory: the run's.
        out: a path that does not exist yet.
        which: as `selection.pick` takes it.
        moved: label -> directory of sources that lie elsewhere.
        verify: compare the weights with the checksum of those that were scored.
        trust: what code of the sources may run. The run may be somebody else's, so its own plan
            is not asked.
        as_adapter: write a LoRA adapter of the models' base in the place of weights.
        head: label of the model whose head it gets, where the trunk alone is merged.

    Raises:
        BadInput: there is no such candidate, it is asked for as an adapter and is none, or a source
            is not where and what it was.
        EvomergeError: the weights are not the ones that were scored.

    >>> export_candidate(Path("runs/absent"), Path("out"), "best")
    Traceback (most recent call last):
    evomerge.errors.BadInput: is no run's directory; name a folder under runs/ in which ...
    """
    with contextlib.closing(open_run(directory)) as archive:
        return _exported(archive, out, which, moved or {}, verify, trust, as_adapter, head)


def _exported(
    archive: ArchiveReader,
    out: Path,
    which: str,
    moved: Mapping[str, str],
    verify: bool,
    trust: Trust,
    as_adapter: bool,
    head: str | None,
) -> Exported:
    """See `export_candidate`."""
    candidate = archive.candidate(pick(archive, which))
    recipe = stands_alone(archive, candidate)
    of_head = None if head is None else source_labelled(archive, head)
    places = _unchanged(archive, recipe, moved, trust)
    if of_head is not None and of_head not in places:
        places[of_head] = _place(archive, of_head, moved, trust)
    with as_written():
        outcome = archive.outcome(candidate.id)
        scored = outcome["weights_checksum"] if outcome is not None else ""
        labels = {source.name: source.label for source in archive.sources}
        own = inherited(
            {labels.get(name, "a source"): folders(places[name]) for name in recipe.sources}
        )
        card = model_card(archive, candidate.id, recipe, as_adapter, own)
        is_served = served_adapters(archive)
    first = _first(archive, places, moved, trust)
    checksum = merge_to(
        recipe,
        out,
        places=places,
        card=card,
        checksum=scored if verify and not is_served else None,
        trust=trust,
        first=first,
        device=_device_like(_worker_of(archive, candidate.id)),
        written=_as_merged(recipe, archive, places, first, trust),
        as_adapter=as_adapter,
        adapter_checksum=scored if verify and is_served else None,
        head=of_head,
    )
    compared = "as scored" if verify else "not compared"
    if not scored:
        compared = "scales folded in"
    elif verify and is_served and not as_adapter:
        compared = "merged from the factors that were scored"
    compared += scored_by(archive, candidate.id)
    return Exported(candidate.id, checksum, compared, own.doubt)


def _as_merged(
    recipe: Recipe,
    archive: ArchiveReader,
    places: Mapping[str, str],
    first: str | None,
    trust: Trust,
) -> dict[str, Any]:
    """Return what recipe.json gets; `first` is left out where it changes nothing."""
    data = self_contained(recipe, archive)
    if "first" in data and first is not None:
        measure = open_source(first, trust)
        opened = [open_source(places[name], trust) for name in recipe.sources]
        if all(aligned(measure, source) is source for source in opened):
            del data["first"]
    return data


def _first(
    archive: ArchiveReader, places: Mapping[str, str], moved: Mapping[str, str], trust: Trust
) -> str | None:
    """Return where the run's first source lies, whose vocabulary all follow; None if it is gone.

    Then the weights are compared with those that were scored, as ever.
    """
    name = archive.sources[0].name
    if name in places:
        return places[name]
    place = _place(archive, name, moved, trust)
    return place if os.path.exists(split_parts(place)[0].partition("+")[0]) else None


def _unchanged(
    archive: ArchiveReader, recipe: Recipe, moved: Mapping[str, str], trust: Trust
) -> dict[str, str]:
    """Return source name -> directory, each of which holds what was searched.

    Raises:
        BadInput: one does not, or a label of `moved` is unknown.
    """
    faults = Faults()
    faults.extend(moved_faults(moved, [source.label for source in archive.sources]))
    places = {name: _place(archive, name, moved, trust) for name in recipe.sources}
    for source in archive.sources:
        if source.name not in places:
            continue
        place = places[source.name]
        key = f"sources.{source.label}"
        with faults.gather(under=key):
            opened = open_source(place, trust)
            if digest(opened).sha256 != source.sha256:
                wrong = f"{place} is not the model that was searched"
                faults.add(key, wrong, "restore the model")
    faults.check()
    return places


def _worker_of(archive: ArchiveReader, candidate: int) -> str:
    """Return the worker, HOST/PID/DEVICE, that scored a candidate; "" if none did."""
    outcome = archive.outcome(candidate)
    return "" if outcome is None else outcome["worker"]


def _kind_of(worker: str) -> str:
    """Return the kind of device of a worker, HOST/PID/DEVICE: "cpu" or "cuda"."""
    return "cuda" if worker.rpartition("/")[2].startswith("cuda") else "cpu"


def _device_like(worker: str) -> str:
    """Return a device of the kind of a worker's if there is one here, else the processor."""
    import torch

    return _kind_of(worker) if torch.cuda.is_available() else "cpu"
