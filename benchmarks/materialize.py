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
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tabulate import tabulate

from evomerge.kernels import native
from evomerge.merging.merger import Merger
from evomerge.merging.methods import OPERATORS
from evomerge.sources.digest import digest
from evomerge.sources.source import Source, open_source
from evomerge.testing import recipe_of

SHAPES = {  # hidden size, layers, heads, key-value heads, width of the MLP, vocabulary
    "25M": (384, 12, 6, 2, 1024, 16384),
    "135M": (576, 30, 9, 3, 1536, 49152),
    "7B": (4096, 32, 32, 8, 14336, 32000),
}
RANK = 8


def make_model(size: str, folder: Path) -> Path:
    """Write a Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, shared, width, vocabulary = SHAPES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        intermediate_size=width,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_expert(base: Path, folder: Path, seed: int) -> Path:
    """Write `base` plus noise of a twentieth of each tensor's deviation."""
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        wide = tensor.float()
        noise = torch.randn(wide.shape, generator=generator) * (0.05 * float(wide.std()) + 1e-4)
        tensors[name] = (wide + noise).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_adapter(base: Path, folder: Path, seed: int) -> tuple[Path, Path]:
    """Write an adapter of all projections in PEFT's format, and the model that it means."""
    adapter, dense = folder / f"adapter{seed}", folder / f"adapted{seed}"
    adapter.mkdir(parents=True)
    dense.mkdir()
    (dense / "config.json").write_bytes((base / "config.json").read_bytes())
    generator, factors = torch.Generator().manual_seed(seed), {}
    tensors = load_file(base / "model.safetensors")
    modules = [n.removesuffix(".weight") for n in tensors if "_proj." in n]
    for name in modules:
        weight = tensors[f"{name}.weight"]
        shapes = {"A": (RANK, weight.shape[1]), "B": (weight.shape[0], RANK)}
        a, b = (0.02 * torch.randn(s, generator=generator) for s in shapes.values())
        tensors[f"{name}.weight"] = (weight.float() + b @ a).to(weight.dtype)
        for letter, factor in (("A", a), ("B", b)):
            factors[f"base_model.model.{name}.lora_{letter}.weight"] = factor.bfloat16()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    config["target_modules"] = sorted({name.rpartition(".")[2] for name in modules})
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file(factors, adapter / "adapter_model.safetensors")
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    return adapter, dense


def best_of(times: int, work) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def bandwidth(device: str = "cpu") -> float:
    """Bytes a second of a large copy, read and written."""
    size = 1 << (29 if device == "cpu" else 32)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * source.numel() / best_of(5, lambda: target.copy_(source))


def adapted(base: Path, count: int, folder: Path, times: int, device: str) -> list[list]:
    """Return the rows of a weighted sum of adapters, and of the models that they mean."""
    pairs = [make_adapter(base, folder, seed) for seed in range(count)]
    rows = []
    named = [f"{base}+{adapter}" for adapter, _ in pairs], [str(dense) for _, dense in pairs]
    for said, names in zip((f"linear, {count} adapters", "linear, made dense"), named, strict=True):
        opened = {name: open_source(name) for name in names}
        merger = Merger(opened, {n: digest(s).sha256 for n, s in opened.items()}, device)
        live = live_tensors(opened[names[0]], device)
        recipe = replace(recipe_of("linear", names, None), dtype="bfloat16")
        first = best_of(1, lambda m=merger, r=recipe, t=live: m.fill(r, t))
        merge = best_of(times, lambda m=merger, r=recipe, t=live: m.fill(r, t))
        rows.append([said, merge, None, None, first, merger.bytes_kept() / 1e6])
    return rows


def live_tensors(source: Source, device: str) -> dict[str, torch.Tensor]:
    """Return what a live model has: a bfloat16 tensor for each of a source's."""
    return {
        name: torch.zeros(t.shape, dtype=torch.bfloat16, device=device)
        for name, t in source.tensors.items()
    }


def rows_of(paths: list[Path], methods: list[str], times: int, device: str) -> list[list]:
    opened = {p.name: open_source(str(p)) for p in paths}
    hashes = {n: digest(s).sha256 for n, s in opened.items()}
    live = live_tensors(opened[paths[0].name], device)
    size, speed, rows = sum(t.nbytes for t in live.values()), bandwidth(device), []
    native.library()
    for method in methods:
        merger = Merger(opened, hashes, device)
        count = OPERATORS.get(method).models or len(paths) - 1
        models = [p.name for p in paths[1 : count + 1]]
        recipe = recipe_of(method, models, paths[0].name, density=0.5)
        recipe = replace(recipe, dtype="bfloat16")
        first = best_of(1, lambda m=merger, r=recipe: m.fill(r, live))
        merge = best_of(times, lambda m=merger, r=recipe: m.fill(r, live))
        moved = (len(recipe.models) + (recipe.base is not None) + 1) * size
        limit, kept = moved / speed, merger.bytes_kept()
        rows.append([method, merge, moved / merge / 1e9, limit / merge, first, kept / 1e6])
    print(f"{torch.get_num_threads()} threads, copy {speed / 1e9:.1f} GB/s, {size / 1e6:.0f} MB")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["25M", "135M"], choices=SHAPES)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=sorted(OPERATORS.all()))
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    options = parser.parse_args()
    headers = ["method", "merge (s)", "GB/s", "of copy's", "first (s)", "kept (MB)"]
    formats = ("", ".4f", ".1f", ".2f", ".2f", ".1f")
    for size in [None] if options.model else options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            base = options.model or make_model(size, Path(folder) / "base")
            paths = [base] + [
                make_expert(base, Path(folder) / f"expert{i}", i) for i in range(options.experts)
            ]
            for threads in options.threads:
                torch.set_num_threads(threads)
                print(f"\n{size or base}: base and {options.experts} experts, ", end="")
                rows = rows_of(paths, options.methods, options.times, options.device)
                with tempfile.TemporaryDirectory() as beside:
                    rows += adapted(
                        base, options.experts, Path(beside), options.times, options.device
                    )
                print(tabulate(rows, headers=headers, floatfmt=formats))


if __name__ == "__main__":
    main()
