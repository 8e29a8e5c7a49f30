"""The head of a model card: what the hub reads of it (https://hf.co/docs/hub/model-cards).

It names models by the hub's ids alone, and never a folder of this machine; and it claims nothing
that was not measured: results are those on held-out items.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.archive.reader import ArchiveReader
from evomerge.archive.records import SourceRecord
from evomerge.export.hub_ids import base_id, hub_ids
from evomerge.recipes.recipe import Recipe
from evomerge.sources.own_cards import GENERATION, Inherited
from evomerge.sources.source import is_candidate
from evomerge.text import in_one_line


def card_head(
    recipe: Recipe,
    inherited: Inherited,
    *,
    known: Iterable[SourceRecord] = (),
    as_adapter: bool = False,
    results: Iterable[Mapping[str, Any]] = (),
) -> str:
    """Return the metadata block of a model card, with the empty line after it.

    Args:
        recipe: of the model.
        inherited: from the sources' cards.
        known: the campaign's sources: where they lie, and what candidates of runs among the
            recipe's sources were made of, whose names say nothing to others.
        as_adapter: the directory holds a LoRA adapter; it has one base, and is no merge of it.
        results: see `model_index`.

    >>> from evomerge.recipes.parameters import uniform
    >>> both = uniform(("org/a", "models/of/mine"), "float32")
    >>> print(card_head(both, Inherited({"license": "mit"}, pipeline=GENERATION)))
    ---
    library_name: transformers
    license: mit
    base_model:
    - org/a
    base_model_relation: merge
    pipeline_tag: text-generation
    tags:
    - mergekit
    - merge
    - evomerge
    ---
    <BLANKLINE>
    <BLANKLINE>
    """
    places = {source.name: source.path for source in known}
    sources = list(recipe.sources)
    if any(is_candidate(name) for name in sources):
        sources += places
    ids: list[str] = []
    for name in sources:
        if not is_candidate(name):
            ids += hub_ids(name, places.get(name))
    relation, tags = "merge", ["mergekit", "merge", "evomerge"]
    if as_adapter:
        name = recipe.sources[0]
        ids = [base for base in [base_id(name, places.get(name))] if base]
        relation, tags = "adapter", ["lora", *tags]
    library = "peft" if as_adapter else inherited.library
    head: dict[str, Any] = {"library_name": library} if library else {}
    head |= inherited.license
    if ids:
        head |= {"base_model": list(dict.fromkeys(ids)), "base_model_relation": relation}
    for key, said in (("language", inherited.languages), ("datasets", inherited.datasets)):
        if said:
            head[key] = list(said)
    if inherited.pipeline:
        head["pipeline_tag"] = inherited.pipeline
    head["tags"] = tags
    if listed := list(results):
        head["model-index"] = listed
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"


def model_index(archive: ArchiveReader, candidate: int) -> list[dict[str, Any]]:
    """Return a candidate's held-out scores as the hub's `model-index`; empty without any.

    Scores on search items chose the model, so they are no results.

    Args:
        archive: of the campaign.
        candidate: its number.

    >>> from evomerge.testing.archives import example_archive
    >>> found = model_index(example_archive(), 3)
    >>> [result["metrics"][0]["value"] for result in found[0]["results"]]
    [0.625, 17.0]
    >>> model_index(example_archive(), 1)
    []
    """
    scores = archive.scores(candidate, "heldout")
    entries = {entry.get("name"): entry for entry in archive.campaign["plan"]["fitness"]}
    quantized = f", weights in {archive.quantized}" if archive.quantized else ""
    results = []
    for objective in archive.objectives:
        score = scores.get(objective.name)
        if score is None or not math.isfinite(score.mean):
            continue
        entry = entries.get(objective.name, {})
        name = in_one_line(objective.name)
        metric = in_one_line(entry.get("metric") or name)
        dataset = _task_of(entry) or name
        results.append(
            {
                "task": {"type": GENERATION},
                "dataset": {
                    "type": dataset,
                    "name": name,
                    "split": "heldout",
                    "args": {"items": score.items},
                },
                "metrics": [
                    {
                        "type": metric,
                        "name": f"{metric}, mean of {score.items} held-out items{quantized}",
                        "value": float(score.mean),
                    }
                ],
            }
        )
    if not results:
        return []
    model = f"{in_one_line(archive.campaign['name'])}, candidate {candidate}"
    return [{"name": model, "results": results}]


def _task_of(entry: Mapping[str, Any]) -> str:
    """Return the name of a fitness's task; of one in a file, the file's without its folder."""
    task = entry.get("task")
    if not isinstance(task, str):
        return ""
    file = Path(task)
    return in_one_line(file.stem if file.suffix in (".yaml", ".yml") else file.name)
