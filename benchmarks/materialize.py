"""How long a merge takes against the time that its bytes alone would take.

    python benchmarks/materialize.py --model benchmarks/smollm2/models/base --experts 3

Experts are the model plus noise, in bfloat16. The limit is (sources read once + output written
once) / copy bandwidth, both measured in this run, sources in the page cache. `merge` streams into
live tensors; `with checksum` is what a worker does. Tables and masks' tables are made beforehand.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tabulate import tabulate

from evomerge.merge import Checksum, Merger
from evomerge.operators import OPERATORS
from evomerge.sources import digest, open_source
from evomerge.testing import recipe_of


def make_expert(base: Path, folder: Path, seed: int) -> Path:
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        wide = tensor.float()
        noise = torch.randn(wide.shape, generator=generator) * (0.05 * float(wide.std()) + 1e-4)
        tensors[name] = (wide + noise).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def best_of(times: int, work) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def bandwidth() -> float:
    """Bytes a second of a large copy, read and written."""
    source, target = (torch.ones(1 << 29, dtype=torch.uint8) for _ in range(2))
    return 2 * source.numel() / best_of(5, lambda: target.copy_(source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=sorted(OPERATORS.all()))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = [shutil.copytree(options.model, Path(folder) / "base")]
        paths += [
            make_expert(paths[0], Path(folder) / f"expert{i}", i) for i in range(options.experts)
        ]
        opened = {p.name: open_source(str(p)) for p in paths}
        merger = Merger(opened, {n: digest(s).sha256 for n, s in opened.items()})
        live = {n: merger.tensor("base", n).clone() for n in opened["base"].tensors}
        size = sum(t.nbytes for t in live.values())
        speed = bandwidth()
        rows = []
        for method in options.methods:
            recipe = recipe_of(method, [p.name for p in paths[1:]], "base", density=0.5)
            recipe = type(recipe)(**(vars(recipe) | {"dtype": opened["base"].dtype}))

            def merge(recipe=recipe, checksum=None):
                for name, tensor in merger.stream(recipe):
                    if checksum is not None:
                        checksum.update(name, tensor)
                    live[name].copy_(tensor)

            merge()
            limit = (len(recipe.models) + (recipe.base is not None) + 1) * size / speed
            plain = best_of(options.times, merge)
            whole = best_of(options.times, lambda merge=merge: merge(checksum=Checksum()))
            rows.append([method, len(recipe.models), limit, plain, whole, plain / limit])
    print(
        f"{options.threads} threads; {size / 1e6:.0f} MB a model; copy {speed / 1e9:.1f} GB/s"
        " (read + write)"
    )
    headers = ["method", "models", "limit (s)", "merge (s)", "with checksum (s)", "merge / limit"]
    print(tabulate(rows, headers=headers, floatfmt=("", "", ".3f", ".3f", ".3f", ".1f")))


if __name__ == "__main__":
    main()
