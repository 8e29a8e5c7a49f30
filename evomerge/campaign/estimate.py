"""What a campaign will need: memory, disk and time, before any weight is loaded."""

import json
import time
from collections.abc import Mapping
from typing import Any

from evomerge.campaign.campaign import Campaign
from evomerge.dtypes import DTYPES
from evomerge.merging.methods import OPERATORS
from evomerge.text import duration

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}

_CHARACTERS_PER_TOKEN = 4.0  # of English under common tokenizers


def estimate(campaign: Campaign) -> dict:
    """Return a campaign's size and needs.

    Memory is what the weights take; batches come on top. The time is that of the prompts' forward
    passes alone, at the rate at which this machine (of GPUs, one for each worker) multiplies
    matrices now.
    """
    worker, plan = campaign.worker, campaign.plan
    frame = campaign.sources[worker.frame]
    parameters = sum(t.elements for t in frame.tensors.values())
    listed = len(plan["sources"]["models"]) + (plan["sources"]["base"] is not None)
    routed = plan["space"]["kind"] == "routing"
    live = 1 + listed if routed else 1
    model = live * parameters * _BYTES[worker.compute_dtype]
    sources = sum(s.bytes for s in campaign.sources.values())
    if on_gpu(worker.device, plan["workers"]) and not routed:
        model += sources  # each worker has them there; a path's are among the live models
    searched = {n: len(s.search) for n, s in campaign.splits.items()}
    heldout = {n: len(s.heldout) for n, s in campaign.splits.items()}
    baselines = len(campaign.baselines()) + ("metrics" in plan["soups"])
    baselines += len(campaign.models) - 1 if "greedy" in plan["soups"] else 0
    candidates = plan["budget"]["evaluations"] + baselines
    recipe = campaign.space.first
    disk = candidates * (1000 + len(json.dumps(recipe.to_json())) + sum(searched.values()))
    parametric = recipe.kind == "parameters"
    prepares = parametric and any(OPERATORS.get(m).prepare for m in recipe.methods)
    prepared = parameters * _BYTES[worker.dtype] * len(recipe.models) if prepares else 0
    seconds = _forward_seconds(campaign, parameters, candidates)
    workers = plan["workers"]["count"]
    found = {
        "campaign": plan["name"],
        "sources": f"{len(campaign.sources)} models of {parameters / 1e6:.1f} M parameters,"
        f" {frame.layers} layers, {worker.dtype}",
        "space": f"{plan['space']['kind']}, {campaign.space.dimension} genes",
        "controller": plan["controller"]["kind"],
        "items": ", ".join(f"{n}: {searched[n]} search + {heldout[n]} held-out" for n in searched),
        "candidates": f"{plan['budget']['evaluations']} and {baselines} baselines",
        "memory": f"{workers} worker(s) x {_size(model)} of weights, and {_size(sources)} of page"
        " cache for the sources",
        "disk": f"about {_size(disk)} of archive; {_size(parameters * _BYTES[worker.dtype])} for an"
        f" exported model{f'; {_size(prepared)} of prepared sources' if prepared else ''}",
        "time": "unknown"
        if seconds is None
        else f"about {duration(seconds)} for the prompts' forward passes alone, at this machine's"
        " speed now",
    }
    numbers = {
        "parameters": parameters,
        "genes": campaign.space.dimension,
        "memory_bytes": workers * model + sources,
        "disk_bytes": disk + prepared,
        "seconds_at_least": seconds,
    }
    warnings = [*campaign.warnings, *_shared_gpu(worker.device, plan["workers"])]
    return {"summary": found, "warnings": warnings, **numbers}


def _shared_gpu(device: str, workers: Mapping[str, Any]) -> list[str]:
    """Return a warning where Ray would put all workers onto one GPU."""
    several = workers["pool"] == "ray" and workers["count"] > 1 and not workers["gpus_each"]
    if not several or not on_gpu(device, workers):
        return []
    return [f"all {workers['count']} workers share one GPU; write workers.gpus_each: 1"]


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return ""


def _forward_seconds(campaign: Campaign, parameters: int, candidates: int) -> float | None:
    """Return seconds for the prompts' forward passes, 2 operations per parameter and token."""
    tokens = 0.0
    for name, fitness in campaign.fitness.items():
        characters = getattr(fitness, "characters", None)
        if characters is None:
            return None
        tokens += len(campaign.splits[name].search) * characters() / _CHARACTERS_PER_TOKEN
    worker, workers = campaign.worker, campaign.plan["workers"]
    there = on_gpu(worker.device, workers)
    together = max(1.0, workers["count"] * min(1.0, workers["gpus_each"]))  # else they share one
    rate = (together if there else 1.0) * _multiply_rate(worker.compute_dtype, there)
    return 2.0 * parameters * tokens * candidates / rate


def on_gpu(device: str, workers: Mapping[str, Any]) -> bool:
    """Tell whether workers of a campaign have a GPU, as far as it can be told here."""
    import torch

    if device != "auto":
        return device.startswith("cuda")
    return bool(workers["gpus_each"]) or torch.cuda.is_available()


def _multiply_rate(dtype: str, there: bool) -> float:
    """Return the matrix multiplications, in operations per second, of this machine or its GPU."""
    import torch

    device = "cuda" if there and torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 512
    a = torch.ones(size, size, dtype=getattr(torch, dtype if dtype in DTYPES else "float32"))
    a = a.to(device)
    (a @ a).sum().item()
    started, times = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        (a @ a).sum().item()
        times += 1
    return times * 2.0 * size**3 / (time.perf_counter() - started)
