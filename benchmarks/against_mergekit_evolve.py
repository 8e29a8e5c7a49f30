"""mergekit-evolve on the demo's models and search items, its best scored on the held-out items.

    python benchmarks/against_mergekit_evolve.py --seeds 1 2 3

mergekit-evolve 0.1.5 gets an environment of its own, benchmarks/.mergekit/evolve, made at the first
run (its packages are fetched then; a short run fetches nothing, and scores what mergekit-evolve
starts from). It searches the models of search_spaces/crosslingual-maths.yaml by CMA-ES: task
arithmetic, a weight for each model in each third of the layers, the sum of both languages' scores.
Candidates are merged to disk and scored by one worker of one thread. Of a seed it sees the items
that the campaign with this seed searches on; the best_config.yaml that it leaves is merged by
`evomerge merge`, and scored by evomerge on these items and on those that the campaign holds out.

What a search was given and its log are in runs/against_mergekit_evolve/; one that was stopped
begins anew. Rows are appended to benchmarks/against_mergekit_evolve.csv; a row that is there is not
made again.

Prints a row a seed: candidates and items that the search scored, its best one's mean on the search
items and on the held-out ones, and the search's seconds; then means over the seeds.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import transformers
import yaml
from environments import python_of
from rows import Rows, interval_of_mean

from evomerge.campaign.build import open_campaign, read_and_check
from evomerge.campaign.campaign import Campaign
from evomerge.canonical import item_hash
from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.lm_eval_model import LoadedModel

HERE = Path(__file__).parent
CSV = Path(__file__).with_suffix(".csv")
RUNS = Path("runs/against_mergekit_evolve")
CAMPAIGN = Path("search_spaces/crosslingual-maths.yaml")
ENVIRONMENT = HERE / ".mergekit" / "evolve"
PACKAGES = (
    "torch==2.13.0",
    "mergekit[evolve]==0.1.5 transformers==5.24.0 lm_eval==0.4.13 ray==2.60.0 cma==4.5.0",
)
TASKS = ("maths_ja", "maths_fr")
GROUP = 2  # layers; three groups of them, as the campaign's
POPULATION = 12  # as the campaign's
BATCH = 250  # prompts at once, as the campaign's


def opened(seed: int, settings: Sequence[str]) -> Campaign:
    """Return the demo's campaign with a seed, which its split depends on."""
    with common.errors_as_lines(CAMPAIGN):
        return open_campaign(read_and_check(CAMPAIGN, [f"seed={seed}", *settings]))


def tasks(campaign: Campaign) -> list[TaskSection]:
    """Return the campaign's objectives, which are tasks of lm-eval's."""
    return [section for section in campaign.plan.fitness if isinstance(section, TaskSection)]


def write_tasks(campaign: Campaign, folder: Path) -> None:
    """Write the campaign's tasks with no items but those that the search sees."""
    for section in tasks(campaign):
        task = Path(section.task)
        data = task.with_suffix(".jsonl")
        ordinals = campaign.splits[section.name].search
        hashes = campaign.fitness[section.name].hashes
        lines = data.read_text(encoding="utf-8").splitlines()
        assert all(item_hash(json.loads(lines[o])) == hashes[o] for o in ordinals), "other items"
        text = "".join(f"{lines[ordinal]}\n" for ordinal in ordinals)
        (folder / data.name).write_text(text, encoding="utf-8")
        for file in (task, task.with_name("data.py")):
            shutil.copy(file, folder)


def genome(campaign: Campaign) -> dict[str, Any]:
    """Return mergekit-evolve's configuration: one gene a model and a group of layers."""
    paths = {name: str(Path(source.place).resolve()) for name, source in campaign.sources.items()}
    assert campaign.listed.base is not None
    return {
        "genome": {
            "base_model": paths[campaign.listed.base],
            "models": [paths[name] for name in campaign.models],
            "merge_method": "task_arithmetic",
            "layer_granularity": GROUP,
            "allow_negative_weights": True,
            "normalize": False,
        },
        "tasks": [
            {"name": Path(section.task).stem, "weight": 1.0, "metric": f"{section.metric},none"}
            for section in tasks(campaign)
        ],
        "apply_chat_template": False,
        "fewshot_as_multiturn": False,
    }


def searched(python: Path, campaign: Campaign, folder: Path, evaluations: int) -> dict[str, Any]:
    """Let mergekit-evolve search, in its own environment, unless it has done so.

    Args:
        python: that has mergekit-evolve.
        campaign: has the models, the items and the seed.
        folder: of the search; best_config.yaml will be in it.
        evaluations: after so many it ends with the generation.

    Returns:
        What mergekit_evolve_side.py writes.
    """
    results = folder / "results.json"
    if not results.exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tasks").mkdir(parents=True)
        write_tasks(campaign, folder / "tasks")
        (folder / "genome.yaml").write_text(yaml.safe_dump(genome(campaign)))
        arguments = ["genome.yaml", "--storage-path", ".", "--task-search-path", "tasks"]
        arguments += ["--max-fevals", str(evaluations), "--force-population-size", str(POPULATION)]
        arguments += ["--batch-size", str(BATCH), "--num-gpus", "1", "--no-merge-cuda"]
        arguments += ["--no-reshard", "--no-save-final-model"]
        plan = {"seed": campaign.plan.seed, "arguments": arguments, "results": results.name}
        (folder / "plan.json").write_text(json.dumps(plan))
        side = [str(python), str(HERE / "mergekit_evolve_side.py"), "plan.json"]
        settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        settings |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        with open(folder / "log.txt", "w") as log:
            done = subprocess.run(
                side, cwd=folder, env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT
            )
        if done.returncode:
            raise SystemExit(f"mergekit-evolve has failed; see {folder / 'log.txt'}")
    return json.loads(results.read_text())


def start(campaign: Campaign, folder: Path) -> None:
    """Write the best_config.yaml of a search that finds nothing better than where it starts."""
    asked = genome(campaign)["genome"]
    models = asked["models"]
    slices = []
    for first in range(0, campaign.sources[campaign.models[0]].layers, GROUP):
        span = {"layer_range": [first, first + GROUP]}
        weight = {"parameters": {"weight": 1 / len(models)}}
        sources = [{"model": model, **span, **weight} for model in models]
        slices.append({"sources": [*sources, {"model": asked["base_model"], **span}]})
    configuration = {
        "base_model": asked["base_model"],
        "dtype": "bfloat16",
        "merge_method": asked["merge_method"],
        "parameters": {"int8_mask": True, "normalize": asked["normalize"]},
        "slices": slices,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "best_config.yaml").write_text(yaml.safe_dump(configuration))


def scored(campaign: Campaign, folder: Path) -> dict[str, dict[str, float]]:
    """Merge a folder's best_config.yaml and score it; return side -> objective -> mean."""
    best = folder / "best"
    shutil.rmtree(best, ignore_errors=True)
    command = [sys.executable, "-m", "evomerge", "merge", str(folder / "best_config.yaml")]
    subprocess.run([*command, str(best)], check=True, stdout=subprocess.DEVNULL)
    dtype = getattr(torch, campaign.worker.compute_dtype)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(best, dtype=dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(best)
    means: dict[str, dict[str, float]] = {"search": {}, "heldout": {}}
    for name, fitness in campaign.fitness.items():
        split = campaign.splits[name]
        ordinals = sorted((*split.search, *split.heldout))
        fitness.prepare(LoadedModel(model, tokenizer), ordinals)
        for side, of_side in means.items():
            with torch.inference_mode():
                of_side[name] = float(fitness.score(split.of(side)).mean(dtype=np.float64))
    return means


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--evaluations", type=int, default=160, help="the last generation is whole")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="made if need be")
    common.with_out(parser, CSV, RUNS)
    options = common.parsed(parser, seeds=[1], evaluations=0)
    rows = Rows(options.out / CSV.name if options.out else CSV, ("seed", "evaluations"))
    settings = common.fewer_items(CAMPAIGN, 20) if options.short else []
    for seed in options.seeds:
        if rows.has(seed, options.evaluations):
            continue
        campaign = opened(seed, settings)
        folder = (options.out or RUNS) / f"{seed}-{options.evaluations}"
        found: dict[str, Any] = {"candidates": 0, "seconds": 0}
        if options.evaluations:
            python = python_of(options.environment.absolute(), PACKAGES)
            assert python is not None
            found = searched(python, campaign, folder, options.evaluations)
        else:
            start(campaign, folder)
        means = scored(campaign, folder)
        items = sum(len(split.search) for split in campaign.splits.values())
        row: dict[str, object] = {"seed": seed, "evaluations": options.evaluations}
        row |= {"candidates": found["candidates"], "items": found["candidates"] * items}
        row["search"] = round(float(np.mean([*means["search"].values()])), 4)
        row |= {name: round(mean, 4) for name, mean in means["heldout"].items()}
        row["mean"] = round(float(np.mean([*means["heldout"].values()])), 4)
        rows.append(row | {"seconds": round(found["seconds"])})
    print(rows.table({"candidates": "candidates"}, ("search", *TASKS, "mean"), interval_of_mean))


if __name__ == "__main__":
    main()
