"""The campaign: a checked plan, and what it names, opened."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from evomerge.environment import machine
from evomerge.recipes import soups
from evomerge.recipes.parameters import Recipe, single, uniform
from evomerge.scoring.items import Fitness, Split
from evomerge.search.controllers import CONTROLLERS
from evomerge.search.objectives import Objective
from evomerge.sources.compatibility import mismatches
from evomerge.sources.source import Source
from evomerge.workers.protocol import WorkerPlan


class Adopted(NamedTuple):
    """A candidate of another run, as a genome of this campaign's space: `label` is RUN#NUMBER."""

    label: str
    genome: np.ndarray


@dataclass
class Campaign:
    """A checked plan with what it names, opened: all that the loop needs.

    Attributes:
        plan: the campaign file with its defaults written out.
        space: the search space over the sources.
        objectives: with directions resolved, in the plan's order.
        splits: objective -> ordinals searched and held out.
        sources: name as recipes write it -> opened source.
        fitness: objective -> opened fitness, by which items and scorers are known.
        worker: what workers are started with.
        labels: source name -> label.
        warnings: for the user, one line each.
        adopted: what a new campaign scores before its controller is asked.
        stage: which of the plan's stages this is, from 0.
        last: whether none comes after it.
    """

    plan: dict
    space: Any
    objectives: tuple[Objective, ...]
    splits: dict[str, Split]
    sources: dict[str, Source]
    fitness: dict[str, Fitness]
    worker: WorkerPlan
    labels: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    adopted: list[Adopted] = field(default_factory=list)
    stage: int = 0
    last: bool = True

    def controller(self, start: np.ndarray) -> Any:
        """Make the plan's controller, fresh, to begin at a genome."""
        options = {k: v for k, v in self.plan["controller"].items() if k != "kind"}
        cls = CONTROLLERS.get(self.plan["controller"]["kind"])
        if "levels" in inspect.signature(cls.__init__).parameters:
            options["levels"] = self.space.levels
        return cls(
            dimension=self.space.dimension,
            seed=self.plan["seed"],
            start=start,
            objectives=len(self.objectives),
            **options,
        )

    def baselines(self) -> list[tuple[str, Recipe]]:
        """Return (label, recipe) of each source, and of the soups that hang on no score."""
        dtype = self.worker.dtype
        alone = getattr(self.space, "single", lambda name: single(name, dtype))
        found = [(label, alone(name)) for name, label in self.labels.items()]
        if len(self.models) > 1 and self.even:
            found.append(("uniform", uniform(self.models, dtype)))
        if "model_stock" in self.plan["soups"] and self.even:
            base = self.plan["sources"]["base"]
            found.append(("model_stock", soups.model_stock(self.models, base, dtype)))
        return found

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.plan["sources"]["models"].values())

    @property
    def even(self) -> bool:
        """Whether the sources can be averaged; those that are routed need not."""
        return not mismatches(list(self.sources.values()), "")

    def items(self) -> Iterator[tuple[str, str, int, str]]:
        """Yield (objective, split, ordinal, hash) of every item that is ever scored."""
        for name, split in self.splits.items():
            for side in ("search", "heldout"):
                for ordinal in getattr(split, side):
                    yield name, side, ordinal, self.fitness[name].hashes[ordinal]

    def provenance(self) -> dict:
        """Return where everything comes from: versions, hashes, commit, machine."""
        return {
            "objectives": [vars(o) for o in self.objectives],
            "genes": self.space.names,
            "sources": {
                label: {
                    "name": name,
                    "path": self.worker.sources[name],
                    "sha256": self.worker.hashes[name],
                }
                for name, label in self.labels.items()
            },
            "fitness": {name: fitness.definition for name, fitness in self.fitness.items()},
            "seed": self.plan["seed"],
            "machine": self.machine(),
        }

    def machine(self) -> dict:
        """Return what this start runs on, with the workers' threads and device."""
        return machine() | {"threads": self.worker.threads, "device": self.worker.device}
