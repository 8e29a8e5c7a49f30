"""How soon each engine answers: SmolLM2-135M, three kinds of question, and the change of weights.

    python benchmarks/smollm2/make.py             # makes the model, once
    make test-vllm                                # makes .venv-vllm, once
    .venv-vllm/bin/python benchmarks/engines.py   # nothing else running
    .venv-vllm/bin/python benchmarks/engines.py --model MODEL --dtypes bfloat16 --device cuda

Asks, of the same model and through the same code as a search does: 200 prompts to be continued
(`lists`: a list of 1 to 24 words is to be said again, so that prompts and answers are short and
long), multiple choice (`tickets`, four choices each), and texts to be read as a whole (`prose`).
transformers gets the best of three batch sizes, found on a quarter of the items. All is asked
twice, and the second time counts: encodings are known then, as they are in a search.

Prints a row an engine and kind: seconds, items a second, and how many items score as by
transformers; then the seconds in which each takes other weights, and what `auto` chooses.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import common
import numpy as np
import torch

from evomerge.engines import ENGINES, Engine, EngineOptions
from evomerge.engines.auto_engine import AutoEngine
from evomerge.merging.merger import Merger
from evomerge.recipes.parameters import single
from evomerge.scoring.fitness import TaskSection
from evomerge.scoring.lm_eval_loading import mute_loggers
from evomerge.scoring.lm_eval_model import answer
from evomerge.scoring.open_fitness import open_fitness
from evomerge.sources.source import open_source
from evomerge.testing import tiny_llama
from evomerge.workers.engine_trial import quickest

SMOLLM2 = Path(__file__).parent / "smollm2"
BATCHES = (16, 40, 100)
WORDS = "river stone cloud apple garden window paper silver north music winter horse bread light"
LISTS = """task: lists
custom_dataset: !function data.load
dataset_kwargs: {file: lists.jsonl}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: TOKENS}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TASKS = {
    "generate_until": ("lists.yaml", "exact_match"),
    "loglikelihood": ("tickets.yaml", "acc"),
    "loglikelihood_rolling": ("prose.yaml", "bits_per_byte"),
}


def write_tasks(folder: Path, items: int, tokens: int) -> None:
    """Write the three tasks and their data, from a seed."""
    for name in ("data.py", "tickets.yaml", "prose.yaml", "tickets.jsonl"):
        shutil.copy(SMOLLM2 / name, folder / name)
    (folder / "lists.yaml").write_text(LISTS.replace("TOKENS", str(tokens)))
    draw, rows = random.Random(7), []
    for _ in range(items):
        words = ", ".join(draw.choices(WORDS.split(), k=draw.randint(1, 24)))
        examples = "".join(
            f"List: {word}\nAgain: {word}\n" for word in draw.sample(WORDS.split(), 2)
        )
        rows.append({"prompt": f"{examples}List: {words}\nAgain:", "answer": f" {words}"})
    (folder / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)))


class Questions:
    """What an engine is asked, by kind.

    Attributes:
        fitness: kind -> task.
        batch: prompts at once, where the engine minds.
    """

    def __init__(self, engine: Engine, folder: Path, items: int, batch: int):
        self.engine, self.items, self.batch = engine, range(items), batch
        self.fitness = {}
        for kind, (task, metric) in TASKS.items():
            section = TaskSection(
                name=kind, task=str(folder / task), metric=metric, items=items, batch_size=batch
            )
            self.fitness[kind] = open_fitness(section)
            self.fitness[kind].prepare(engine, self.items)

    def seconds(self, kind: str, again: bool = True) -> float:
        """Have all of a kind answered; return how long it takes, the second time."""
        lm, requests = self.fitness[kind].questions(self.items)
        with torch.inference_mode():
            return seconds_of(lambda: answer(lm, requests), again)

    def scores(self, kind: str) -> np.ndarray:
        return self.fitness[kind].scores(self.items)


def seconds_of(act: Callable[[], object], again: bool = True) -> float:
    """Return how long something takes, the second time."""
    for _ in range(1 + again):
        began = time.perf_counter()
        act()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return seconds


def best_batches(engine: Engine, folder: Path, items: int) -> dict[str, int]:
    """Return the batch size by which transformers is quickest, for each kind."""
    some = max(4, items // 4)
    found = {
        batch: Questions(engine, folder, some, batch)
        for batch in BATCHES
        if batch <= items or batch == BATCHES[0]
    }
    best = {}
    for kind in TASKS:
        times = {batch: asked.seconds(kind) for batch, asked in found.items()}
        best[kind] = min(times, key=times.__getitem__)
    return best


def compare(model: str, dtype: str, folder: Path, options: argparse.Namespace) -> None:
    """Ask every engine the same; print its rows."""
    source = open_source(model)
    merger = Merger({model: source}, {model: ""}, options.device)
    recipe = single(model, source.dtype)
    rows, seconds, engines, scores = [], {}, {}, {}
    for name in options.engines:
        settings = EngineOptions(dtype, options.device)
        engine = engines[name] = ENGINES.get(name).open(source, settings)
        seconds[name] = {"update": seconds_of(lambda engine=engine: engine.become(merger, recipe))}
        is_plain = name == "transformers"
        batches = dict.fromkeys(TASKS, 64)  # of which vLLM takes no notice
        if is_plain:
            batches = best_batches(engine, folder, options.items)
        for kind in TASKS:
            asked = Questions(engine, folder, options.items, batches[kind])
            took = seconds[name][kind] = asked.seconds(kind)
            scores[name, kind] = asked.scores(kind)
            rows.append(row(dtype, name, kind, batches[kind] if is_plain else "", took, options))
            rows[-1].append(alike(scores[name, kind], scores["transformers", kind]))
    chosen = quickest(seconds)
    if len(engines) > 1 and len(set(chosen.values())) > 1:
        both = AutoEngine(engines, chosen)
        seconds["auto"] = {"update": seconds_of(lambda: both.become(merger, recipe))}
        for kind in TASKS:
            asked = Questions(both, folder, options.items, batches_of_plain(rows, kind))
            took = seconds["auto"][kind] = asked.seconds(kind)
            rows.append(row(dtype, "auto", kind, "", took, options))
            rows[-1].append(alike(asked.scores(kind), scores["transformers", kind]))
    titles = ("dtype", "engine", "kind", "batch", "seconds", "items/s", "as transformers")
    print(common.table(titles, rows, ("", "", "", "", ".2f", ".1f", "")))
    for name, times in seconds.items():
        share = times["update"] / sum(times.values())
        print(f"{dtype}, {name}: other weights in {times['update']:.3f} s, {share:.1%} of all this")
    print(f"{dtype}: auto chooses {chosen}\n", flush=True)
    for engine in engines.values():
        engine.close()


def row(
    dtype: str, name: str, kind: str, batch: object, took: float, options: argparse.Namespace
) -> list[object]:
    return [dtype, name, kind, batch, took, options.items / took]


def alike(scores: np.ndarray, wanted: np.ndarray) -> str:
    same = int(np.isclose(scores, wanted, rtol=1e-2, atol=1e-2).sum())
    return f"{same} of {len(wanted)}"


def batches_of_plain(rows: list[list[object]], kind: str) -> int:
    return next(batch for _, name, of, batch, *_ in rows if (name, of) == ("transformers", kind))


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--model", default=str(SMOLLM2 / "models" / "base"))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--engines", nargs="+", default=["transformers", "vllm"])
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64, help="that an answer may have")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    short = {"model": None, "items": 12, "tokens": 8, "dtypes": ["float32"]}
    options = common.parsed(parser, **short)
    if find_spec("vllm") is None:
        if not options.short:
            raise SystemExit("vLLM is not installed here; see the first lines of --help")
        options.engines = ["transformers"]
    mute_loggers()
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), options.items, options.tokens)
        if options.model is None:
            options.model = str(tiny_llama(Path(folder) / "model", 0, hidden=64))
        for dtype in options.dtypes:
            compare(options.model, dtype, Path(folder), options)


if __name__ == "__main__":
    main()
