"""mergekit-evolve's half of against_mergekit_evolve.py, run in mergekit-evolve's own environment.

    python mergekit_evolve_side.py PLAN.json

mergekit-evolve as its command line runs it, with what it lacks to run on a CPU and without vLLM: a
GPU, which every worker asks Ray for; lm-eval's module for vLLM, which is an empty one here;
`torch.cpu.empty_cache`; and lm-eval's device. CMA-ES gets the plan's seed, which the command line
cannot give it. Writes how many candidates were scored, the best score that best_config.yaml is of,
and the seconds, as JSON; prints a line a candidate.
"""

import functools
import json
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray


def provide() -> None:
    """Put in place what mergekit-evolve lacks; called in every process."""
    import lm_eval.models
    import torch
    from lm_eval.models.huggingface import HFLM

    module = types.ModuleType("lm_eval.models.vllm_causallms")
    module.VLLM = type("VLLM", (), {})
    sys.modules[module.__name__] = lm_eval.models.vllm_causallms = module
    torch.cpu.empty_cache = lambda: None
    HFLM.__init__ = functools.partialmethod(HFLM.__init__, device="cpu")


def seeded(minimize: Callable, seed: int) -> Callable:
    """Return pycma's `fmin2` with a seed of its own."""

    def fmin2(*args: Any, options: Mapping[str, Any], **others: Any) -> Any:
        return minimize(*args, options={**options, "seed": seed}, **others)

    return fmin2


def main(plan: Mapping[str, Any]) -> None:
    """Search as a plan says; see `searched` in against_mergekit_evolve.py."""
    provide()
    hook = {"worker_process_setup_hook": provide}
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, runtime_env=hook)

    import cma
    from mergekit.evo.strategy import ActorPoolEvaluationStrategy as Strategy
    from mergekit.scripts import evolve

    cma.fmin2 = seeded(cma.fmin2, plan["seed"])
    evaluate = Strategy.evaluate_genotypes
    generations: list[list[float]] = []

    def noted(self: Strategy, genotypes: Sequence[Any]) -> list[dict]:
        results = evaluate(self, genotypes)
        generations.append([result["score"] for result in results])
        for score in generations[-1]:
            print(f"{time.perf_counter() - started:.0f} s: {score:.4f}", flush=True)
        return results

    Strategy.evaluate_genotypes = noted
    started = time.perf_counter()
    evolve.main(plan["arguments"], standalone_mode=False)
    found = {
        "candidates": sum(map(len, generations)),
        # of the mean, which is scored last and by itself, no best_config.yaml is written
        "best": max(max(scores) for scores in generations if len(scores) > 1),
        "seconds": time.perf_counter() - started,
    }
    Path(plan["results"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
