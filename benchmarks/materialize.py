"""How long a merge takes against the time that its bytes alone would take.

    python benchmarks/materialize.py --sizes 25M 135M --threads 1 2
    python benchmarks/materialize.py --model benchmarks/smollm2/models/base
    python benchmarks/materialize.py --sizes 25M 135M 7B --device cuda --threads 1

Sources are a Llama of random weights (or a model of yours) and experts that are it plus noise,
in bfloat16, in the page cache. `merge` overwrites a live model in bfloat16, checksum included, as
a worker does for every candidate. The limit is (sources read once + output written once) / the
bandwidth of a copy on as many threads, measured in this run. `first` is the first candidate's,
tables included; `kept` is what is kept in memory from then on, the sources not counted. The last
rows are a weighted sum of LoRA adapters of rank 8, kept as factors, and of the same made dense
models beforehand. On a GPU sources and result live there, and so does the copy.

Prints a table for each size and number of threads.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import common
import torch
from models import (
    SHAPES,
    live_tensors,
    make_expert,
    make_model,
    merger_of,
    seconds_of,
    write_like,
)
from safetensors.torch import load_file, save_file

from evomerge.kernels import native
from evomerge.merging.methods import METHODS
from evomerge.recipes.parameters import uniform
from evomerge.sources.source import open_source
from evomerge.testing import recipe_of

RANK = 8
HEADERS = ("method", "merge (s)", "GB/s", "of copy's", "first (s)", "kept (MB)")
FORMATS = ("", ".4f", ".1f", ".2f", ".2f", ".1f")


def make_adapter(base: Path, folder: Path, seed: int) -> tuple[Path, Path]:
    """Write an adapter of all projections in PEFT's format, and the model that it means."""
    adapter = folder / f"adapter{seed}"
    adapter.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors, factors = load_file(base / "model.safetensors"), {}
    modules = [name.removesuffix(".weight") for name in tensors if "_proj." in name]
    for name in modules:
        weight = tensors[f"{name}.weight"]
        a = 0.02 * torch.randn((RANK, weight.shape[1]), generator=generator)
        b = 0.02 * torch.randn((weight.shape[0], RANK), generator=generator)
        tensors[f"{name}.weight"] = (weight.float() + b @ a).to(weight.dtype)
        factors[f"base_model.model.{name}.lora_A.weight"] = a.bfloat16()
        factors[f"base_model.model.{name}.lora_B.weight"] = b.bfloat16()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    config["target_modules"] = sorted({name.rpartition(".")[2] for name in modules})
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file(factors, adapter / "adapter_model.safetensors")
    return adapter, write_like(base, folder / f"adapted{seed}", tensors)


def bandwidth(device: str = "cpu") -> float:
    """Return the bytes a second of a large copy, read and written."""
    size = 1 << (29 if device == "cpu" else 32)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / seconds_of(lambda: target.copy_(source), 5)


def adapter_rows(base: Path, count: int, folder: Path, times: int, device: str) -> list[list]:
    """Return the rows of a weighted sum of adapters, and of the models that they mean."""
    pairs = [make_adapter(base, folder, seed) for seed in range(count)]
    sums = {
        f"linear, {count} adapters": [f"{base}+{adapter}" for adapter, _ in pairs],
        "linear, made dense": [str(dense) for _, dense in pairs],
    }
    rows = []
    for who, names in sums.items():
        merger = merger_of(names, device)
        live = live_tensors(merger.sources[names[0]], device)
        merge = partial(merger.fill, uniform(tuple(names), "bfloat16"), live)
        first, seconds = seconds_of(merge), seconds_of(merge, times)
        rows.append([who, seconds, None, None, first, merger.bytes_kept() / 1e6])
    return rows


def method_rows(paths: Sequence[Path], methods: list[str], times: int, device: str) -> list[list]:
    """Return a row a method, merging experts of the first path; print the copy's bandwidth."""
    base, *experts = map(str, paths)
    live = live_tensors(open_source(base), device)
    size, speed = sum(t.nbytes for t in live.values()), bandwidth(device)
    native.library()  # compiled beforehand, if it was not yet
    rows = []
    for method in methods:
        merger = merger_of([base, *experts], device)
        models = experts[: METHODS.get(method).models or len(experts)]
        recipe = replace(recipe_of(method, models, base, density=0.5), dtype="bfloat16")
        merge = partial(merger.fill, recipe, live)
        first, seconds = seconds_of(merge), seconds_of(merge, times)
        moved = (len(recipe.sources) + 1) * size  # each source read once, the result written once
        rate, kept = moved / seconds, merger.bytes_kept()
        rows.append([method, seconds, rate / 1e9, rate / speed, first, kept / 1e6])
    print(f"{torch.get_num_threads()} threads, copy {speed / 1e9:.1f} GB/s, {size / 1e6:.0f} MB")
    return rows


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["25M", "135M"], choices=SHAPES)
    parser.add_argument("--experts", type=int, default=3)
    # those of LoRA adapters alone: see lora_methods.py
    whole = sorted(n for n, method in METHODS.all().items() if method.of_weights)
    parser.add_argument("--methods", nargs="+", default=whole)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    options = common.parsed(parser, model=None, sizes=["0.2M"], times=1, threads=[1])
    for size in [""] if options.model else options.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            base = options.model or make_model(size, folder / "base")
            experts = [make_expert(base, folder / f"expert{i}", i) for i in range(options.experts)]
            for threads in options.threads:
                torch.set_num_threads(threads)
                print(f"\n{size or base}: base and {options.experts} experts, ", end="")
                rows = method_rows([base, *experts], options.methods, options.times, options.device)
                with tempfile.TemporaryDirectory() as beside:
                    rows += adapter_rows(
                        base, options.experts, Path(beside), options.times, options.device
                    )
                print(common.table(HEADERS, rows, FORMATS))


if __name__ == "__main__":
    main()
