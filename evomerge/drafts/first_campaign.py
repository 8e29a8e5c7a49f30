"""A first campaign, put together of answers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.campaign.build import checked_campaigns
from evomerge.campaign.campaign import Campaign
from evomerge.config.validate import checked_plan
from evomerge.drafts.advice import (
    Models,
    genes_text,
    recommended_controller,
    recommended_method,
    space_of,
)
from evomerge.drafts.campaign_text import Draft
from evomerge.drafts.labels import labels_of, objective_names, plain
from evomerge.errors import BadInput, Fault
from evomerge.sources.source import Source


def gpus() -> int:
    """Return how many GPUs are seen from here.

    >>> gpus() >= 0
    True
    """
    import torch

    return int(torch.cuda.device_count())


@dataclass
class FirstCampaign:
    """What was answered so far.

    Attributes:
        opened: all sources by name, the base among them.
        base: its name; None for none.
        fitness: entries without their names.
        heldout: as a campaign has it.
        front: whether several merges are wanted to choose from.
        method: of merging.
        workers: GPUs to be used, each with a worker; 0 for a worker on the processor.
        name: of the campaign.
        budget: as a campaign has it.

    >>> FirstCampaign({}).merged
    []
    """

    opened: Mapping[str, Source]
    base: str | None = None
    fitness: list[dict[str, Any]] = field(default_factory=list)
    heldout: Any = 0.5
    front: bool = False
    method: str = ""
    workers: int = 0
    name: str = "first"
    budget: dict[str, float] = field(default_factory=dict)

    @property
    def merged(self) -> list[str]:
        """The names of the models that are merged."""
        return [name for name in self.opened if name != self.base]

    @property
    def models(self) -> Models:
        """What advice depends on."""
        layers = min((source.layers for source in self.opened.values()), default=0)
        adapters = all(self.opened[name].adapter for name in self.merged)
        return Models(len(self.merged), self.base is not None, layers, adapters)

    def draft(self) -> Draft:
        """Return the campaign file, with comments that say why it is so."""
        models = self.models
        space = space_of(self.method, models)
        recommended, why = recommended_method(models)
        others = "others: evomerge list methods"
        controller, reason = recommended_controller(len(self.fitness), self.front)
        sources: dict[str, Any] = {"base": self.base} if self.base else {}
        sources["models"] = dict(zip(labels_of(self.merged), self.merged, strict=True))
        names = objective_names(entry.get("task") or entry["function"] for entry in self.fitness)
        fitness = [{"name": name, **entry} for name, entry in zip(names, self.fitness, strict=True)]
        mapping: dict[str, Any] = {
            "name": self.name,
            "seed": 0,
            "sources": sources,
            "space": space,
            "controller": {"kind": controller},
            "fitness": fitness,
            "heldout": self.heldout,
            "budget": self.budget,
        }
        comments = {
            "name": f"the run is runs/{self.name}",
            "seed": "of everything that is drawn",
            "sources": "tables call the models by these labels, which are yours",
            "space.method": f"{why}; {others}" if self.method == recommended else others,
            "space.layer_groups": genes_text(space, models),
            "controller": f"{reason}; others: evomerge list controllers",
            "fitness": "an objective each; weight: 2 counts one twice, items: 400 takes fewer",
            "heldout": "the share of the items that the search never sees; the best is shown on it",
            "budget": "scored items in all; it can be raised, and the same run goes on"
            if "items" in self.budget
            else "of searching, over all starts; it can be raised, and the same run goes on",
        }
        for number, entry in enumerate(self.fitness):
            if "function" in entry:
                comments[f"fitness.{number}"] = "where less is better, add direction: minimize"
        if not isinstance(self.heldout, float):
            comments["heldout"] = "the tasks' own test items; searched are their other items"
        if self.workers:
            mapping["workers"] = {"pool": "ray", "count": self.workers, "gpus_each": 1}
            comments["workers"] = "one for each GPU"
        else:
            frame = next(iter(self.opened.values()))
            if frame.dtype in ("bfloat16", "float16"):
                mapping["compute_dtype"] = "float32"
                comments["compute_dtype"] = f"quicker on most processors than {frame.dtype}"
            mapping["workers"] = {"pool": "inline"}
            comments["workers"] = "one, here; two processes: {pool: ray, count: 2}"
        header = ["Written by `evomerge init`. `evomerge schema` lists every key there is."]
        return Draft(mapping, comments, header)

    def checked(self) -> Campaign:
        """Open the campaign as `evomerge check` does.

        Raises:
            BadInput: with every fault, keys those of the campaign file.
        """
        (campaign,) = checked_campaigns(checked_plan(self.draft().mapping))
        return campaign


def budget_of(answer: str) -> dict[str, float]:
    """Return a budget as people say it: items, or hours with an h behind.

    Raises:
        BadInput: it is neither.

    >>> budget_of("20000"), budget_of("8h"), budget_of("0.5 h")
    ({'items': 20000}, {'hours': 8.0}, {'hours': 0.5})
    """
    text = answer.replace("_", "").replace(",", "").strip().lower()
    try:
        if text.endswith("h"):
            found: dict[str, float] = {"hours": float(text.removesuffix("h"))}
        else:
            found = {"items": int(text)}
    except ValueError:
        found = {}
    if not any(0 < value < float("inf") for value in found.values()):
        mend = "write a number of items, or hours as in 8h"
        raise BadInput(Fault("", f"'{answer}' is no budget", mend))
    return found


def share_of(answer: str) -> float:
    """Return a share of the items.

    Raises:
        BadInput: it is none.

    >>> share_of("0.4"), share_of("40 %")
    (0.4, 0.4)
    """
    text = answer.strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0.0 <= share < 1.0:
        raise BadInput(Fault("", f"'{answer}' is no share", "write e.g. 0.5"))
    return share


def search_items(fitness: Sequence[Mapping[str, Any]], counts: Sequence[int], share: float) -> int:
    """Return how many items a search has where a share of each objective's is held out.

    >>> search_items([{"items": 100}, {}], [400, 300], 0.5)
    200
    """
    taken = [min(e.get("items", n), n) for e, n in zip(fitness, counts, strict=True)]
    return sum(count - round(share * count) for count in taken)


def default_name() -> str:
    """Return a campaign's name for the folder that evomerge is started in.

    >>> bool(default_name())
    True
    """
    return plain(os.path.basename(os.getcwd()) or "first")
