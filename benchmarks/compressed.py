"""What packed signs take on disk and in memory, how quickly they are merged, and what they cost.

    python benchmarks/compressed.py sizes --sizes 135M --experts 40
    python benchmarks/compressed.py sizes --sizes 500M --methods bitdelta --drawn 1 --no-dense
    python benchmarks/compressed.py sizes --device cuda
    python benchmarks/compressed.py scores

`sizes`: a Llama of random bfloat16 weights and experts that are it plus noise are prepared by
compeft and bitdelta: a few experts, of whose files the others are copies. One candidate of each is
merged again and again into a live model, in turn with the same directions written densely and with
a copy of as many bytes as the merge must move. Held is what the resident set grows by when base and
directions are opened and merged (it is mapped files, nearly all of it); on a GPU, what its memory
grows by. A row's `same` says whether it gave the digests of the packed directions' merge by eager
torch on the processor. Rows are appended to benchmarks/compressed.csv.

`scores`: held-out scores, a mean over the tasks of search_spaces/many-experts.yaml, of experts that
are merged whole (task_arithmetic) and compressed: each alone on its base, judged by the task that
it is for, and all with one weight, judged by all tasks. Rows are appended to
benchmarks/compressed_scores.csv.
"""

import argparse
import contextlib
import multiprocessing
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from models import SHAPES, live_tensors, make_model, seconds_of
from rows import Rows

from evomerge.kernels.backends import Kernels
from evomerge.kernels.eager import EagerKernels
from evomerge.kernels.merge_plan import MergePlan, WeightedSums
from evomerge.kernels.signs import Signs
from evomerge.merging.direction_files import DirectionFile, read_directions
from evomerge.merging.methods import METHODS
from evomerge.merging.source_weights import SourceWeights
from evomerge.merging.task_vectors import TaskVectors
from evomerge.sources.source import Source, open_source
from evomerge.testing import recipe_of

CSV = Path(__file__).with_suffix(".csv")
SCORES = Path(__file__).with_name("compressed_scores.csv")
CAMPAIGN = Path("search_spaces/many-experts.yaml")
OWN_TASKS = {"ja": "maths_ja", "fr": "maths_fr", "es": "maths_es", "id": "maths_id"}


class Experts:
    """A base and experts near it, of which each tensor is drawn when it is asked for."""

    def __init__(self, base: Source):
        self._base, self._read = base, SourceWeights({base.name: base}, torch.device("cpu"))
        largest = max(tensor.elements for tensor in base.tensors.values())
        self._pool = torch.randn(largest + (1 << 16), generator=torch.Generator().manual_seed(1))
        self._places = {name: i for i, name in enumerate(base.tensors)}

    def tensor(self, source: str, name: str) -> torch.Tensor:
        """Return a tensor of the base, or of an expert: a number."""
        weight = self._read.tensor(self._base.name, name)
        if source == self._base.name:
            return weight
        start = (int(source) * 7919 + self._places[name] * 104_729) % (1 << 16)
        drawn = self._pool[start : start + weight.numel()].view(weight.shape)
        return (weight.float() + 0.001 * drawn).to(weight.dtype)


def prepare(method: str, base: Source, drawn: int, count: int, folder: Path, dense: bool) -> None:
    """Write directions of experts into FOLDER/packed and, if it is asked for, FOLDER/dense."""
    kinds = ["packed", "dense"] if dense else ["packed"]
    vectors = TaskVectors(base, [str(i) for i in range(drawn)], Experts(base).tensor)
    transform = METHODS.get(method).prepare
    assert transform is not None
    with contextlib.ExitStack() as stack:
        outs: dict[str, list[DirectionFile]] = {}
        for kind in kinds:
            (folder / kind).mkdir(parents=True)
            files = [DirectionFile(folder / kind / str(i), base.tensors) for i in range(drawn)]
            outs[kind] = [stack.enter_context(file) for file in files]
        for name, directions in transform(vectors):
            for i, direction in enumerate(directions):
                outs["packed"][i].add(name, direction)
                if "dense" in outs:
                    is_signs = isinstance(direction, Signs)
                    outs["dense"][i].add(name, direction.dense() if is_signs else direction)
    for kind in kinds:
        for i in range(drawn, count):
            shutil.copyfile(folder / kind / str(i % drawn), folder / kind / str(i))


def held_on(device: str) -> int:
    """Return the bytes of a GPU, or of this process' memory, mapped files included, in use."""
    if device != "cpu":
        return torch.cuda.memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the system does not tell what a process holds")


class Merges:
    """One candidate over the base and the directions of a folder."""

    def __init__(
        self,
        base: Source,
        folder: Path,
        count: int,
        live: Mapping[str, torch.Tensor],
        device: str = "cpu",
    ):
        opened, self._live, self._kernels = {"base": base}, live, Kernels(device)
        for i in range(count):
            held = read_directions(folder / str(i), base.tensors)
            opened[str(i)] = Source(str(i), folder, {}, held.tensors, {}, signs=held.signs)
        reads = dict.fromkeys(base.tensors, tuple(opened))
        operands = SourceWeights(opened, torch.device(device)).operands(reads, keep=False)
        coefficients = np.concatenate([[1.0], np.linspace(-0.3, 1.0, count)])
        sums = WeightedSums(tuple(base.tensors), coefficients)
        self._plan = MergePlan(operands, torch.bfloat16, (sums,))
        self.disk = sum((folder / str(i)).stat().st_size for i in range(count))
        self.moved = self.disk + 2 * sum(tensor.nbytes for tensor in live.values())

    def merge(self) -> dict[str, np.ndarray]:
        """Overwrite the live tensors; return their digests."""
        return self._kernels.merge(self._plan, self._live)

    def merge_by_eager_torch(self) -> dict[str, np.ndarray]:
        """Merge by torch's operations, one after the other; return the digests."""
        return EagerKernels().merge(self._plan, self._live)


def measured(
    folder: Path, count: int, times: int, threads: int, device: str
) -> list[dict[str, Any]]:
    """Return a row for each folder of directions, merged in turn."""
    torch.set_num_threads(threads)
    base = open_source(str(folder / "base"))
    live = live_tensors(base, device)
    kinds = [path for path in (folder / "packed", folder / "dense") if path.exists()]
    source, target = (torch.ones(1 << 27, dtype=torch.uint8, device=device) for _ in range(2))
    copy = partial(target.copy_, source)
    rows, merges, digests = [], [], []
    for kind in kinds:
        before = held_on(device)
        one = Merges(base, kind, count, live, device)
        digests.append(one.merge())
        merges.append(one)
        held = held_on(device) - before
        rows.append({"form": kind.name, "disk_mb": one.disk / 1e6, "held_mb": held / 1e6})
    wanted = Merges(base, kinds[0], count, live_tensors(base)).merge_by_eager_torch()
    times_of: list[list[float]] = [[] for _ in kinds]
    copies = []
    for _ in range(times):
        for seconds, one in zip(times_of, merges, strict=True):
            seconds.append(seconds_of(one.merge))
        copies.append(seconds_of(copy, 3) / (2 * (1 << 27)))
    for row, seconds, one, made in zip(rows, times_of, merges, digests, strict=True):
        row["merge_s"] = statistics.median(seconds)
        of_copy = [s / (one.moved * c) for s, c in zip(seconds, copies, strict=True)]
        row["of_copy"] = statistics.median(of_copy)  # times as long as to copy what it moves
        of_dense = [s / d for s, d in zip(seconds, times_of[-1], strict=True)]
        row["of_dense"] = statistics.median(of_dense) if "dense" in kinds[-1].name else ""
        row["same"] = all(np.array_equal(made[name], wanted[name]) for name in base.tensors)
    return rows


def sizes(options: argparse.Namespace, rows: Rows) -> None:
    """Print and keep what the directions of each size and method take."""
    context = multiprocessing.get_context("spawn")  # a process that holds nothing else yet
    place = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    for size in options.sizes:
        for method in options.methods:
            with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
                folder = Path(temporary)
                base = open_source(str(make_model(size, folder / "base")))
                drawn = min(options.drawn, options.experts)
                prepare(method, base, drawn, options.experts, folder, options.dense)
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    work = (
                        measured,
                        folder,
                        options.experts,
                        options.times,
                        options.threads,
                        options.device,
                    )
                    found = pool.submit(*work).result()
            of_size = {"size": size, "experts": options.experts, "method": method}
            for row in found:
                rounded = {k: round(v, 4) if type(v) is float else v for k, v in row.items()}
                rows.append({**of_size, "threads": options.threads, **rounded, "device": place})


def scores(options: argparse.Namespace, rows: Rows) -> None:
    """Print and keep the held-out scores of experts, whole and compressed."""
    from evomerge.campaign.build import checked
    from evomerge.campaign.source_hashes import hash_sources
    from evomerge.workers.protocol import Job
    from evomerge.workers.worker import Worker

    settings = ["workers={pool: inline, threads: 1, device: cpu}"]
    settings += common.fewer_items(CAMPAIGN, options.fewer) if options.fewer else []
    campaign = hash_sources(checked(CAMPAIGN, settings)[0], {})
    worker, models, base = Worker(campaign.worker), campaign.models, str(campaign.listed.base)
    shares = [{"kept": share} for share in options.kept]
    forms = [("task_arithmetic", {}), *[("compeft", s) for s in shares], ("bitdelta", {})]
    labels = list(campaign.listed.models)
    merges = [(own, tuple(float(label == own) for label in labels)) for own in OWN_TASKS]
    merges += [("all", (weight,) * len(models)) for weight in options.weights]
    for method, own in forms:
        for who, weight in merges:
            recipe = recipe_of(method, models, base, options=own, weight=weight)
            recipe = replace(recipe, dtype=campaign.worker.dtype)
            means = worker.evaluate(Job(1, recipe, "heldout")).means
            if means is None:
                raise SystemExit(f"{method}: a merge cannot be scored")
            score = means[OWN_TASKS[who]] if who in OWN_TASKS else np.mean([*means.values()])
            row = {"method": method, "kept": own.get("kept", ""), "experts": who}
            rows.append({**row, "weight": max(weight), "score": round(float(score), 4)})


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("what", choices=["sizes", "scores"])
    parser.add_argument("--sizes", nargs="+", default=["135M"], choices=SHAPES)
    signed = sorted(name for name, method in METHODS.all().items() if method.signs)
    parser.add_argument("--methods", nargs="+", default=signed, choices=signed)
    parser.add_argument("--experts", type=int, default=40)
    parser.add_argument("--drawn", type=int, default=4, help="those that are not copies of others")
    parser.add_argument("--no-dense", dest="dense", action="store_false")
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--folder", type=Path, help="where directions are written, then deleted")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.05, 0.2, 0.5])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.125, 0.3, 1.0])
    parser.add_argument("--fewer", type=int, help="items of each objective, held-out ones included")
    parser.add_argument("--out", type=Path, help="folder of the rows; benchmarks/ by default")
    short = {
        "sizes": ["0.2M"],
        "methods": ["compeft"],
        "experts": 5,
        "drawn": 2,
        "times": 1,
        "kept": [0.2],
        "weights": [0.3],
    }
    options = common.parsed(parser, **short, fewer=10)
    csv = CSV if options.what == "sizes" else SCORES
    rows = Rows(options.out / csv.name if options.out else csv, ())
    (sizes if options.what == "sizes" else scores)(options, rows)


if __name__ == "__main__":
    main()
