"""The campaign file as one typed plan: what is parsed here is what runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from evomerge.config.cross_checks import (
    engine_faults,
    learner_faults,
    objective_faults,
    search_faults,
    stage_faults,
)
from evomerge.config.parts import (
    PLAIN_NAME,
    AnyController,
    AnyLearner,
    AnyScoring,
    AnySpace,
    AnyTracker,
    BudgetSection,
    Soup,
    SourcesSection,
    StageSection,
    WorkersSection,
    any_registered,
)
from evomerge.dtypes import Dtype
from evomerge.errors import Fault, Faults
from evomerge.recipes.soups import SOUPS
from evomerge.scoring.any_fitness import AnyFitness
from evomerge.scoring.fitness import FitnessSection
from evomerge.scoring.guard_section import GuardSection
from evomerge.scoring.items import HeldOut, LastSection, TestSplitSection
from evomerge.scoring.parts import BatchesSection
from evomerge.search.controllers import CONTROLLERS, ControllerSection
from evomerge.search.controllers.cmaes import CmaEsSection
from evomerge.search.spaces import SPACES, SpaceSection
from evomerge.section_types import bare_kind, members_of
from evomerge.sections import Flag, Number, Section, Text, Whole, one_of, option


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
    guard: list[GuardSection] = option(
        "tasks on which no candidate may fall below a source: what must not be forgotten",
        factory=list,
        example=[{"name": "general", "task": "hellaswag", "metric": "acc"}],
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
    learned: list[AnyLearner] = option(
        "merges whose coefficients are learned by gradients, to score before the search",
        factory=list,
        example=[{"kind": "adamerging"}],
    )
    start_from_learned: Flag = option("begin the search at the best of them", False)
    heldout: _HeldOut = option(
        "items that the search never sees: a share, {last: share} in order, or {split: test}",
        0.5,
        example=0.5,
    )
    scoring: AnyScoring = option(
        "on how many of the items candidates are scored: in parts (batches), the most promising in"
        " full, or each in full (full)",
        factory=BatchesSection,
        example="full",
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
    track: list[AnyTracker] = option(
        "where its curves go besides the archive, as names or mappings with options",
        factory=list,
        example=["tensorboard"],
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
    def entries(self) -> list[tuple[str, FitnessSection]]:
        """What is scored, with its key in the file: the fitnesses, then the guards."""
        found = [(s.place or f"fitness.{n}", s) for n, s in enumerate(self.fitness)]
        return [*found, *((f"guard.{n}", section) for n, section in enumerate(self.guard))]

    @property
    def earlier_runs(self) -> list[str]:
        """The runs that `init` names, in their order, each once."""
        return list(dict.fromkeys(entry.rpartition("#")[0] for entry in self.init))

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
        if name is not None and not re.fullmatch(PLAIN_NAME, name):
            mend = "use letters, digits, '.', '-' and '_': it names the folder under runs/"
            faults.add("name", f"'{name}' is no plain name", mend)
        faults.extend(stage_faults(fields))
        faults.extend(search_faults(fields))
        faults.extend(engine_faults(fields))
        faults.extend(objective_faults(fields))
        faults.extend(learner_faults(fields))
        for index, entry in enumerate(fields.get("init", ())):
            run, _, which = (entry or "RUN#best").rpartition("#")
            if not (run and re.fullmatch(r"front|best|\d{1,18}", which)):
                mend = "write RUN#front, RUN#best or RUN#NUMBER"
                faults.add(f"init.{index}", f"'{entry}' names no candidates", mend)
        sources = fields.get("sources")
        if sources and not sources.base and "model_stock" in fields.get("soups", ()):
            faults.add("soups", "model_stock needs a base", "write sources.base")
        return faults.found


def know_what_is_registered() -> None:
    """Let plans have the controllers and spaces that were registered since this was imported.

    Those of the package are known by then; one that a notebook defines comes later.

    >>> know_what_is_registered()
    """
    for name, registry in (("controller", CONTROLLERS), ("space", SPACES)):
        sections = [entry.section for entry in registry.all().values()]
        of_stage, of_plan = StageSection.model_fields[name], CampaignPlan.model_fields[name]
        if sections == list(members_of(of_stage.annotation).values()):
            continue
        union = any_registered(registry)
        of_stage.annotation = bare_kind(union)  # the field itself tells them apart
        of_plan.annotation = union | None if name == "space" else bare_kind(union)
        StageSection.model_rebuild(force=True)
        CampaignPlan.model_rebuild(force=True)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the campaign file, for editors.

    >>> json_schema()["title"]
    'evomerge campaign'
    """
    know_what_is_registered()
    schema = CampaignPlan.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "evomerge campaign",
    }
