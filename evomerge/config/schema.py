"""The campaign file as typed sections: what is parsed here is what runs.

Spaces, controllers and fitnesses are unions of the sections that the packages beside this one
register: a new one is known here as soon as its file is there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union

from pydantic import BeforeValidator, Field

from evomerge.dtypes import Dtype
from evomerge.errors import Fault, Faults, nearest
from evomerge.recipes.soups import SOUPS
from evomerge.scoring.fitness import AnyFitness, FitnessSection
from evomerge.scoring.items import HeldOut, LastSection, TestSplitSection
from evomerge.search.controllers import CONTROLLERS, ControllerSection
from evomerge.search.controllers.cmaes import CmaEsSection
from evomerge.search.objectives import parse_bound
from evomerge.search.spaces import SPACES, BreedingSpace, SpaceSection
from evomerge.sections import Flag, Number, Section, Text, Whole, one_of, option, refuse

# Letters, digits, '.', '-' and '_', a letter or digit first: names of folders and of columns.
_PLAIN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Soup = Literal["model_stock", "metrics", "greedy"]
_BASELINES = ("base", "baseline", "uniform", *SOUPS)  # what models and stages cannot be called

if TYPE_CHECKING:
    AnySpace = SpaceSection
    AnyController = ControllerSection
else:
    _SPACES = tuple(cls.section for cls in SPACES.all().values())
    _CONTROLLERS = tuple(cls.section for cls in CONTROLLERS.all().values())
    AnySpace = Annotated[Union[_SPACES], Field(discriminator="kind")]  # noqa: UP007
    AnyController = Annotated[Union[_CONTROLLERS], Field(discriminator="kind")]  # noqa: UP007


def _model_name(value: Any) -> Any:
    """Write {model, adapter} as `model+adapter` and {factory, ...} as `factory@weights`."""
    if not isinstance(value, Mapping):
        return value
    if "factory" in value:
        return _factory_name(value)
    names = [value.get("model"), value.get("adapter")]
    if len(value) != 2 or not all(isinstance(name, str) and name for name in names):
        wrong = "is no model"
        refuse([Fault("", wrong, "a model with a LoRA adapter is {model: ..., adapter: ...}")])
    return "+".join(map(str, names))


def _factory_name(value: Mapping[str, Any]) -> str:
    factory, seed, weights = (value.get(key) for key in ("factory", "seed", "weights"))
    right = isinstance(factory, str) and ":" in factory
    right = right and set(value) <= {"factory", "seed", "weights"}
    if weights is None:
        right = right and isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    else:
        right = right and seed is None and isinstance(weights, str) and not weights.isdigit()
    if not right:
        mend = "a module is {factory: FILE.py:function, weights: FILE or seed: NUMBER}"
        refuse([Fault("", "is no module", mend)])
    return f"{factory}@{seed if weights is None else weights}"


ModelName = Annotated[Text, BeforeValidator(_model_name)]


class SourcesSection(Section):
    """The models that are merged.

    >>> SourcesSection(models={"ja": "models/ja"}).labels
    {'models/ja': 'ja'}
    """

    base: ModelName | None = option(
        "the common ancestor, where the method merges task vectors: a directory, a hub id with or"
        " without @revision, or an earlier candidate RUN#NUMBER",
        None,
        example="org/base-7b",
    )
    models: dict[Text, ModelName] = option(
        "label -> model, written as `base` is; with a LoRA adapter {model: ..., adapter: ...}, made"
        " by Python {factory: FILE.py:function, weights: FILE or seed: NUMBER}",
        least=1,
        example={"ja": "MODEL", "maths": "MODEL"},
    )
    trust_remote_code: Flag = option("run code that comes with the models", False)

    @property
    def labels(self) -> dict[str, str]:
        """Name -> label, the base first; the first is the frame of every merge."""
        labels = {self.base: "base"} if self.base else {}
        for label, name in self.models.items():
            labels.setdefault(name, label)
        return labels

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        for label in set(_BASELINES) & set(fields.get("models", ())):
            wrong = f"the label '{label}' is kept for a baseline"
            yield Fault(f"models.{label}", wrong, "rename the model")


class BudgetSection(Section):
    """How long the search goes on: until the first of these is spent.

    >>> BudgetSection(evaluations=300).hours is None
    True
    """

    evaluations: Whole = option(
        "proposals of the controller; baselines and finals are extra",
        unit="candidates",
        ge=1,
        example=300,
    )
    hours: Number | None = option("wall time, added up over starts", None, unit="hours", gt=0)


class StageBudgetSection(Section):
    """How long a stage goes on.

    >>> StageBudgetSection(evaluations=100).hours is None
    True
    """

    evaluations: Whole = option(
        "proposals of the stage's controller", unit="candidates", ge=1, example=300
    )
    hours: None = option("stages are counted in evaluations", None)


class WorkersSection(Section):
    """What scores the candidates, and how many at once.

    >>> WorkersSection(pool="ray", count=8, gpus_each=1).device
    'auto'
    """

    pool: Literal["inline", "ray"] = option(
        "inline: one worker in this process; ray: processes of their own, on this machine or on"
        " the cluster that RAY_ADDRESS names",
        "inline",
    )
    count: Whole = option("workers", 1, unit="workers", ge=1)
    gpus_each: Number = option("GPUs that Ray reserves for each worker", 0.0, unit="GPUs", ge=0)
    cpus_each: Number | None = option(
        "CPUs that Ray reserves for each worker; null: as many as threads", None, unit="CPUs", gt=0
    )
    threads: Whole | None = option(
        "torch threads of each worker; null: this machine's cores shared out", None, ge=1
    )
    device: Text = option("auto, cpu, cuda or cuda:NUMBER", "auto")
    timeout: Number | None = option(
        "how long one candidate may take, of a worker in a process of its own",
        None,
        unit="seconds",
        gt=0,
    )

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        device = fields.get("device", "auto")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            mend = "write auto, cpu, cuda or cuda:1"
            yield Fault("device", f"there is no device '{device}'", mend)
        if fields.get("pool") != "inline":
            return
        for key, harmless in (("timeout", None), ("count", 1), ("gpus_each", 0.0)):
            if fields.get(key, harmless) != harmless:
                wrong = f"the inline pool has one worker, in this process, and no {key}"
                yield Fault(key, wrong, "write workers.pool: ray")


class StageSection(Section):
    """One of several searches, each over the best that those before it found as well.

    >>> each = {"kind": "parameters", "method": "linear", "axes": {"weight": {"low": 0, "high": 1}}}
    >>> StageSection(name="first", space=each, budget={"evaluations": 9}).controller.kind
    'cmaes'
    """

    name: Text = option(
        "of the model that the stage finds, among later stages' sources", pattern=_PLAIN
    )
    space: AnySpace = option("what is searched", example={"kind": "routing"})
    controller: AnyController = option("how it is searched", factory=CmaEsSection)
    budget: StageBudgetSection = option("how long", example={"evaluations": 300}, may_change=True)

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        name = fields.get("name")
        if name in _BASELINES:
            yield Fault("name", f"the name '{name}' is kept for a baseline", "rename the stage")


class Search(NamedTuple):
    """One search of a campaign: its only one, or a stage.

    >>> Search("", CmaEsSection(), CmaEsSection(), BudgetSection(evaluations=3)).name
    ''
    """

    name: str
    space: SpaceSection
    controller: ControllerSection
    budget: BudgetSection


def _heldout_kind(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "share"
    return "test" if "split" in value else "last"


if TYPE_CHECKING:
    _HeldOut = HeldOut
else:
    _Share = Annotated[Number, Field(ge=0.0, lt=1.0)]
    _HeldOut = one_of(
        {"share": _Share, "last": LastSection, "test": TestSplitSection}, _heldout_kind
    )


class CampaignPlan(Section):
    """A whole campaign file.

    >>> plan = CampaignPlan(
    ...     name="tiny",
    ...     sources={"models": {"a": "models/a", "b": "models/b"}},
    ...     space={"kind": "routing"},
    ...     fitness=[{"name": "size", "cost": "parameters"}],
    ...     budget={"evaluations": 10},
    ... )
    >>> plan.searches[0].controller.kind
    'cmaes'
    """

    name: Text = option("of the campaign; it names the folder under runs/", example="my-search")
    seed: Whole = option("of everything that is drawn", 0, ge=0, lt=2**63)
    sources: SourcesSection = option(
        "the models", example={"base": "MODEL", "models": {"ja": "MODEL", "maths": "MODEL"}}
    )
    stages: list[StageSection] = option(
        "several searches one after the other, instead of space, controller and budget",
        factory=list,
    )
    space: AnySpace | None = option("what is searched", None, example={"kind": "routing"})
    controller: AnyController = option(
        "how it is searched", factory=CmaEsSection, example={"kind": "cmaes"}
    )
    fitness: list[AnyFitness] = option(
        "what is scored, one objective each",
        least=1,
        example=[{"name": "maths", "task": "gsm8k", "metric": "exact_match"}],
    )
    compute_dtype: Dtype | None = option(
        "of the live model; null: that of the merged weights, which are copied into it", None
    )
    init: list[Text] = option(
        "candidates of other runs to begin with: RUN#front, RUN#best or RUN#NUMBER",
        factory=list,
        example=["runs/NAME#front"],
    )
    soups: list[Soup] = option(
        "averages of the sources to score before the search", factory=list, example=list(SOUPS)
    )
    start_from_soup: Flag = option("begin the search at the best soup", False)
    heldout: _HeldOut = option(
        "items that the search never sees: a share, {last: share} in order, or {split: test}",
        0.5,
        example=0.5,
    )
    budget: BudgetSection | None = option(
        "how long the search goes on", None, example={"evaluations": 300}, may_change=True
    )
    workers: WorkersSection = option(
        "what scores the candidates", factory=WorkersSection, may_change=True
    )
    finals: Whole = option(
        "candidates of the front that are scored on held-out items, besides the baselines and the"
        " best",
        16,
        unit="candidates",
        ge=0,
        may_change=True,
    )
    allow_benchmarks: Flag = option("search on the test split of a public benchmark", False)

    @property
    def searches(self) -> list[Search]:
        """The searches of the campaign in their order: its stages, or the only one."""
        if self.stages:
            return [
                Search(s.name, s.space, s.controller, BudgetSection(**s.budget.model_dump()))
                for s in self.stages
            ]
        if self.space is None or self.budget is None:
            raise ValueError("the plan has neither stages nor a space and a budget")
        return [Search("", self.space, self.controller, self.budget)]

    @property
    def evaluations(self) -> int:
        """Proposals of all searches together."""
        return sum(search.budget.evaluations for search in self.searches)

    @property
    def hours(self) -> float | None:
        """Wall time over all starts, where it is limited."""
        return self.budget.hours if self.budget else None

    @property
    def own_test(self) -> bool:
        """Whether the tasks' own test splits are held out."""
        return isinstance(self.heldout, TestSplitSection)

    def model_names(self, stage: int, found: Sequence[str] = ()) -> SourcesSection:
        """Return the sources of a stage: the campaign's, and what the stages before found.

        Args:
            stage: its number, from 0.
            found: the candidate of each stage before, by name; where there is none yet, the first
                model stands in.
        """
        models = dict(self.sources.models)
        stand_in = next(iter(models.values()))
        for index, before in enumerate(self.stages[:stage]):
            models[before.name] = found[index] if found else stand_in
        return self.sources.model_copy(update={"models": models})

    @classmethod
    def cross_faults(cls, fields: Mapping[str, Any]) -> Iterable[Fault]:
        faults = Faults()
        name = fields.get("name")
        if name is not None and not re.fullmatch(_PLAIN, name):
            mend = "use letters, digits, '.', '-' and '_': it names the folder under runs/"
            faults.add("name", f"'{name}' is no plain name", mend)
        faults.extend(_stage_faults(fields))
        faults.extend(_search_faults(fields))
        faults.extend(_objective_faults(fields))
        for index, entry in enumerate(fields.get("init", ())):
            run, _, which = (entry or "RUN#best").rpartition("#")
            if not (run and re.fullmatch(r"front|best|\d{1,18}", which)):
                mend = "write RUN#front, RUN#best or RUN#NUMBER"
                faults.add(f"init.{index}", f"'{entry}' names no candidates", mend)
        sources = fields.get("sources")
        if sources and not sources.base and "model_stock" in fields.get("soups", ()):
            faults.add("soups", "model_stock needs a base", "write sources.base")
        return faults.found


def _stage_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return what a campaign's stages have too much, too little, or twice."""
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


def _search_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return why spaces, controllers and sources do not go together."""
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
        elif fields.get("start_from_soup") and not space_class.weighs:
            wrong = f"a soup is no point of a space of kind {space.kind}"
            yield Fault("start_from_soup", wrong, "leave it out")
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
    for key in ("init", "start_from_soup"):
        if fields.get(key):
            wrong = f"a space of individuals, as {kind} is, begins with its models"
            yield Fault(key, wrong, "leave it out")


def _objective_faults(fields: Mapping[str, Any]) -> Iterable[Fault]:
    """Return objectives of one name, and constraints that name no baseline."""
    entries: list[FitnessSection | None] = fields.get("fitness", [])
    sources: SourcesSection | None = fields.get("sources")
    known = ["baseline", *(sources.models if sources else ())]
    if len(known) > 2:
        known.append("uniform")
    if sources and sources.base:
        known.append("base")
    names: set[str] = set()
    for index, entry in enumerate(entries):
        if entry is None:
            continue
        if entry.name in names:
            wrong = f"two objectives are called '{entry.name}'"
            yield Fault(f"fitness.{index}.name", wrong, "rename one")
        names.add(entry.name)
        if entry.constraint is None:
            continue
        key = f"fitness.{index}.constraint"
        try:
            baseline = parse_bound(entry.constraint).baseline
        except ValueError as error:
            yield Fault(key, str(error), 'write e.g. ">= 0.4" or ">= base - 0.01"')
            continue
        if sources and baseline is not None and baseline not in known:
            yield Fault(key, f"there is no baseline '{baseline}'", nearest(baseline, known))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the campaign file, for editors.

    >>> json_schema()["title"]
    'evomerge campaign'
    """
    schema = CampaignPlan.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "evomerge campaign",
    }
