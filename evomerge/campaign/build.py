"""From a plan to an opened campaign: sources by their headers, tasks by their items.

Every fault is gathered; no weight is loaded.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.campaign.campaign import Campaign
from evomerge.config import overrides, validate
from evomerge.config.stages import as_campaigns
from evomerge.errors import BadInput, Fault
from evomerge.export.candidates import open_candidate
from evomerge.scoring.fitness import open_fitness
from evomerge.scoring.items import Fitness, Split, split_items
from evomerge.search.objectives import Objective, parse_bound
from evomerge.search.spaces import SPACES, Sources
from evomerge.sources.compatibility import differing_settings, mismatches, stream_mismatches
from evomerge.sources.factory import parse_factory
from evomerge.sources.source import (
    Source,
    has_chat_template,
    is_candidate,
    moved_faults,
    open_source,
)
from evomerge.workers.protocol import WorkerPlan

FEW_ITEMS = 20


@dataclass(frozen=True)
class _Named:
    """What a campaign file names: opened sources by name, fitnesses by objective, the faults."""

    sources: dict[str, Source]
    fitness: dict[str, Fitness]
    faults: list[Fault]


def read_plan(file: Path, settings: Sequence[str], moved: Mapping[str, str]) -> dict:
    """Read a campaign file; see `validate.load`.

    Raises:
        BadInput: with the faults of form, and those of what is named where the form is right.
    """
    data = overrides.read(file, settings)
    try:
        return validate.check_plan(data, str(file))
    except BadInput as error:
        sources, entries = validate.well_formed_parts(data)
        named = _open_named(sources, entries, False, str(file), moved, _strictest(data))
        raise BadInput(*dict.fromkeys([*error.faults, *named.faults])) from None


def _strictest(data: Mapping[str, Any]) -> str | None:
    """Return the kind of a mapping's spaces that asks most of sources, None if none is known."""
    spaces = [part.get("space") for _, part in as_campaigns(data)]
    kinds = [space.get("kind") for space in spaces if isinstance(space, Mapping)]
    known = [kind for kind in kinds if isinstance(kind, str) and kind in SPACES.all()]
    return min(known, key=lambda kind: kind == "routing", default=None)


def prepare(
    plan: Mapping[str, Any],
    file: str,
    moved: Mapping[str, str] | None = None,
    fresh: bool = True,
) -> Campaign:
    """Open what a plan names and check that it fits together.

    Args:
        plan: of `validate.load`.
        file: the name that faults carry.
        moved: label -> directory of sources that lie elsewhere than the plan says.
        fresh: it is not begun yet, and may be held to what earlier versions did not ask.

    Returns:
        The campaign, its sources' hashes not yet filled in.

    Raises:
        BadInput: with every fault of the sources and the tasks.
    """
    entries = dict(enumerate(plan["fitness"]))
    kind = plan["space"]["kind"]
    named = _open_named(plan["sources"], entries, _wants_test(plan), file, moved or {}, kind)
    faults = list(named.faults)
    splits: dict[str, Split] = {}
    warnings = [] if kind == "routing" else differing_settings([*named.sources.values()])
    for index, spec in entries.items():
        if spec["name"] not in named.fitness:
            continue
        fitness = named.fitness[spec["name"]]
        if spec.get("cost"):  # measured on both sides, if there are two
            continue
        faults += _item_faults(plan, spec, fitness, file, f"fitness.{index}")
        if not faults:
            split = split_items(fitness, spec["items"], plan["heldout"], plan["seed"])
            splits[spec["name"]] = split
            warnings += _few_items(spec["name"], split)
    held = any(split.heldout for split in splits.values())
    costs = {s["name"]: Split((0,), (0,) if held else ()) for s in entries.values() if s["cost"]}
    splits = {s["name"]: (splits | costs).get(s["name"]) for s in entries.values()}
    faults += _uneven_faults(plan, named, file)
    if named.sources:
        names = [n for source in named.sources.values() for n in source.tensors]
        faults += [
            Fault(file, key, f"no tensor's name holds '{part}'", "mend or leave it out")
            for key, part in _substrings(plan["space"], fresh)
            if not any(part in name for name in names)
        ]
    if faults:
        raise BadInput(*dict.fromkeys(faults))
    campaign = _campaign(plan, named, splits, warnings)
    campaign.warnings += [*_idle_models(campaign), *_clipped_starts(plan["space"])]
    if faults := list(_chat_faults(campaign, file)):
        raise BadInput(*faults)
    return campaign


def _idle_models(campaign: Campaign) -> list[str]:
    """Return a warning for each model that is the base itself, where task vectors are weighed."""
    base, models = getattr(campaign.space.first, "base", None), campaign.plan["sources"]["models"]
    same = [label for label, name in models.items() if name == base]
    return [f"'{label}' is the base itself: its task vector is zero" for label in same]


def _clipped_starts(space: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for each axis that is to begin outside its bounds."""
    for name, axis in (space.get("axes") or {}).items():
        start = axis.get("start") if isinstance(axis, Mapping) else None
        if start is not None and not axis["low"] <= start <= axis["high"]:
            yield f"axis {name}: start {start} is not within {axis['low']} to {axis['high']}"
    for inner in space.get("spaces") or ():
        yield from _clipped_starts(inner)


def _chat_faults(campaign: Campaign, file: str) -> Iterator[Fault]:
    """Yield the tasks that ask for a chat template where the model that is scored has none."""
    frame = campaign.sources[campaign.worker.frame]
    for index, spec in enumerate(campaign.plan["fitness"]):
        if spec["chat_template"] and not has_chat_template(frame.path):
            wrong = f"'{frame.name}', whose tokenizer merges get, has no chat template"
            mend = "put a chat_template.jinja into its directory, or leave this out"
            yield Fault(file, f"fitness.{index}.chat_template", wrong, mend)


def _substrings(
    space: Mapping[str, Any], fresh: bool, prefix: str = "space."
) -> Iterator[tuple[str, str]]:
    """Yield the parts of tensors' names that a space, or those it chooses among, has, by key."""
    for key in ("chromosomes", "module_groups") if fresh else ("chromosomes",):
        yield from ((prefix + key, part) for part in space.get(key) or ())
    for index, inner in enumerate(space.get("spaces") or ()):
        yield from _substrings(inner, fresh, f"{prefix}spaces.{index}.")


def _uneven_faults(plan: Mapping[str, Any], named: _Named, file: str) -> list[Fault]:
    """Return what hangs on an average of sources that have none.

    What stages found has no part in it: it is scored before them.
    """
    stages = {stage["name"] for stage in plan["stages"]}
    labels = _labels(plan["sources"])
    listed = [source for name, source in named.sources.items() if labels[name] not in stages]
    if plan["space"]["kind"] != "routing" or not listed or not mismatches(listed, file):
        return []
    faults, mend = [], "leave it out: only models of one shape are averaged"
    if plan["soups"]:
        faults.append(Fault(file, "soups", "there is no average of these sources", mend))
    for index, spec in enumerate(plan["fitness"]):
        if spec["constraint"] and parse_bound(spec["constraint"]).baseline == "uniform":
            wrong = "there is no average of these sources"
            faults.append(Fault(file, f"fitness.{index}.constraint", wrong, mend))
    return faults


def _open_named(
    part: Mapping[str, Any],
    entries: Mapping[int, Mapping[str, Any]],
    own_test: bool,
    file: str,
    moved: Mapping[str, str],
    kind: str | None = None,
) -> _Named:
    """Open the sources and the fitness entries, gathering what is wrong with them.

    `kind`: of the space, which says how sources have to fit together; None if it is unknown, and
    whether they do is not asked.
    """
    layered = kind is not None and not SPACES.get(kind).breeds
    faults: list[Fault] = []
    labels = _labels(part)
    if any(map(parse_factory, labels)) and any("task" in e and e["task"] for e in entries.values()):
        wrong = "tasks of lm-eval are for language models, and a source is a module of its own"
        faults.append(Fault(file, "fitness", wrong, "write function: FILE.py"))
    if any(map(parse_factory, labels)) and any(e.get("cost") for e in entries.values()):
        wrong = "costs are those of language models, and a source is a module of its own"
        faults.append(Fault(file, "fitness", wrong, "write function: FILE.py"))
    faults += moved_faults(moved, labels.values())
    opened: dict[str, Source] = {}
    for name, label in labels.items():
        key = "sources.base" if label == "base" else f"sources.models.{label}"
        trust = part["trust_remote_code"]
        try:
            where = moved.get(label, name)
            if is_candidate(where):
                source = open_candidate(where, file, key, moved, trust)
            else:
                source = open_source(where, file=file, key=key, trust_remote_code=trust)
        except BadInput as error:
            faults += error.faults
            continue
        opened[name] = source
        if layered and not source.layers:
            wrong = f"'{name}' has no layers that can be told from its tensor names"
            mend = "take a decoder with numbered layers, or a space of another kind"
            faults.append(Fault(file, key, wrong, mend))
    if opened and kind is not None:
        fit = stream_mismatches if kind == "routing" else mismatches
        faults += fit(list(opened.values()), file)
    fitness = {}
    for index, spec in entries.items():
        try:
            fitness[spec["name"]] = open_fitness(_said(spec, own_test), file, f"fitness.{index}")
        except BadInput as error:
            faults += error.faults
    return _Named(opened, fitness, faults)


def _campaign(
    plan: Mapping[str, Any], named: _Named, splits: dict[str, Split], warnings: list[str]
) -> Campaign:
    labels = _labels(plan["sources"])
    frame = next(iter(labels))
    shape = Sources(
        plan["sources"]["base"],
        tuple(plan["sources"]["models"].values()),
        tuple(plan["sources"]["models"]),
        named.sources[frame].layers,
        named.sources[frame].dtype,
        plan["seed"],
        {n: t.elements for n, t in named.sources[frame].tensors.items()},
        depths={name: source.layers for name, source in named.sources.items()},
        dtypes={name: source.dtype for name, source in named.sources.items()},
    )
    space = SPACES.get(plan["space"]["kind"])(plan["space"], shape)
    dtype = getattr(space, "dtype", shape.dtype)
    worker = WorkerPlan(
        sources={name: source.place for name, source in named.sources.items()},
        hashes={},
        frame=space.first.sources[0],
        dtype=dtype,
        compute_dtype=plan["compute_dtype"] or dtype,
        fitness={spec["name"]: _said(spec, _wants_test(plan)) for spec in plan["fitness"]},
        splits=splits,
        first=space.first.to_json(),
        threads=_threads(plan["workers"]),
        device=plan["workers"]["device"],
        trust_remote_code=plan["sources"]["trust_remote_code"],
    )
    return Campaign(
        plan=dict(plan),
        space=space,
        objectives=tuple(
            Objective(
                spec["name"],
                named.fitness[spec["name"]].direction,
                spec["weight"],
                spec["constraint"] or "",
                bool(spec.get("cost")),
            )
            for spec in plan["fitness"]
        ),
        splits=splits,
        sources=named.sources,
        fitness=named.fitness,
        worker=worker,
        labels=labels,
        warnings=warnings,
    )


def _labels(part: Mapping[str, Any]) -> dict[str, str]:
    """Return source name -> label, the base first; the frame of every merge is the first."""
    base, models = part["base"], part["models"]
    found = {base: "base"} if base else {}
    for label, name in models.items():
        found.setdefault(name, label)
    return found


def _said(spec: Mapping[str, Any], own_test: bool) -> dict[str, Any]:
    """Return a fitness entry as fitnesses take it: what was said, and whose split it is."""
    said = {k: v for k, v in spec.items() if v is not None}
    for k in ("task", "function"):  # workers may start in another folder
        if k in said and Path(said[k]).is_file():
            said[k] = str(Path(said[k]).resolve())
    return said | ({"own_test": True} if own_test else {})


def _wants_test(plan: Mapping[str, Any]) -> bool:
    return isinstance(plan["heldout"], Mapping) and "split" in plan["heldout"]


def _item_faults(plan: Mapping, spec: Mapping, fitness: Any, file: str, key: str) -> list[Fault]:
    faults = []
    there = len(fitness.hashes) if fitness.test_from is None else fitness.test_from
    if spec["items"] and spec["items"] > there:
        wrong = f"{spec['items']} items are more than the {there} there are"
        faults.append(Fault(file, f"{key}.items", wrong, f"write at most {there}"))
    heldout = plan["heldout"]
    share = heldout.get("last", 0.0) if isinstance(heldout, Mapping) else heldout
    if there and share:
        taken = min(spec["items"] or there, there)
        if taken == round(share * taken):
            wrong = f"holding {share} of {taken} items out leaves none to search on"
            faults.append(Fault(file, "heldout", wrong, "hold out less, or take more items"))
    if not there:
        faults.append(Fault(file, key, "there is no item", "give it items"))
    if _wants_test(plan) and fitness.test_from is None:
        wrong = f"'{spec['name']}' has no validation and test split of its own"
        faults.append(Fault(file, "heldout", wrong, "write a share such as 0.5"))
    public = getattr(fitness, "searches_public_test_split", False) and not _wants_test(plan)
    if public and not plan["allow_benchmarks"]:
        wrong = f"'{spec['task']}' would search on the test split of a public benchmark"
        mend = "write heldout: {split: test}, or allow_benchmarks: true if you mean it"
        faults.append(Fault(file, f"{key}.task", wrong, mend))
    return faults


def _few_items(name: str, split: Any) -> list[str]:
    sides = {"search": len(split.search), "held-out": len(split.heldout)}
    return [f"{name}: only {n} {side} items" for side, n in sides.items() if n < FEW_ITEMS]


def _threads(workers: Mapping[str, Any]) -> int:
    """Return torch threads per worker: the cores shared out, unless the plan says."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return workers["threads"] or max(1, (cores or 1) // workers["count"])
