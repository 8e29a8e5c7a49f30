"""What a campaign will need: memory, disk and time, before any weight is loaded."""

import json
import time

from evomerge.campaign import Campaign
from evomerge.operators import OPERATORS
from evomerge.recipe import DTYPES
from evomerge.tables import duration

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
_CHARACTERS_PER_TOKEN = 4.0  # of English under common tokenizers


def estimate(campaign: Campaign) -> dict:
    """Return a campaign's size and needs.

    Memory is what the weights take; batches come on top. The time is a lower bound: the
    prompts' forward passes at the rate at which this machine multiplies matrices now.
    """
    worker, plan = campaign.worker, campaign.plan
    frame = campaign.sources[worker.frame]
    parameters = sum(t.elements for t in frame.tensors.values())
    listed = len(plan["sources"]["models"]) + (plan["sources"]["base"] is not None)
    live = 1 + listed if plan["space"]["kind"] == "routing" else 1
    model = live * parameters * _BYTES[worker.compute_dtype]
    sources = sum(s.bytes for s in campaign.sources.values())
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
        "time": "unknown" if seconds is None else f"at least {duration(seconds)}",
    }
    numbers = {
        "parameters": parameters,
        "genes": campaign.space.dimension,
        "memory_bytes": workers * model + sources,
        "disk_bytes": disk + prepared,
        "seconds_at_least": seconds,
    }
    return {"summary": found, "warnings": campaign.warnings, **numbers}


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
    return 2.0 * parameters * tokens * candidates / _multiply_rate(campaign.worker.compute_dtype)


def _multiply_rate(dtype: str) -> float:
    """Return this machine's matrix multiplications, in operations per second."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.ones(512, 512, dtype=getattr(torch, dtype if dtype in DTYPES else "float32"))
    a = a.to(device)
    (a @ a).sum().item()
    started, times = time.perf_counter(), 0
    while time.perf_counter() - started < 0.2:
        (a @ a).sum().item()
        times += 1
    return times * 2.0 * 512**3 / (time.perf_counter() - started)
