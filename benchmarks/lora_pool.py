"""What serving candidates as adapters brings: 8 weighted sums of 4 LoRA adapters, by each engine.

    python benchmarks/smollm2/make.py               # makes the model, once
    make test-vllm                                  # makes .venv-vllm, once
    .venv-vllm/bin/python benchmarks/lora_pool.py   # nothing else running
    .venv-vllm/bin/python benchmarks/lora_pool.py --model MODEL --dtype bfloat16 --device cuda

On a processor vLLM copies an adapter's factors for every token: few items and tokens are enough.
The adapters have random factors in the projections of attention. Every candidate continues the same
prompts. An engine is timed from one candidate's recipe to its scores: transformers and vllm merge
the weights and take them, vllm-lora joins the factors and serves them, candidates one by one or 8
at once. A first candidate, whose prompts are encoded, is not counted.

Prints a row for each: seconds of all candidates, how many times as quick as vllm, and how many
answers are those of transformers.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import common
import torch
from safetensors.torch import save_file

from evomerge.engines import ENGINES, Engine, EngineOptions
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.scoring.fitness import Fitness, TaskSection
from evomerge.scoring.lm_eval_loading import mute_loggers
from evomerge.scoring.open_fitness import open_fitness
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama

SMOLLM2 = Path(__file__).parent / "smollm2"
CANDIDATES = 8
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
WORDS = "river stone cloud apple garden window paper silver north music winter horse bread light"
DATA = """import datasets
from pathlib import Path


def load(**options):
    return {"test": datasets.Dataset.from_json(str(Path(__file__).parent / "prompts.jsonl"))}
"""
TASK = """task: prompts
custom_dataset: !function prompts.load
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{prompt}}"
generation_kwargs: {until: ["\\n\\n"], do_sample: false, max_gen_toks: TOKENS}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def write_task(folder: Path, items: int, tokens: int) -> TaskSection:
    """Write prompts of 4 to 40 words, from a seed, and their task."""
    draw, rows = random.Random(7), []
    for _ in range(items):
        words = draw.choices(WORDS.split(), k=draw.randint(4, 40))
        rows.append({"prompt": " ".join(words)})
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "prompts.py").write_text(DATA)
    (folder / "prompts.yaml").write_text(TASK.replace("TOKENS", str(tokens)))
    return TaskSection(name="said", task=str(folder / "prompts.yaml"), metric="exact_match")


def make_adapter(base: str, folder: Path, rank: int, seed: int) -> str:
    """Write a LoRA adapter of random factors in PEFT's format; return its name as a source."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, tensor in open_source(base).tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith(MODULES):
            outs, ins = tensor.shape
            a = torch.randn((rank, ins), generator=generator) / ins**0.5
            b = torch.randn((outs, rank), generator=generator) * 0.02
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(MODULES)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return f"{base}+{folder}"


def candidates(base: str, models: Sequence[str], dtype: str) -> list[ParametersRecipe]:
    """Return a first candidate and those that are timed."""
    draw, recipes = random.Random(11), []
    for _ in range(1 + CANDIDATES):
        weight = tuple(draw.uniform(0.0, 0.6) for _ in models)
        group = Group(None, None, {"weight": weight})
        recipes.append(
            ParametersRecipe("task_arithmetic", tuple(models), (group,), base, dtype=dtype)
        )
    return recipes


def answers_of(
    engine: Engine, fitness: Fitness, merger: Merger, recipes: Sequence[ParametersRecipe], once: int
) -> tuple[float, list[str]]:
    """Return the seconds in which candidates are scored, so many at once, and their answers."""
    said: list[str] = []
    items = range(len(fitness.hashes))
    began = time.perf_counter()
    for first in range(0, len(recipes), once):
        group = recipes[first : first + once]
        if once > 1:
            engine.expect(merger, group)
        for recipe in group:
            engine.become(merger, recipe)
            with torch.inference_mode():
                fitness.score(items)
            said += fitness.answers(items) or []
    return time.perf_counter() - began, said


def compare(names: Sequence[str], section: TaskSection, options: argparse.Namespace) -> None:
    """Have every engine score the same candidates; print its row."""
    opened = {name: open_source(name) for name in names}
    base, *models = names
    first, *recipes = candidates(base, models, opened[base].dtype)
    merger = Merger(opened, dict.fromkeys(names, ""), options.device)
    sources = tuple(opened.values())
    found: list[tuple[str, int, float, list[str]]] = []
    for name in options.engines:
        settings = EngineOptions(
            options.dtype, options.device, sources=sources, candidates=CANDIDATES
        )
        engine = ENGINES.get(name).open(opened[base], settings)
        fitness = open_fitness(section)
        fitness.prepare(engine, range(len(fitness.hashes)))
        answers_of(engine, fitness, merger, [first], 1)
        for once in (1, CANDIDATES) if engine.serves_adapters else (1,):
            found.append((name, once, *answers_of(engine, fitness, merger, recipes, once)))
        engine.close()
    slowest = next((seconds for name, _, seconds, _ in found if name == "vllm"), found[0][2])
    rows = []
    for name, once, seconds, said in found:
        same = sum(a == b for a, b in zip(said, found[0][3], strict=True))
        rows.append((name, once, seconds, slowest / seconds, f"{same} of {len(said)}"))
    titles = ("engine", "at once", "seconds", "times as quick", f"as {found[0][0]}")
    print(f"{common.hardware()}, {options.device}, {options.dtype}, rank {options.rank} each\n")
    print(common.table(titles, rows, ("", "", ".2f", ".2f", "")))


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--model", default=str(SMOLLM2 / "models" / "base"))
    parser.add_argument("--dtype", default="float32")
    engines = ["transformers", "vllm", "vllm-lora"]
    parser.add_argument("--engines", nargs="+", default=engines, help=f"{engines} by default")
    parser.add_argument("--items", type=int, default=100, help="prompts")
    parser.add_argument("--tokens", type=int, default=32, help="that an answer may have")
    parser.add_argument("--rank", type=int, default=8, help="of each adapter")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = common.parsed(parser, model=None, items=6, tokens=4)
    if find_spec("vllm") is None:
        if not options.short:
            raise SystemExit("vLLM is not installed here; see the first lines of --help")
        options.engines = ["transformers"]
    mute_loggers()
    with tempfile.TemporaryDirectory() as folder:
        section = write_task(Path(folder), options.items, options.tokens)
        base = options.model or str(tiny_llama(Path(folder) / "base", 0, hidden=64))
        names = [base]
        for seed in range(4):
            names.append(make_adapter(base, Path(folder) / f"lora{seed}", options.rank, seed))
        compare(names, section, options)


if __name__ == "__main__":
    main()
