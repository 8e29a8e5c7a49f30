"""The one pass over sources' weights, made before there is a ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from evomerge.campaign.campaign import Campaign
from evomerge.errors import BadInput, Fault
from evomerge.export.candidates import materialize
from evomerge.sources.digest import digest
from evomerge.sources.source import is_candidate, open_source


def hash_sources(campaign: Campaign, file: str, moved: Mapping[str, str] | None = None) -> Campaign:
    """Hash every source and refuse weights that are NaN or infinite.

    Sources that are earlier candidates are materialized first, if the cache has them not; `moved`
    is as in `prepare`, for their sources.

    Raises:
        BadInput: naming each source and its first such tensors.
    """
    hashes, faults, places = {}, [], {}
    for name, source in campaign.sources.items():
        if is_candidate(source.name):
            key = f"sources.{campaign.labels[name]}"
            place = str(materialize(source.name, file, key, moved))
            if source.factory:
                place = source.factory._replace(weights=f"{place}/model.safetensors").place
            trust = campaign.worker.trust_remote_code
            source = open_source(place, file=file, key=key, trust_remote_code=trust)
        places[name] = source.place
        found = digest(source)
        hashes[name] = found.sha256
        if found.not_finite:
            listed = ", ".join(found.not_finite[:3])
            wrong = f"{source.path}: {len(found.not_finite)} tensors hold NaN or infinity: {listed}"
            label = campaign.labels[name]
            faults.append(Fault(file, f"sources.{label}", wrong, "mend or leave out the model"))
    if faults:
        raise BadInput(*faults)
    campaign.worker = replace(campaign.worker, hashes=hashes, sources=places)
    models = [places[m] for m in campaign.space.sources.models]
    campaign.space.sources = replace(
        campaign.space.sources,
        grams=lambda: _grams(models),
        weights=lambda name: _flattened(places[name]),
    )
    return campaign


def _grams(places: Sequence[str]) -> np.ndarray:
    from evomerge.merging.source_weights import grams_of  # which needs torch

    return grams_of(places)


def _flattened(place: str) -> np.ndarray:
    """Return a model's (parameters,) float32 weights in canonical order."""
    from evomerge.merging.source_weights import flattened

    return flattened(open_source(place, trust_remote_code=True))
