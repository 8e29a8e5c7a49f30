"""What controllers cost: ask and tell per candidate, and a replay, without any model.

    python benchmarks/controllers.py --candidates 10000 --genes 30 300

Two objectives that pull apart; niches cross individuals and hear 500 item scores a candidate, and
their genes are two, whatever is asked for. A replay makes the same calls on a fresh controller.

Prints milliseconds of an ask with its tell, and seconds of the whole replay.
"""

import time

import common
import numpy as np

from evomerge.search.controllers import CONTROLLERS, Feedback, Problem, make_controller
from evomerge.sections import parse
from evomerge.testing import spheres

BASELINES = 3  # told before the first ask
ITEMS = 500


class Search:
    """Drives one controller, and remembers what it was told."""

    def __init__(self, name: str, genes: int):
        """
        Args:
            name: of the controller.
            genes: of the box; a controller that crosses individuals has two.
        """
        self._class = CONTROLLERS.get(name)
        self._options = parse(self._class.section, {"kind": name})
        self._genes = 2 if self._class.breeds else genes
        rng = np.random.default_rng(0)
        self._items = (rng.random((256, ITEMS)) < rng.random(ITEMS)).astype(np.float32)
        self._told: list[Feedback] = []

    def run(self, candidates: int) -> float:
        """Ask and tell so often; return the seconds. A second call replays the first."""
        start = np.full(self._genes, 0.5)
        problem = Problem(dimension=self._genes, seed=1, start=start, objectives=2)
        controller = make_controller(problem, self._options)
        for candidate in range(1, 1 + BASELINES):
            controller.tell(self._feedback(candidate, None, None, (0.0, 0.0)))
        seconds = 0.0
        for ordinal in range(candidates):
            started = time.perf_counter()
            proposal = controller.ask(1)[0]
            seconds += time.perf_counter() - started
            if ordinal == len(self._told):
                vector = spheres(proposal.genome)
                candidate = ordinal + 1 + BASELINES
                self._told.append(self._feedback(candidate, ordinal, proposal.genome, vector))
            feedback = self._told[ordinal]
            assert feedback.genome is not None
            assert np.array_equal(proposal.genome, feedback.genome), "a replay proposes otherwise"
            started = time.perf_counter()
            controller.tell(feedback)
            seconds += time.perf_counter() - started
        return seconds

    def _feedback(
        self,
        candidate: int,
        ordinal: int | None,
        genome: np.ndarray | None,
        vector: tuple[float, float],
    ) -> Feedback:
        return Feedback(
            ordinal,
            genome,
            value=float(np.mean(vector)),
            objectives=vector,
            candidate=candidate,
            items=self._items[candidate % 256] if self._class.reads_items else None,
            breeds=self._class.breeds,
        )


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--genes", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--controllers", nargs="+", default=sorted(CONTROLLERS.all()))
    options = common.parsed(parser, candidates=40, genes=[5])
    body = []
    for name in options.controllers:
        breeds = CONTROLLERS.get(name).breeds
        for genes in options.genes[:1] if breeds else options.genes:
            search = Search(name, genes)
            first, replay = search.run(options.candidates), search.run(options.candidates)
            each = 1000 * first / options.candidates
            body.append([name, "crossings" if breeds else genes, each, replay])
            print(*body[-1], flush=True)  # some take hours
    print(f"{common.hardware()}; {options.candidates} candidates, two objectives")
    headers = ["controller", "genes", "ask and tell (ms each)", "replay (s)"]
    print(common.table(headers, body, ("", "", ".2f", ".1f")))


if __name__ == "__main__":
    main()
