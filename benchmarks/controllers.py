"""What controllers cost: ask and tell per candidate, and a replay, without any model.

    python benchmarks/controllers.py --candidates 10000 --genes 30 300

Two objectives that pull apart; niches cross individuals and hear 500 item scores a candidate, and
their genes are two, whatever is asked for. A replay makes the same calls on a fresh controller.
"""

import argparse
import os
import time

import numpy as np
from tabulate import tabulate

from evomerge.search.controllers import CONTROLLERS, Told
from evomerge.testing import spheres


def timed(name: str, genes: int, candidates: int) -> tuple[float, float]:
    """Return the seconds of a search and of its replay."""
    cls = CONTROLLERS.get(name)
    genes = 2 if cls.breeds else genes
    rng = np.random.default_rng(0)
    items = (rng.random((256, 500)) < rng.random(500)).astype(np.float32)

    def search(tells: list[Told] | None) -> tuple[list[Told], float]:
        controller = cls(dimension=genes, seed=1, start=np.full(genes, 0.5), objectives=2)
        for candidate in (1, 2, 3):
            row = items[candidate] if cls.reads_items else None
            controller.tell(Told(None, None, 0.0, (0.0, 0.0), 0.0, candidate, row, cls.breeds))
        said, seconds = [], 0.0
        for ordinal in range(candidates):
            started = time.perf_counter()
            ((genome, _),) = controller.ask(1)
            seconds += time.perf_counter() - started
            if tells is None:
                vector = spheres(genome)
                row = items[ordinal % 256] if cls.reads_items else None
                value = float(np.mean(vector))
                told = Told(ordinal, genome, value, vector, 0.0, ordinal + 4, row, cls.breeds)
            else:
                told = tells[ordinal]
                assert np.array_equal(genome, told.genome), "a replay proposes otherwise"
            said.append(told)
            started = time.perf_counter()
            controller.tell(told)
            seconds += time.perf_counter() - started
        return said, seconds

    tells, first = search(None)
    _, again = search(tells)
    return first, again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--genes", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--controllers", nargs="+", default=sorted(CONTROLLERS.all()))
    options = parser.parse_args()
    body = []
    for name in options.controllers:
        breeds = CONTROLLERS.get(name).breeds
        for genes in options.genes[: 1 if breeds else None]:
            first, again = timed(name, genes, options.candidates)
            each = 1000 * first / options.candidates
            body.append([name, "crossings" if breeds else genes, each, again])
            print(*body[-1], flush=True)  # some take hours
    print(f"{os.cpu_count()} cores, {options.candidates} candidates, two objectives")
    headers = ["controller", "genes", "ask and tell (ms each)", "replay (s)"]
    print(tabulate(body, headers=headers, floatfmt=("", "", ".2f", ".1f")))


if __name__ == "__main__":
    main()
