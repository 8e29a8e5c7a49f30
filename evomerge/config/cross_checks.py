"""What the parts of a campaign file ask of one another."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evomerge.config.parts import (
    KEPT_LABELS,
    PLAIN_NAME,
    SourcesSection,
    StageSection,
    WorkersSection,
)
from evomerge.errors import Fault, Faults, nearest
from evomerge.learning.learners import LearnerSection
from evomerge.scoring.fitness import FitnessSection
from evomerge.search.controllers import CONTROLLERS, ControllerSection
from evomerge.search.controllers.cmaes import CmaEsSection
from evomerge.search.objectives import parse_bound
from evomerge.search.spaces import SPACES, BreedingSpace, SpaceSection


def stage_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return what a campaign's stages have too much, too little, or twice.

    Args:
        fields: those of a plan that are right by themselves.

    >>> [str(fault) for fault in stage_faults({"stages": [], "space": None})]
    ['space: is missing; write e.g. space: {kind: routing}']
    """
    stages: list[StageSection | None] = fields.get("stages", [])
    examples = {"space": "{kind: routing}", "budget": "{evaluations: 300}"}
    defaults = {"space": None, "budget": None, "controller": CmaEsSection()}
    for key, default in defaults.items():
        given = fields.get(key, default)
        if stages and given != default:
            wrong = "belongs to the stages, where there are some"
            yield Fault(key, wrong, "write it into each stage")
        elif not stages and given is None and key in fields:
            yield Fault(key, "is missing", f"write e.g. {key}: {examples[key]}")
    sources = fields.get("sources")
    names = set(sources.models) if sources else set()
    routed = False
    for index, stage in enumerate(stages):
        if stage is None:
            continue
        if routed and stage.space.kind != "routing":
            wrong = "merges models of equal depth, and a stage before may have found another"
            mend = "let stages of kind routing be the last"
            yield Fault(f"stages.{index}.space.kind", wrong, mend)
        routed = routed or stage.space.kind == "routing"
        if stage.name in names:
            wrong = f"'{stage.name}' names a model or a stage before"
            yield Fault(f"stages.{index}.name", wrong, "rename the stage")
        names.add(stage.name)


def engine_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return what an engine other than transformers cannot do.

    Args:
        fields: those of a plan that are right by themselves.

    >>> list(engine_faults({}))
    []
    """
    workers: WorkersSection | None = fields.get("workers")
    if workers is None:
        return
    yield from _spread_faults(fields, workers)
    if not workers.engine.startswith("vllm"):
        return  # transformers can do all, and `auto` takes it where another cannot
    mend = "write workers.engine: transformers"
    for index, section in enumerate(fields.get("fitness", ())):
        if section is not None and section.needs_model:
            wrong = f"it is given transformers' model, and {workers.engine} has none"
            yield Fault(f"fitness.{index}.{section.key}", wrong, mend)
    for key, space in _spaces(fields).items():
        if space is not None and space.kind in ("routing", "explicit"):
            wrong = f"{workers.engine} takes neither layers of several models nor evolved weights"
            yield Fault(f"{key}.kind", wrong, mend)
    if workers.engine == "vllm-lora" and len(fields.get("stages") or ()) > 1:
        wrong = "later stages merge what earlier ones found, which are whole models"
        yield Fault("stages", f"{wrong}, and vllm-lora takes adapters alone", mend)


def _spread_faults(fields: Mapping[str, Any], workers: WorkersSection) -> Iterable[Fault]:
    """Return what cannot be searched with models that are spread over several GPUs."""
    if workers.gpus_each <= 1:
        return
    for key, space in _spaces(fields).items():
        if space is not None and space.kind in ("routing", "explicit"):
            wrong = "layers of several models and evolved weights lie on one GPU, and no more"
            yield Fault(f"{key}.kind", wrong, "write workers.gpus_each: 1")


def _spaces(fields: Mapping[str, Any]) -> dict[str, SpaceSection | None]:
    """Return the spaces of a plan's searches by their keys."""
    stages = fields.get("stages") or ()
    if not stages:
        return {"space": fields.get("space")}
    return {f"stages.{i}.space": stage.space for i, stage in enumerate(stages) if stage}


def search_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return why spaces, controllers and sources do not go together.

    Args:
        fields: those of a plan that are right by themselves.

    >>> list(search_faults({}))
    []
    """
    sources: SourcesSection | None = fields.get("sources")
    if sources is None:
        return
    labels = list(sources.models)
    objectives = len(fields.get("fitness", ()))
    stages: list[StageSection | None] = fields.get("stages", [])
    if not stages:
        yield from _one_search_faults(
            fields, sources, labels, fields.get("space"), fields.get("controller"), objectives, ""
        )
    for index, stage in enumerate(stages):
        if stage is None:
            continue
        first_only = fields if index == 0 else {}
        yield from _one_search_faults(
            first_only,
            sources,
            labels,
            stage.space,
            stage.controller,
            objectives,
            f"stages.{index}",
        )
        labels.append(stage.name)


def _one_search_faults(
    fields: Mapping[str, Any],
    sources: SourcesSection,
    labels: Sequence[str],
    space: SpaceSection | None,
    controller: ControllerSection | None,
    objectives: int,
    under: str,
) -> Iterable[Fault]:
    """Return what is wrong with one search.

    Args:
        fields: of the campaign, as far as they concern this search.
        sources: of the campaign.
        labels: of the models that this search is over.
        space, controller: its own; None if they are wrong or left out.
        objectives: how many there are.
        under: the key of a stage, "" for a campaign without stages.
    """
    faults = Faults()
    if controller is not None:
        faults.extend(controller.faults(objectives), "controller")
    if space is not None:
        faults.extend(space.faults(labels, sources.base is not None), "space")
        space_class = SPACES.get(space.kind)
        breeds = issubclass(space_class, BreedingSpace)
        if breeds:
            yield from _breeding_faults(fields, sources, space.kind)
        elif not space_class.weighs:
            for key, what in (("start_from_soup", "soup"), ("start_from_learned", "learned merge")):
                if fields.get(key):
                    wrong = f"a {what} is no point of a space of kind {space.kind}"
                    yield Fault(key, wrong, "leave it out")
        if controller is not None and CONTROLLERS.get(controller.kind).breeds != breeds:
            fitting = [n for n, c in CONTROLLERS.all().items() if c.breeds == breeds]
            what = "individuals to be crossed" if breeds else "points of a box"
            wrong = f"{controller.kind} does not search a space of {what}, as {space.kind} is"
            faults.add("controller.kind", wrong, f"write one of {', '.join(fitting)}")
    yield from (fault.under(under) if under else fault for fault in faults.found)


def _breeding_faults(
    fields: Mapping[str, Any], sources: SourcesSection, kind: str
) -> Iterable[Fault]:
    """Return what a space of individuals does not go with."""
    names = [sources.base, *sources.models.values()]
    for number, (label, name) in enumerate(sources.models.items(), start=1):
        if name in names[:number]:
            wrong = "is listed before, and an individual is a mean of different models"
            yield Fault(f"sources.models.{label}", wrong, "leave one of the two out")
            break
    refused = ["start_from_soup", "start_from_learned"]
    for key in refused if kind == "mixture" else ["init", *refused]:
        if fields.get(key):
            wrong = f"a space of individuals, as {kind} is, begins with its models"
            yield Fault(key, wrong, "leave it out")


def learner_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return learned baselines that have no base, or the name of another baseline.

    Args:
        fields: those of a plan that are right by themselves.

    >>> [str(fault) for fault in learner_faults({"learned": [], "start_from_learned": True})]
    ['start_from_learned: nothing is learned; write e.g. learned: [{kind: adamerging}]']
    """
    learned: Sequence[LearnerSection | None] = fields.get("learned", ())
    if fields.get("start_from_learned") and not learned:
        mend = "write e.g. learned: [{kind: adamerging}]"
        yield Fault("start_from_learned", "nothing is learned", mend)
    sources: SourcesSection | None = fields.get("sources")
    if learned and sources and not sources.base:
        yield Fault("learned", "task vectors need a base", "write sources.base")
    taken = {*KEPT_LABELS, *(sources.models if sources else ())}
    taken |= {stage.name for stage in fields.get("stages") or () if stage}
    for index, section in enumerate(learned):
        if section is None:
            continue
        key = f"learned.{index}.{'name' if section.name else 'kind'}"
        if not re.fullmatch(PLAIN_NAME, section.label):
            mend = "use letters, digits, '.', '-' and '_'"
            yield Fault(key, f"'{section.label}' is no plain name", mend)
        elif section.label in taken:
            wrong = f"'{section.label}' is the name of another baseline"
            yield Fault(key, wrong, "write a name of its own: name: ...")
        taken.add(section.label)


def objective_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return objectives of one name, and constraints that name no baseline.

    Args:
        fields: those of a plan that are right by themselves.

    >>> from evomerge.scoring.fitness import CostSection
    >>> twice = [CostSection(name="size", cost="parameters")] * 2
    >>> [fault.key for fault in objective_faults({"fitness": twice})]
    ['fitness.1.name']
    """
    entries: list[tuple[str, FitnessSection | None]] = []
    for where in ("fitness", "guard"):
        listed = fields.get(where) or []
        entries += [(f"{where}.{index}", entry) for index, entry in enumerate(listed)]
    sources: SourcesSection | None = fields.get("sources")
    known = ["baseline", *(sources.models if sources else ())]
    if len(known) > 2:
        known.append("uniform")
    if sources and sources.base:
        known.append("base")
    names: set[str] = set()
    for place, entry in entries:
        if entry is None:
            continue
        if entry.name in names:
            wrong = f"two objectives are called '{entry.name}'"
            yield Fault(f"{place}.name", wrong, "rename one")
        names.add(entry.name)
        against = entry.baseline
        labels = [n for n in known[1:] if n != "uniform" or place.startswith("fitness")]
        if sources and against is not None and against not in labels:
            wrong = f"there is no baseline '{against}'"
            yield Fault(f"{place}.against", wrong, nearest(against, labels))
        sources_there = [n for n in labels if n != "uniform"]
        if sources and entry.expert is not None and entry.expert not in sources_there:
            wrong = f"there is no source '{entry.expert}'"
            yield Fault(f"{place}.{entry.key}", wrong, nearest(entry.expert, sources_there))
        if entry.compared_layers and any(
            s and s.kind == "routing" for s in _spaces(fields).values()
        ):
            wrong = "layers of a routed candidate have no counterparts in the expert"
            yield Fault(f"{place}.measure", wrong, "write measure: logits")
        if entry.constraint is None:
            continue
        key = f"{place}.constraint"
        try:
            baseline = parse_bound(entry.constraint).baseline
        except ValueError as error:
            yield Fault(key, str(error), 'write e.g. ">= 0.4" or ">= base - 0.01"')
            continue
        if sources and baseline is not None and baseline not in known:
            yield Fault(key, f"there is no baseline '{baseline}'", nearest(baseline, known))
