"""What a campaign will need: memory, disk and time, before any weight is loaded."""

import json
import time
from typing import TypedDict

from evomerge.campaign.amounts import amounts, baseline_count, limits_text, scoring_text
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.device_room import (
    kept_bytes,
    live_bytes,
    on_gpu,
    prepared_bytes,
    read_bytes,
)
from evomerge.campaign.learning_texts import learned_text
from evomerge.campaign.reading import Reading, averaged_note, reading
from evomerge.config.parts import WorkersSection
from evomerge.dtypes import CODES, DTYPES, SIZE
from evomerge.search.guards import Guard
from evomerge.search.spaces.routing import RoutingSection
from evomerge.text import byte_size, duration

_BYTES = {dtype: SIZE[code] for dtype, code in CODES.items()}
_CHARACTERS_PER_TOKEN = 4.0  # of English under common tokenizers
_ROW_BYTES = 1000  # of a candidate in the archive, its recipe and its item scores aside


class Estimate(TypedDict):
    """What a campaign will need.

    Attributes:
        summary: what people read, line by line.
        warnings: one line each.
        parameters: of one model.
        genes: of the search.
        memory_bytes: the weights of all workers, and once the sources, or what is prepared of them.
        disk_bytes: the archive, and prepared sources.
        download_bytes: the weights that are on the hub still.
        seconds_at_least: for the prompts' forward passes alone; None if it is unknown.
    """

    summary: dict[str, str]
    warnings: list[str]
    parameters: int
    genes: int
    memory_bytes: int
    disk_bytes: int
    download_bytes: int
    seconds_at_least: float | None


def estimate(campaign: Campaign) -> Estimate:
    """Return a campaign's size and needs.

    Memory is what the weights take; batches come on top. The time is that of the prompts' forward
    passes alone, at the rate at which this machine (of GPUs, one for each worker) multiplies
    matrices now.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> estimate(example_campaign())["summary"]["candidates"]
    '6 and 4 baselines'
    """
    worker, workers = campaign.worker, campaign.plan.workers
    frame = campaign.sources[worker.frame]
    parameters = sum(tensor.elements for tensor in frame.tensors.values())
    is_routed = isinstance(campaign.search.space, RoutingSection)
    sources, prepared = read_bytes(campaign), prepared_bytes(campaign)
    kept = kept_bytes(campaign)
    beside = sum(fitness.bytes for fitness in campaign.fitness.values())
    model = live_bytes(campaign) + kept + beside
    warnings = [*campaign.warnings, *averaged_note(campaign), *_shared_gpu(worker.device, workers)]
    if on_gpu(worker.device, workers) and not is_routed and kept < sources:
        warnings.append(
            f"of the sources' {byte_size(sources)}, {byte_size(kept)} stay on the GPU and"
            f" {byte_size(sources - kept)} are read again for every candidate"
        )
    searched = {name: len(split.search) for name, split in campaign.splits.items()}
    heldout = {name: len(split.heldout) for name, split in campaign.splits.items()}
    baselines = baseline_count(campaign)
    proposals, items = amounts(campaign)
    candidates = proposals + baselines
    recipe = campaign.space.first
    row = _ROW_BYTES + len(json.dumps(recipe.to_json())) + items // max(1, candidates)
    read = reading(campaign)
    exported = parameters * _BYTES[worker.dtype]
    seconds = _forward_seconds(campaign, parameters, items)
    disk = f"about {byte_size(candidates * row)} of archive"
    disk += f"; {byte_size(exported)} for an exported model"
    if prepared:
        disk += f"; {byte_size(prepared)} of prepared sources"
    if read.disk_bytes:
        disk += f"; {byte_size(read.disk_bytes)} of what the models read"
    download = sum(campaign.to_fetch.values())
    if download:
        disk += f"; {byte_size(download)} of weights to be fetched from the hub"
    time_needed = "unknown"
    if seconds is not None:
        time_needed = f"about {duration(seconds)} for the prompts' forward passes alone, at this"
        time_needed += " machine's speed now"
    sides = [f"{n}: {searched[n]} search + {heldout[n]} held-out" for n in searched]
    guarded = [f"{g.name}: {_kept(g)}" for g in campaign.guards]
    return {
        "summary": {
            "campaign": campaign.plan.name,
            "sources": f"{len(campaign.sources)} models of {parameters / 1e6:.1f} M parameters,"
            f" {frame.layers} layers, {worker.dtype}",
            "space": f"{campaign.search.space.kind}, {campaign.space.dimension} genes",
            "controller": campaign.search.controller.kind,
            "items": ", ".join(sides),
            **({"guards": ", ".join(guarded)} if guarded else {}),
            **({"learned": learned_text(campaign)} if campaign.learned else {}),
            "scoring": scoring_text(campaign),
            "candidates": limits_text(campaign),
            "memory": f"{workers.count} worker(s) x {byte_size(model)} of weights, and"
            f" {byte_size(sources)} of page cache for the {'prepared ' * bool(prepared)}sources",
            **({"texts": _read_text(read)} if read.texts else {}),
            "disk": disk,
            "time": time_needed,
        },
        "warnings": warnings,
        "parameters": parameters,
        "genes": campaign.space.dimension,
        "memory_bytes": workers.count * model + sources,
        "disk_bytes": candidates * row + prepared + read.disk_bytes,
        "download_bytes": download,
        "seconds_at_least": seconds,
    }


def _read_text(read: Reading) -> str:
    size = byte_size(read.memory_bytes)
    return f"{read.texts} are read once, which takes {size} of memory or more"


def _kept(guard: Guard) -> str:
    return f"within {guard.margin} of {guard.against or 'the best source'}, beyond the noise"


def _shared_gpu(device: str, workers: WorkersSection) -> list[str]:
    """Return a warning where Ray would put all workers onto one GPU."""
    is_shared = workers.pool == "ray" and workers.count > 1 and not workers.gpus_each
    if not is_shared or not on_gpu(device, workers):
        return []
    return [f"all {workers.count} workers share one GPU; write workers.gpus_each: 1"]


def _forward_seconds(campaign: Campaign, parameters: int, items: int) -> float | None:
    """Return seconds for the prompts' forward passes, 2 operations a parameter and token.

    Args:
        campaign: whose fitnesses read the prompts.
        parameters: of one model.
        items: that are scored in all, spread over the fitnesses as a whole candidate's are.
    """
    tokens = 0.0
    for name, fitness in campaign.fitness.items():
        characters = fitness.characters()
        if characters is None:
            return None
        tokens += len(campaign.splits[name].search) * characters / _CHARACTERS_PER_TOKEN
    worker, workers = campaign.worker, campaign.plan.workers
    is_on_gpu = on_gpu(worker.device, workers)
    rate = _multiply_rate(worker.compute_dtype, is_on_gpu)
    if is_on_gpu:  # one for each worker, or one that they share
        rate *= max(1.0, workers.count * min(1.0, workers.gpus_each))
    candidates = items / max(1, campaign.search_items)
    return 2.0 * parameters * tokens * candidates / rate


def _multiply_rate(dtype: str, is_on_gpu: bool) -> float:
    """Return the matrix multiplications, in operations per second, of this machine or its GPU."""
    import torch

    device = "cuda" if is_on_gpu and torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 512  # a side: a GPU is busy, a processor soon done
    a = torch.ones(size, size, dtype=getattr(torch, dtype if dtype in DTYPES else "float32"))
    a = a.to(device)
    (a @ a).sum().item()
    started, times = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        (a @ a).sum().item()
        times += 1
    return times * 2.0 * size**3 / (time.perf_counter() - started)
