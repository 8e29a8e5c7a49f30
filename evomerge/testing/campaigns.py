"""A small real campaign for examples and tests: tiny models on disk, a fitness in Python."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.archive.archive import Archive
from evomerge.campaign.build import open_campaign
from evomerge.campaign.campaign import Campaign
from evomerge.campaign.evaluation import Evaluation
from evomerge.campaign.observer import Silent
from evomerge.campaign.resume import begin
from evomerge.campaign.runner import Runner, never
from evomerge.campaign.source_hashes import hash_sources
from evomerge.config.schema import CampaignPlan
from evomerge.config.validate import checked_plan
from evomerge.scoring.outcome import Outcome
from evomerge.testing.tiny import tiny_llama
from evomerge.workers.pool import InlinePool

_FITNESS = '''
def items():
    return [[4 + i % 8, 5 + i % 5, 6] for i in range(50)]


def score(model, tokenizer, items):
    """The mean log-likelihood of a few ids: cheap, and never equal for two models."""
    import torch

    ids = torch.tensor(items)
    logits = model(ids).logits[:, :-1].float().log_softmax(-1)
    return logits.gather(2, ids[:, 1:, None]).mean((1, 2)).tolist()
'''


@functools.cache
def example_folder() -> Path:
    """Return a folder of this process with models `base`, `a` and `b` and a fitness `fit.py`.

    >>> sorted(path.name for path in example_folder().iterdir())[:3]
    ['a', 'b', 'base']
    """
    folder = Path(tempfile.mkdtemp(prefix="evomerge-example-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny_llama(folder / "base", 0)
    tiny_llama(folder / "a", 1, near=folder / "base", spread=0.1)
    tiny_llama(folder / "b", 2, near=folder / "base", spread=0.1)
    (folder / "fit.py").write_text(_FITNESS)
    return folder


def example_mapping(**changes: Any) -> dict[str, Any]:
    """Return a campaign's mapping over the models of `example_folder`.

    >>> example_mapping(seed=3)["seed"]
    3
    """
    folder = example_folder()
    mapping: dict[str, Any] = {
        "name": "example",
        "seed": 7,
        "sources": {
            "base": str(folder / "base"),
            "models": {"a": str(folder / "a"), "b": str(folder / "b")},
        },
        "space": {
            "kind": "parameters",
            "method": "task_arithmetic",
            "layer_groups": 2,
            "axes": {"weight": {"low": 0.0, "high": 1.0}},
        },
        "controller": {"kind": "cmaes", "population": 4},
        "fitness": [{"name": "likely", "function": str(folder / "fit.py")}],
        "budget": {"evaluations": 6},
    }
    return mapping | changes


def example_plan(**changes: Any) -> CampaignPlan:
    """Return the plan of `example_mapping`.

    >>> example_plan(finals=3).finals
    3
    """
    return checked_plan(example_mapping(**changes))


def example_campaign_file(**changes: Any) -> Path:
    """Write `example_mapping` into a folder of its own; return the file.

    >>> example_campaign_file().name
    'campaign.yaml'
    """
    file = Path(tempfile.mkdtemp(dir=example_folder())) / "campaign.yaml"
    file.write_text(yaml.safe_dump(example_mapping(**changes), sort_keys=False))
    return file


def example_campaign(*, hashed: bool = False, **changes: Any) -> Campaign:
    """Return the opened campaign of `example_mapping`.

    Args:
        hashed: with its sources' hashes.
        changes: of the mapping.

    >>> example_campaign().objectives[0].name
    'likely'
    """
    campaign = open_campaign(example_plan(**changes))
    return hash_sources(campaign) if hashed else campaign


def example_archive_of(campaign: Campaign) -> Archive:
    """Return an archive in which a campaign's baselines are scored; their scores are made up.

    >>> len(example_archive_of(example_campaign()).baselines())
    4
    """
    campaign = hash_sources(campaign)
    folder = Path(tempfile.mkdtemp(dir=example_folder()))
    archive = Archive(folder / "archive.db", write=True)
    begin(archive, campaign, folder)
    for number, (label, recipe) in enumerate(campaign.baselines()):
        candidate = archive.add_baseline(recipe.id(campaign.worker.hashes), recipe, label)
        scores = {
            objective.name: np.full(len(campaign.splits[objective.name].search), number, np.float32)
            for objective in campaign.objectives
        }
        archive.record(candidate.id, Outcome("ok", scores=scores), None)
    return archive


def example_evaluation() -> Evaluation:
    """Return the evaluation of a campaign that begins, with a worker in this process.

    >>> example_evaluation().pool.idle
    1
    """
    campaign = example_campaign(hashed=True)
    folder = Path(tempfile.mkdtemp(dir=example_folder()))
    archive = Archive(folder / "archive.db", write=True)
    begin(archive, campaign, folder)
    return Evaluation(campaign, archive, InlinePool(campaign.worker), Silent(), never)


def example_runner() -> Runner:
    """Return a runner of a campaign that begins, with a worker in this process.

    >>> example_runner().stop
    False
    """
    campaign = example_campaign(hashed=True)
    folder = Path(tempfile.mkdtemp(dir=example_folder()))
    archive = Archive(folder / "archive.db", write=True)
    begin(archive, campaign, folder)
    return Runner(campaign, archive, InlinePool(campaign.worker), Silent())
