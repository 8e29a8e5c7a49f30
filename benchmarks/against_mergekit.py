"""The same merges by mergekit and by evomerge: their weights tensor by tensor, and their time.

    python benchmarks/against_mergekit.py --size 25M

mergekit 0.1.5 gets an environment of its own under benchmarks/.mergekit, made at the first run
(its packages are fetched then; a short run fetches nothing). Both merge in memory into a live
bfloat16 model, on all cores, from the same YAML: mergekit as its in-memory evaluator does, evomerge
as a worker does. Weights are compared where no random mask is drawn, over sources in float32, whose
magnitudes do not tie, computed in float32 by both and rounded to bfloat16; `one rounding` is the
share of elements that are neighbours in bfloat16, or no farther apart than float32 rounds numbers
of the sources' size.

Prints a row a method, and how many elements of a routed model differ from mergekit's passthrough of
its exported configuration.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
import yaml
from environments import python_of
from models import (
    SHAPES,
    live_tensors,
    make_expert,
    make_model,
    merger_of,
    seconds_of,
    write_like,
)
from safetensors.torch import load_file

from evomerge.export.model_directory import merge_to
from evomerge.mergekit.reader import from_mergekit
from evomerge.merging.source_weights import SourceWeights
from evomerge.recipes.routing import Hop, RoutingRecipe

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".mergekit"
PACKAGES = ("torch==2.13.0", "mergekit==0.1.5")
WEIGHTS = (0.5, 0.3, 0.4)
DENSITIES = (0.5, 0.6, 0.4)
# method: (models, parameters of each model, parameters of all)
METHODS: dict[str, tuple[int, tuple[str, ...], dict[str, float]]] = {
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


def configuration(method: str, paths: Sequence[Path], dtype: str) -> dict[str, Any]:
    """Return mergekit's YAML of a method over experts of the first path, as data."""
    base, *experts = map(str, paths)
    count, each, shared = METHODS[method]
    values = {"weight": WEIGHTS, "density": DENSITIES}
    entries: list[dict[str, Any]] = []
    for i, expert in enumerate(experts[:count]):
        entry: dict[str, Any] = {"model": expert}
        if each:
            entry["parameters"] = {name: values[name][i] for name in each}
        entries.append(entry)
    config: dict[str, Any] = {"merge_method": method, "models": entries}
    if method == "slerp":
        config["base_model"] = experts[0]
    elif method not in BASELESS:
        config["base_model"] = base
    if shared:
        config["parameters"] = shared
    return config | {"dtype": dtype, "out_dtype": "bfloat16"}


def make_float32(base: Path, folder: Path, seeds: Sequence[int]) -> Path:
    """Write `base` in float32 plus noise of each seed, so that no two magnitudes are equal."""
    tensors = {name: t.float() for name, t in load_file(base / "model.safetensors").items()}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in tensors.items():
            tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    return write_like(base, folder, tensors)


def steps_between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return how many steps between neighbouring bfloat16 numbers two tensors are apart."""

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = x.reshape(-1).view(torch.int16).int()
        return torch.where(bits < 0, -32768 - bits, bits)

    return (ordered(a) - ordered(b)).abs()


class Side:
    """evomerge's half: sources opened once, one live model."""

    def __init__(self, paths: Sequence[Path]):
        names = list(map(str, paths))
        self._merger = merger_of(names)
        self._weights = SourceWeights(self._merger.sources, torch.device("cpu"))
        self._live = live_tensors(self._merger.sources[names[0]])

    def merge(self, config: Mapping[str, Any]) -> None:
        """Merge what a configuration says into the live model."""
        self._merger.fill(from_mergekit(config), self._live)

    def seconds(self, config: Mapping[str, Any], times: int) -> tuple[float, float]:
        """Return the seconds of the first merge, and of the quickest of so many after it."""
        first = seconds_of(partial(self.merge, config))
        recipe = from_mergekit(config)
        return first, seconds_of(lambda: self._merger.fill(recipe, self._live), times)

    def compared(self, other: Mapping[str, torch.Tensor]) -> list[float]:
        """Return the shares of elements that are equal, and that are one rounding apart."""
        equal = near = size = 0
        for name, ours in self._live.items():
            steps = steps_between(ours, other[name])
            apart = (ours.double() - other[name].double()).abs().reshape(-1)
            tensors = [self._weights.tensor(source, name) for source in self._merger.sources]
            largest = max(float(tensor.abs().max()) for tensor in tensors)
            equal += int((steps == 0).sum())
            near += int(((steps <= 1) | (apart <= 2.0**-20 * largest)).sum())
            size += ours.numel()
        return [equal / size, near / size]


def routed(paths: Sequence[Path], layers: int, out: Path) -> Path:
    """Export a path through two models, every third layer twice; return its YAML for mergekit."""
    slots = [(layer % 2, layer) for layer in range(layers) for _ in range(1 + (layer % 3 == 1))]
    slots = [(0, 0), *slots[1:-1], (0, layers - 1)]
    path = tuple(Hop(*slot, 0.9 + 0.02 * (i % 10)) for i, slot in enumerate(slots))
    merge_to(RoutingRecipe(tuple(map(str, paths)), path, 0, "bfloat16"), out)
    return out / "mergekit_config.yml"


def by_mergekit(python: Path, folder: Path, asked: Mapping[str, Any]) -> dict[str, float]:
    """Let mergekit merge, in its own environment; return its seconds by name.

    Args:
        python: that has mergekit.
        folder: for what the two processes write to each other.
        asked: name -> `file` of its YAML, how many `times` it is timed, and `out`, where its
            tensors are kept (or None).
    """
    file, results = folder / "plan.json", folder / "seconds.json"
    plan = {"threads": torch.get_num_threads(), "results": str(results), "configurations": asked}
    file.write_text(json.dumps(plan))
    side = [str(python), str(HERE / "mergekit_side.py"), str(file)]
    subprocess.run(side, check=True, stdout=subprocess.DEVNULL)
    return json.loads(results.read_text())


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--size", default="25M", choices=SHAPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = common.parsed(parser, size="0.2M", times=1, threads=1)
    python = python_of(ENVIRONMENT, PACKAGES, install=not options.short)
    torch.set_num_threads(options.threads)
    layers = SHAPES[options.size].layers
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_model(options.size, folder / "base")
        timed = [base, *(make_expert(base, folder / f"expert{i}", i) for i in range(3))]
        # The experts in float32 have a direction in common, as fine-tunes have.
        exact = [make_float32(base, folder / "exact", [50])]
        exact += [make_float32(base, folder / f"exact{i}", [50, 90, i]) for i in range(3)]
        asked: dict[str, Any] = {}
        for method in options.methods:
            kinds = [("timed", timed, "bfloat16", options.times)]
            if method not in RANDOM:
                kinds.append(("exact", exact, "float32", 0))
            for kind, paths, dtype, times in kinds:
                file = folder / f"{method}-{kind}.yml"
                file.write_text(yaml.safe_dump(configuration(method, paths, dtype)))
                out = str(file.with_suffix(".safetensors")) if kind == "exact" else None
                asked[file.stem] = {"file": str(file), "times": times, "out": out}
        file = routed(exact[1:3], layers, folder / "routed")
        stacked = folder / "routing.safetensors"
        asked["routing"] = {"file": str(file), "times": 0, "out": str(stacked)}
        theirs = by_mergekit(python, folder, asked) if python else {}
        fast, close = Side(timed), Side(exact)
        for method in options.methods:
            first, ours = fast.seconds(configuration(method, timed, "bfloat16"), options.times)
            seconds = theirs.get(f"{method}-timed")
            row = [method, seconds, ours, seconds / ours if seconds else None, first]
            if python and method not in RANDOM:
                close.merge(configuration(method, exact, "float32"))
                row += close.compared(load_file(folder / f"{method}-exact.safetensors"))
            rows.append(row)
        verdict = f"mergekit is not in {ENVIRONMENT}: run this without --short to compare with it"
        if python:
            model, other = load_file(folder / "routed" / "model.safetensors"), load_file(stacked)
            assert model.keys() == other.keys(), "a routed model has other tensors than mergekit's"
            differ = sum(int((steps_between(t, other[n]) > 0).sum()) for n, t in model.items())
            verdict = "a routed model and mergekit's passthrough of its mergekit_config.yml: "
            verdict += f"{differ} of {sum(t.numel() for t in model.values())} elements differ"
    headers = ["method", "mergekit (s)", "evomerge (s)", "ratio", "first (s)"]
    headers += ["equal", "one rounding"]
    formats = ("", ".3f", ".4f", ".0f", ".2f", ".6f", ".8f")
    print(f"{options.size}, 3 experts, {common.hardware()}")
    print(common.table(headers, rows, formats))
    print(verdict)


if __name__ == "__main__":
    main()
