"""The one pass over sources' weights, made before there is a ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evomerge.campaign.campaign import Campaign
from evomerge.errors import Faults, placed
from evomerge.export.candidates import materialize
from evomerge.export.merged_places import merged_like
from evomerge.search.spaces import make_space
from evomerge.sources.alignment import aligned
from evomerge.sources.digest import digest
from evomerge.sources.source import Source, is_candidate, open_source
from evomerge.sources.trust import Trust


def hash_sources(campaign: Campaign, moved: Mapping[str, str] | None = None) -> Campaign:
    """Hash every source and refuse weights that are NaN or infinite.

    Args:
        campaign: whose sources are opened.
        moved: label -> directory of sources that lie elsewhere. Sources that are earlier
            candidates are materialized first, if the cache has them not.

    Returns:
        The campaign, with hashes, and with a space that can read the weights.

    Raises:
        BadInput: naming each source and its first such tensors.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> len(hash_sources(example_campaign()).worker.hashes)
    3
    """
    hashes: dict[str, str] = {}
    places: dict[str, str] = {}
    faults = Faults()
    for name, source in campaign.sources.items():
        key = f"sources.{campaign.labels[name]}"
        if is_candidate(source.name):
            with placed(key):
                trust = campaign.worker.trust
                if campaign.labels[name] not in {stage.name for stage in campaign.plan.stages}:
                    trust = trust.of_others
                source = _materialized(source, trust, moved)
        places[name] = source.place
        found = digest(source)
        hashes[name] = found.sha256
        if found.not_finite:
            listed = ", ".join(found.not_finite[:3])
            wrong = f"{source.path}: {len(found.not_finite)} tensors hold NaN or infinity: {listed}"
            faults.add(key, wrong, "mend or leave out the model")
    faults.check()
    models = [places[model] for model in campaign.space.shapes.models]
    first, trust = next(iter(places.values())), campaign.worker.trust
    base = campaign.space.shapes.base
    shapes = replace(
        campaign.space.shapes,
        grams=lambda: _grams(first, models, trust),
        moves=None if base is None else lambda: _moves(first, places[base], models, trust),
        weights=lambda name: _flattened(first, places[name], trust),
    )
    return replace(
        campaign,
        worker=replace(campaign.worker, hashes=hashes, sources=places),
        space=make_space(campaign.search.space, shapes),
    )


def _materialized(source: Source, trust: Trust, moved: Mapping[str, str] | None) -> Source:
    """Return an earlier candidate as the model directory that it is merged into."""
    place = str(materialize(source.name, moved, trust))
    if source.parts or source.form == "file":
        place = merged_like(Path(place), source.place)
    if source.factory:
        place = source.factory._replace(weights=f"{place}/model.safetensors").place
    return open_source(place, trust)


def _grams(first: str, places: Sequence[str], trust: Trust) -> np.ndarray:
    from evomerge.merging.source_weights import grams_of  # which needs torch

    return grams_of(places, first, trust)


def _moves(first: str, base: str, places: Sequence[str], trust: Trust) -> np.ndarray:
    """Return |W_k - W_0|^2 / |W_0|^2 of each tensor and model, (tensors, models) float64."""
    grams = _grams(first, [base, *places], trust)
    squares = np.einsum("tkk->tk", grams)
    moved = squares[:, 1:] - 2.0 * grams[:, 0, 1:] + squares[:, :1]
    return np.asarray(np.maximum(moved, 0.0) / np.maximum(squares[:, :1], np.finfo(float).tiny))


def _flattened(first: str, place: str, trust: Trust) -> np.ndarray:
    """Return a model's (parameters,) float32 weights in canonical order, in the first's shapes."""
    from evomerge.merging.source_weights import flattened

    return flattened(aligned(open_source(first, trust), open_source(place, trust)))
