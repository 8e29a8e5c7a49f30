"""The campaign: one search of a checked plan, with what it names opened."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evomerge.config.parts import SourcesSection
from evomerge.config.schema import CampaignPlan, Search
from evomerge.environment import provenance
from evomerge.learning.learners import LearnerSection
from evomerge.recipes import soups
from evomerge.recipes.parameters import uniform
from evomerge.recipes.recipe import Recipe
from evomerge.scoring.fitness import Fitness
from evomerge.scoring.items import ItemText, Split
from evomerge.scoring.parts import Parts, make_parts
from evomerge.search.controllers import CONTROLLERS, Controller, Problem, make_controller
from evomerge.search.guards import Guard
from evomerge.search.objectives import Objective
from evomerge.search.spaces import BreedingSpace, SearchSpace
from evomerge.sources.compatibility import mismatches
from evomerge.sources.source import Source
from evomerge.workers.protocol import WorkerPlan

log = logging.getLogger("evomerge")

QUANTIZER = "torchao"  # the library that rounds weights for scoring


class WarmStart(NamedTuple):
    """A candidate of another run, as one of this campaign's space: `label` is RUN#NUMBER.

    Attributes:
        label: RUN#NUMBER.
        recipe: in this space.
        genome: None in a space of individuals.
        checksum: of its weights as that run scored them; "" if it has none.

    >>> WarmStart("runs/first#7", uniform(("a", "b"), "float32"), np.array([0.5])).label
    'runs/first#7'
    """

    label: str
    recipe: Recipe
    genome: np.ndarray | None
    checksum: str = ""


@dataclass(frozen=True)
class Campaign:
    """One search of a checked plan with what it names, opened: all that the loop needs.

    Attributes:
        plan: the campaign file.
        stage: which of the plan's searches this is, from 0.
        listed: the sources of this search: the file's, and what the stages before found.
        space: the search space over the sources.
        objectives: with directions resolved, in the plan's order.
        splits: objective -> ordinals searched and held out.
        sources: name as recipes write it -> opened source.
        fitness: objective -> opened fitness, by which items and scorers are known.
        worker: what workers are started with.
        warnings: for the user, one line each.
        guards: what must not fall, which are no objectives; they have splits and fitnesses.
        warm_starts: what a new campaign scores before its controller is asked.

    >>> from evomerge.testing.campaigns import example_campaign
    >>> campaign = example_campaign()
    >>> [label for label, _ in campaign.baselines()]
    ['base', 'a', 'b', 'uniform']
    """

    plan: CampaignPlan
    stage: int
    listed: SourcesSection
    space: SearchSpace
    objectives: tuple[Objective, ...]
    splits: dict[str, Split]
    sources: dict[str, Source]
    fitness: dict[str, Fitness]
    worker: WorkerPlan
    warnings: tuple[str, ...] = ()
    warm_starts: tuple[WarmStart, ...] = ()
    guards: tuple[Guard, ...] = ()

    @property
    def search(self) -> Search:
        """The space, the controller and the budget of this search."""
        return self.plan.searches[self.stage]

    @property
    def is_last(self) -> bool:
        """Whether no stage comes after it."""
        return self.stage == len(self.plan.searches) - 1

    @property
    def labels(self) -> dict[str, str]:
        """Source name -> label, the base first."""
        return self.listed.labels

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, in their order."""
        return tuple(self.listed.models.values())

    @property
    def soups(self) -> tuple[str, ...]:
        """The soups that are baselines of this search; those of a campaign are of its first."""
        return tuple(self.plan.soups) if self.stage == 0 else ()

    @property
    def learned(self) -> tuple[LearnerSection, ...]:
        """What is learned before this search; that of a campaign is before its first."""
        return tuple(self.plan.learned) if self.stage == 0 else ()

    @property
    def parts(self) -> Parts | None:
        """The parts of the items on which candidates are scored; None: each is scored in full."""
        costs = [objective.name for objective in self.objectives if objective.cost]
        items = {name: len(self.splits[name].search) for name in self.scored}
        return make_parts(self.plan.scoring, items, costs, self.plan.seed, self.stage)

    @property
    def search_items(self) -> int:
        """How many items a candidate is scored on in full, all objectives together."""
        return sum(len(self.splits[name].search) for name in self.scored)

    @property
    def begins_with_seeds(self) -> bool:
        """Whether the space's seeds are scored before the search.

        Individuals are all that it can begin with. Points are tried where that costs few items,
        and where nobody says where the search is to begin.
        """
        if isinstance(self.space, BreedingSpace):
            return True
        plan = self.plan
        is_said = self.stage == 0 and (plan.init or plan.start_from_soup or plan.start_from_learned)
        return self.parts is not None and not is_said

    @property
    def scored(self) -> list[str]:
        """The objectives that have items of their own, and do not measure answers to others."""
        return [name for name in self.splits if not self.fitness[name].follows]

    @property
    def to_fetch(self) -> dict[Path, int]:
        """Files of the sources' weights that are on the hub still, with their bytes."""
        files: dict[Path, int] = {}
        for source in self.sources.values():
            files |= source.to_fetch
        return files

    @property
    def has_average(self) -> bool:
        """Whether the sources can be averaged; those that are routed need not."""
        return not mismatches(list(self.sources.values()))

    def controller(self, start: np.ndarray) -> Controller:
        """Make the search's controller, fresh, to begin at a genome."""
        kind = CONTROLLERS.get(self.search.controller.kind)
        problem = Problem(
            self.space.dimension,
            self.plan.seed,
            start,
            len(self.objectives),
            self.space.levels,
            steps=self.space.steps() if kind.minds_steps else None,
            parts=self.parts.count if self.parts else 1,
            ingredients=self.space.ingredients(),
        )
        return make_controller(problem, self.search.controller)

    def baselines(self) -> list[tuple[str, Recipe]]:
        """Return (label, recipe) of each source, and of the soups that depend on no score."""
        found = [(label, self.space.single(name)) for name, label in self.labels.items()]
        dtype, averaged = self.worker.dtype, self.has_average
        if len(self.models) > 1 and averaged:
            found.append(("uniform", uniform(self.models, dtype)))
        if "model_stock" in self.soups and averaged and self.listed.base:
            soup = soups.model_stock(self.models, self.listed.base, dtype)
            found.append(("model_stock", soup))
        return found

    def items(self) -> Iterator[tuple[str, str, int, str]]:
        """Yield (objective, side, ordinal, hash) of every item that is ever scored."""
        for name, split in self.splits.items():
            for side in ("search", "heldout"):
                for ordinal in split.of(side):
                    yield name, side, ordinal, self.fitness[name].hashes[ordinal]

    def item_texts(self, objective: str) -> Iterator[tuple[int, ItemText]]:
        """Yield ordinal and words of each held-out item of an objective that has any."""
        for ordinal in self.splits[objective].heldout:
            try:
                found = self.fitness[objective].text(ordinal)
            except Exception:  # a stranger's template; without words the scores are as good
                log.exception("%s: item %d cannot be shown", objective, ordinal)
                return
            if found is not None:
                yield ordinal, found

    def genes(self) -> dict[str, Any]:
        """Return the names of the genes, and what their positions mean."""
        return {"genes": self.space.names, "ranges": self.space.ranges}

    def provenance(self) -> dict[str, Any]:
        """Return where everything comes from: versions, hashes, commit, machine."""
        return {
            "objectives": [vars(objective) for objective in self.objectives],
            "guards": [vars(guard) for guard in self.guards],
            **self.genes(),
            "sources": {
                label: {
                    "name": name,
                    "path": self.worker.sources[name],
                    "sha256": self.worker.hashes[name],
                }
                for name, label in self.labels.items()
            },
            "fitness": {name: fitness.definition for name, fitness in self.fitness.items()},
            "seed": self.plan.seed,
            "machine": self.machine(),
        } | self._quantized()

    def _quantized(self) -> dict[str, str]:
        """Return what weights are rounded to for scoring, and by what, if they are."""
        if not self.worker.quantize:
            return {}
        by = QUANTIZER
        with contextlib.suppress(metadata.PackageNotFoundError):  # it is where the workers are
            by += f" {metadata.version(QUANTIZER)}"
        return {"quantized": f"{self.worker.quantize} by {by}"}

    def machine(self) -> dict[str, Any]:
        """Return what this start runs on, with the workers' threads and device."""
        worker = self.worker
        own = {"threads": worker.threads, "device": worker.device, "engine": worker.engine}
        return provenance() | own
