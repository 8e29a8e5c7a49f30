"""Campaigns in stages: each searches a space of its own, over the best of those before as well.

What Akiba et al. (arXiv:2403.13187, section 3.3) do by hand: merge parameters first, put the
merged model among the sources, then search the data flow. A stage's plan is an ordinary one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.config.schema import MENDS
from evomerge.errors import Fault

OWN = ("space", "controller", "budget")  # what each stage has for itself

_FIRST_ONLY = {"init": [], "soups": [], "start_from_soup": False}


def stage_plan(plan: Mapping[str, Any], number: int, found: Sequence[str] = ()) -> dict:
    """Return the plan of one stage; of a plan without stages, itself.

    Args:
        plan: a campaign's.
        number: of the stage, from 0.
        found: what each stage before found, as a source; without it, its first model stands in.
    """
    if not plan["stages"]:
        return dict(plan)
    stage = plan["stages"][number]
    models = dict(plan["sources"]["models"])
    first = next(iter(models.values()))
    for index, before in enumerate(plan["stages"][:number]):
        models[before["name"]] = found[index] if found else first
    own = {key: stage[key] for key in OWN} | (_FIRST_ONLY if number else {})
    return {**plan, **own, "sources": {**plan["sources"], "models": models}}


def whole_budget(stages: Any) -> dict[str, Any]:
    """Return the budget of all stages together; of what is no list of stages, an empty one."""
    listed = stages if isinstance(stages, list) else []
    budgets = [entry.get("budget") for entry in listed if isinstance(entry, Mapping)]
    counts = [b.get("evaluations") for b in budgets if isinstance(b, Mapping)]
    return {"evaluations": sum(n for n in counts if isinstance(n, int)), "hours": None}


def stage_faults(data: Mapping[str, Any], file: str) -> list[Fault]:
    """Return what a campaign's stages have too much, too little, or twice."""
    faults = []
    entries, staged = data.get("stages"), data.get("stages") not in (None, [])
    for key in OWN:
        given = data.get(key)
        if staged and given is not None and given != whole_budget(entries):
            wrong = "belongs to the stages, where there are some"
            faults.append(Fault(file, key, wrong, "write it into each stage"))
        elif not staged and given is None and (key != "controller" or key in data):
            wrong = "null is not a mapping" if key in data else "is missing"
            faults.append(Fault(file, key, wrong, MENDS[key]))
    if not staged:
        return faults
    if not isinstance(entries, list) or not entries:
        return [*faults, Fault(file, "stages", "is no list of stages", "list one or more")]
    seen, routed = set(_labels(data)), False
    for index, entry in enumerate(entries):
        space = entry.get("space") if isinstance(entry, Mapping) else None
        kind = space.get("kind") if isinstance(space, Mapping) else None
        if routed and isinstance(kind, str) and kind != "routing":
            wrong = "merges models of equal depth, and a stage before may have found another"
            mend = "let stages of kind routing be the last"
            faults.append(Fault(file, f"stages.{index}.space.kind", wrong, mend))
        routed = routed or kind == "routing"
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if isinstance(name, str) and name in seen:
            wrong = f"'{name}' names a model or a stage before"
            faults.append(Fault(file, f"stages.{index}.name", wrong, "rename the stage"))
        seen.add(str(name))
    return faults


def as_campaigns(data: Mapping[str, Any]) -> Iterator[tuple[str, dict]]:
    """Yield the keys' prefix and the mapping of each search in a campaign's mapping, unchecked."""
    entries = data.get("stages")
    if not isinstance(entries, list) or not entries:
        yield "", dict(data)
        return
    before: list[str] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            continue
        own = {key: entry[key] for key in OWN if key in entry}
        rest = {k: v for k, v in data.items() if k != "stages"} | (_FIRST_ONLY if index else {})
        sources = data.get("sources")
        if isinstance(sources, Mapping) and isinstance(sources.get("models"), Mapping):
            models = {**sources["models"], **{name: f"#{name}" for name in before}}
            rest["sources"] = {**sources, "models": models}
        yield f"stages.{index}.", rest | own
        before.append(str(entry.get("name")))


def _labels(data: Mapping[str, Any]) -> list[str]:
    sources = data.get("sources")
    models = sources.get("models") if isinstance(sources, Mapping) else None
    return list(map(str, models)) if isinstance(models, Mapping) else []
