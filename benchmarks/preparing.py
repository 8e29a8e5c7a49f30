"""What it takes to prepare three experts for the methods that transform task vectors first.

    python benchmarks/preparing.py --sizes 25M 135M
    python benchmarks/preparing.py --sizes 25M --methods regmean fisher
    python benchmarks/preparing.py --sizes 135M --device cuda

A base and three experts of random weights in the shape of a Llama. Each method is prepared in a
process and a cache of its own, on one thread, as a worker does it before the first candidate;
methods that read texts read 256 of 64 random tokens of each expert.

Prints the seconds from opened sources to directions on disk, the peak of anonymous memory (RssAnon:
what the page cache does not hold) beyond that of a process that has opened them, and what is kept
on disk. With `--device cuda` the peak is that of the GPU's memory.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import common
import numpy as np
from models import make_expert, make_model, merger_of

from evomerge.environment import cache_folder
from evomerge.kernels.native_library import library
from evomerge.merging.methods import METHODS
from evomerge.testing import recipe_of
from evomerge.testing.tiny import WORDS, tiny_tokenizer

POLL = 0.02  # seconds between looks at the process
HEADERS = ("size", "method", "seconds", "peak (MB)", "on disk (MB)")
MEGABYTE = 1e6


def resident() -> int:
    """Return this process's anonymous resident bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the kernel tells no RssAnon")


class Peak:
    """The highest anonymous memory while it is entered, beyond that at the start."""

    def __enter__(self) -> "Peak":
        self._first = self._highest = resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(POLL):
            self._highest = max(self._highest, resident())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """What it was."""
        return self._highest - self._first


def prepare_one(folder: Path, method: str, device: str) -> None:
    """Prepare a method in this process; print its figures as JSON."""
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401  # before the clock starts

    torch.set_num_threads(1)
    models = [str(folder / f"expert-{number}") for number in range(3)]
    if METHODS.get(method).reads:
        models = [f"{model}?texts={folder}/texts-{n}.txt" for n, model in enumerate(models)]
    merger = merger_of([str(folder / "base"), *models], device)
    merger.prepare([])  # compiles the kernels
    started = time.perf_counter()
    with Peak() as peak:
        merger.prepare([recipe_of(method, models, str(folder / "base"))])
    seconds = time.perf_counter() - started
    highest = peak.bytes if device == "cpu" else torch.cuda.max_memory_allocated()
    print(json.dumps({"seconds": seconds, "peak": highest}))


def kept(cache: Path) -> int:
    """Return the bytes of what a method left in its cache."""
    files = (p for kind in ("prepared", "observed") for p in (cache / "evomerge" / kind).rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def make_sources(folder: Path, size: str) -> None:
    """Write a base, three experts of it and the texts that they read."""
    base = make_model(size, folder / "base")
    tiny_tokenizer().save_pretrained(base)
    for number in range(3):
        tiny_tokenizer().save_pretrained(make_expert(base, folder / f"expert-{number}", number))
        words = np.random.default_rng(number).choice(WORDS[4:], (256, 64))
        (folder / f"texts-{number}.txt").write_text("\n".join(map(" ".join, words)))


def rows_of(size: str, methods: list[str], device: str) -> list[list[object]]:
    """Return a row a method, which is printed as it comes."""
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_sources(folder, size)
        library()  # compiled once, for all caches
        for method in methods:
            cache = folder / f"cache-{method}"
            shutil.copytree(cache_folder("native"), cache / "evomerge" / "native")
            environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--one", str(folder), method]
            command += ["--device", device]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            peak, disk = found["peak"] / MEGABYTE, kept(cache) / MEGABYTE
            rows.append([size, method, found["seconds"], peak, disk])
            print(size, method, *(f"{figure:.2f}" for figure in rows[-1][2:]), flush=True)
    return rows


def main() -> None:
    parser = common.command_line(__doc__)
    every = [name for name, method in METHODS.all().items() if method.prepare]
    parser.add_argument("--sizes", nargs="+", default=["25M", "135M"])
    parser.add_argument("--methods", nargs="+", default=every)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "METHOD"), help="as it calls itself")
    options = common.parsed(parser, sizes=["0.2M"], methods=["regmean"])
    if options.one:
        prepare_one(Path(options.one[0]), options.one[1], options.device)
        return
    rows = [row for size in options.sizes for row in rows_of(size, options.methods, options.device)]
    print()
    print(common.table(list(HEADERS), rows, ("", "", ".1f", ".0f", ".0f")))


if __name__ == "__main__":
    main()
