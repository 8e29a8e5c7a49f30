"""mergekit's half of against_mergekit.py, run in mergekit's own environment.

    python mergekit_side.py PLAN.json

For each configuration, times merges in memory as mergekit-evolve's in-memory evaluator does them,
into live parameters, and saves the tensors where that is asked for. Writes the seconds as JSON.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors.torch import save_file


@torch.no_grad()
def merge(
    config: MergeConfiguration,
    architecture: Any,
    options: MergeOptions,
    shape: transformers.PretrainedConfig,
    live: Mapping[str, torch.Tensor],
) -> None:
    """Merge one configuration into live parameters."""
    planner = MergePlanner(config, architecture, options, shape)
    planner._plan()  # as plan_in_memory, whose tasks its own pydantic models refuse in 0.1.5
    names = {task: weight.name for weight, task in planner._tensors}
    executor = Executor(list(names), math_device="cpu", storage_device="cpu")
    for task, tensor in executor.run(quiet=True):
        live[names[task]].copy_(tensor)


def main(plan: Mapping[str, Any]) -> None:
    """Merge all configurations of a plan; see `by_mergekit` in against_mergekit.py."""
    torch.set_num_threads(plan["threads"])
    quickest = {}
    for name, entry in plan["configurations"].items():
        options = MergeOptions(quiet=True, random_seed=0)
        config = MergeConfiguration.model_validate(yaml.safe_load(Path(entry["file"]).read_text()))
        architecture = get_architecture_info(config, options)
        shape = _model_out_config(config, architecture, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
        live = dict(model.named_parameters(remove_duplicate=False))
        seconds = []
        for _ in range(entry["times"] + 1):  # the first opens the sources
            started = time.perf_counter()
            merge(config, architecture, options, shape, live)
            seconds.append(time.perf_counter() - started)
        quickest[name] = min(seconds[1:] or seconds)
        if entry["out"]:
            tied = bool(shape.tie_word_embeddings)
            kept = {n: t for n, t in live.items() if not (tied and n == "lm_head.weight")}
            save_file({n: t.detach().contiguous() for n, t in kept.items()}, entry["out"])
    Path(plan["results"]).write_text(json.dumps(quickest))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
