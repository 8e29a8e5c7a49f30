"""The same merges by mergekit and by evomerge: their weights tensor by tensor, and their time.

    python benchmarks/against_mergekit.py --size 25M

mergekit 0.1.5 gets an environment of its own under benchmarks/.mergekit, made at the first run
(its packages are fetched then). Both merge in memory into a live bfloat16 model, on all cores,
from the same YAML: mergekit as its in-memory evaluator does, evomerge as a worker does. Weights
are compared where no random mask is drawn, over sources in float32, whose magnitudes do not tie,
computed in float32 by both and rounded to bfloat16; `one rounding` is the share of elements that
are neighbours in bfloat16, or no farther apart than float32 rounds numbers of the sources' size.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from materialize import SHAPES, best_of, make_expert, make_model
from safetensors.torch import load_file, save_file
from tabulate import tabulate

from evomerge.export.model_directory import merge_to
from evomerge.mergekit.reader import from_mergekit
from evomerge.merging.merger import Merger
from evomerge.merging.source_weights import Weights
from evomerge.recipes.routing import Hop, Routing
from evomerge.sources.digest import digest
from evomerge.sources.source import open_source

HERE = Path(__file__).parent
PACKAGES = ["torch==2.13.0", "mergekit==0.1.5"]
WEIGHTS = [0.5, 0.3, 0.4]
# method: (models, parameters of each model, parameters of all)
METHODS = {
    "linear": (3, ("weight",), {}),
    "task_arithmetic": (3, ("weight",), {}),
    "slerp": (2, (), {"t": 0.3}),
    "nuslerp": (2, ("weight",), {}),
    "multislerp": (3, ("weight",), {}),
    "karcher": (3, (), {}),
    "model_stock": (3, (), {}),
    "ties": (3, ("weight", "density"), {}),
    "breadcrumbs": (3, ("weight", "density"), {"gamma": 0.01}),
    "breadcrumbs_ties": (3, ("weight", "density"), {"gamma": 0.01}),
    "sce": (3, (), {"select_topk": 0.6}),
    "dare_linear": (3, ("weight", "density"), {}),
    "dare_ties": (3, ("weight", "density"), {}),
    "della": (3, ("weight", "density"), {"epsilon": 0.1}),
}
RANDOM = ("dare_linear", "dare_ties", "della")
BASELESS = ("linear", "nuslerp", "multislerp", "karcher")


def configuration(method: str, base: Path, experts: list[Path], dtype: str) -> dict:
    count, each, shared = METHODS[method]
    values = {"weight": WEIGHTS, "density": [0.5, 0.6, 0.4]}
    entries = []
    for i, expert in enumerate(experts[:count]):
        own = {name: values[name][i] for name in each}
        entries.append({"model": str(expert)} | ({"parameters": own} if own else {}))
    config: dict = {"merge_method": method, "models": entries}
    if method == "slerp":
        config["base_model"] = str(experts[0])
    elif method not in BASELESS:
        config["base_model"] = str(base)
    if shared:
        config["parameters"] = shared
    return config | {"dtype": dtype, "out_dtype": "bfloat16"}


def environment() -> Path:
    """Return the python that has mergekit, installing it at the first time."""
    folder = HERE / ".mergekit"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for package in PACKAGES:
            subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)
        (folder / "installed").touch()
    return python


def make_float32(base: Path, folder: Path, seeds: list[int]) -> Path:
    """Write `base` in float32 plus noise of each seed, so that no two magnitudes are equal."""
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    tensors = {n: t.float() for n, t in load_file(base / "model.safetensors").items()}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in tensors.items():
            tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def ulps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance of bfloat16 numbers, in steps between neighbours."""

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.reshape(-1).view(torch.int16).int()
        return torch.where(bits < 0, -32768 - bits, bits)

    return (ordered(a) - ordered(b)).abs()


class Side:
    """evomerge's half: sources opened once, one live model."""

    def __init__(self, paths: list[Path]):
        opened = {str(p): open_source(str(p)) for p in paths}
        self.merger = Merger(opened, {n: digest(s).sha256 for n, s in opened.items()})
        self._weights = Weights(opened, torch.device("cpu"))
        self.live = {
            name: torch.zeros(t.shape, dtype=torch.bfloat16)
            for name, t in opened[str(paths[0])].tensors.items()
        }

    def compared(self, other: dict[str, torch.Tensor]) -> list[float]:
        """Return the shares of elements that are equal, and that are one rounding apart."""
        equal = near = size = 0
        for name, ours in self.live.items():
            steps, apart = ulps(ours, other[name]), (ours.double() - other[name].double()).abs()
            largest = max(
                float(self._weights.tensor(s, name).abs().max()) for s in self.merger.sources
            )
            equal += int((steps == 0).sum())
            near += int(((steps <= 1) | (apart.reshape(-1) <= 2.0**-20 * largest)).sum())
            size += ours.numel()
        return [equal / size, near / size]


def routed(paths: list[Path], layers: int, out: Path) -> Path:
    """Export a path through two models, every third layer twice; return its YAML for mergekit."""
    hops = [(layer % 2, layer) for layer in range(layers) for _ in range(1 + (layer % 3 == 1))]
    ends = [(0, 0), *hops[1:-1], (0, layers - 1)]
    path = tuple(Hop(*slot, 0.9 + 0.02 * (i % 10)) for i, slot in enumerate(ends))
    merge_to(Routing(tuple(map(str, paths)), path, 0, "bfloat16"), out)
    return out / "mergekit_config.yml"


def _split(paths: list[Path]) -> tuple[Path, list[Path]]:
    return paths[0], paths[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="25M", choices=SHAPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    python, threads = environment(), os.cpu_count()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_model(options.size, folder / "base")
        experts = [make_expert(base, folder / f"expert{i}", i) for i in range(3)]
        plan = {"threads": threads, "found": str(folder / "found.json"), "configurations": {}}
        exact = [make_float32(base, folder / "exact", [50])]  # experts share a direction
        exact += [make_float32(base, folder / f"exact{i}", [50, 90, i]) for i in range(3)]
        for method in options.methods:
            for kind, paths in (("timed", [base, *experts]), ("exact", exact)):
                if kind == "exact" and method in RANDOM:
                    continue
                dtype = "bfloat16" if kind == "timed" else "float32"
                file = folder / f"{method}-{kind}.yml"
                file.write_text(yaml.safe_dump(configuration(method, *_split(paths), dtype)))
                out = str(file.with_suffix(".safetensors")) if kind == "exact" else None
                times = options.times if kind == "timed" else 0
                plan["configurations"][file.stem] = {"file": str(file), "times": times, "out": out}
        file = routed(exact[1:3], SHAPES[options.size][1], folder / "routed")
        out = folder / "routing.safetensors"
        plan["configurations"]["routing"] = {"file": str(file), "times": 0, "out": str(out)}
        (folder / "plan.json").write_text(json.dumps(plan))
        side = [str(python), str(HERE / "mergekit_side.py"), str(folder / "plan.json")]
        subprocess.run(side, check=True, stdout=subprocess.DEVNULL)
        theirs = json.loads((folder / "found.json").read_text())
        timed, close = Side([base, *experts]), Side(exact)
        rows = []
        for method in options.methods:
            config = yaml.safe_load((folder / f"{method}-timed.yml").read_text())
            started = time.perf_counter()
            recipe = from_mergekit(config, method)
            timed.merger.fill(recipe, timed.live)
            first = time.perf_counter() - started
            ours = best_of(options.times, lambda r=recipe: timed.merger.fill(r, timed.live))
            seconds = theirs[f"{method}-timed"]
            row = [method, seconds, ours, seconds / ours, first]
            if method not in RANDOM:
                config = yaml.safe_load((folder / f"{method}-exact.yml").read_text())
                close.merger.fill(from_mergekit(config, method), close.live)
                row += close.compared(load_file(folder / f"{method}-exact.safetensors"))
            rows.append(row)
        ours, other = load_file(folder / "routed" / "model.safetensors"), load_file(out)
        assert ours.keys() == other.keys(), "a routed model has other tensors than mergekit's"
        differ = sum(int((ulps(tensor, other[name]) > 0).sum()) for name, tensor in ours.items())
        stacked = f"{differ} of {sum(t.numel() for t in ours.values())} elements differ"
    headers = ["method", "mergekit (s)", "evomerge (s)", "ratio", "first (s)"]
    headers += ["equal", "one rounding"]
    formats = ("", ".3f", ".4f", ".0f", ".2f", ".6f", ".8f")
    print(f"{options.size}, 3 experts, {threads} threads")
    print(tabulate(rows, headers=headers, floatfmt=formats))
    print(f"a routed model and mergekit's passthrough of its mergekit_config.yml: {stacked}")


if __name__ == "__main__":
    main()
