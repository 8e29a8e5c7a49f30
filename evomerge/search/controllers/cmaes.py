"""CMA-ES (Hansen 2016, arXiv:1604.00772) by pycma, asked and told one candidate at a time.

pycma samples and updates; the rest is ours, because pycma takes NaN, half a population and
ties without a word: failures rank last, ties are broken by our own generator, a generation
without any difference teaches nothing and widens the step, and restarts double the
population (IPOP, Auger & Hansen 2005).
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from evomerge.search.controllers import Proposal, Told, controller

_FLAT_GENERATIONS = 10  # in a row, after which the search starts anew elsewhere

_WIDEN = 1.3  # factor on sigma after a flat generation

_MARGIN = 0.3  # of a level's share of the box: the least deviation of a gene that has levels

_SMALLEST_STEP = 1e-5  # of the box; below it, bf16 weights hardly change

_ROUNDED = 1e-6  # more than genomes are rounded by

_DIAGONAL_FROM = 100  # genes from which only the diagonal is adapted (Ros & Hansen 2008)


@controller("cmaes")
class CmaEs:
    """CMA-ES on [0, 1]^d without a generation barrier.

    Points are handed out as long as they are asked for; whenever `population` outcomes of
    the present start have come, whatever their order, the distribution is updated. Points
    sampled before the latest update count too; pycma shortens the steps of those that are
    unlikely under it.

    Attributes:
        runs: how often the search has begun anew.
    """

    def __init__(
        self,
        *,
        dimension: int,
        seed: int,
        start: np.ndarray,
        objectives: int = 1,
        levels: Sequence[int] = (),
        population: int | None = None,
        sigma: float = 0.2,
        restarts: int = 9,
        diagonal: bool | None = None,
    ):
        """
        Args:
            dimension: genes.
            seed: of everything drawn here.
            start: (dimension,) the first mean.
            objectives: how many there are; their weighted mean is searched.
            levels: how many values each gene has, 0 for one that is continuous. The others keep a
                step wide enough to reach a neighbouring value (the margin of Hamano et al. 2022,
                arXiv:2205.13482, by pycma's least deviation).
            population: candidates per update, at least 3; 4 + floor(3 ln d) if not given.
            sigma: first step size, as a share of the box, in (0, 1].
            restarts: how often to start anew when a search has converged; then it goes on.
            diagonal: adapt variances only; the default does from 100 genes on.

        Raises:
            ValueError: an option is out of range.
        """
        if population is not None and population < 3:
            raise ValueError(
                f"population: {population} is below 3; write 3 or more, or leave it out"
            )
        if not 0.0 < sigma <= 1.0:
            raise ValueError(f"sigma: {sigma} is not within 0 to 1; write e.g. 0.2")
        if restarts < 0:
            raise ValueError(f"restarts: {restarts} is negative; write 0 or more")
        self._rng = np.random.default_rng(seed)
        self._dimension, self._sigma, self._restarts = dimension, sigma, restarts
        self._population = population or 4 + int(3 * math.log(max(dimension, 1)))
        self._diagonal = dimension >= _DIAGONAL_FROM if diagonal is None else diagonal
        self._least = np.array([_MARGIN / n if n else 0.0 for n in levels])
        self._blas = ThreadpoolController()
        self.runs = 0
        self._asked = 0
        self._pending: dict[int, tuple[int, np.ndarray]] = {}
        self._best_foreign = (-math.inf, -math.inf)
        self._begin(np.asarray(start, float))

    def _begin(self, mean: np.ndarray) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycma warns where there is no matplotlib
            import cma

        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "BoundaryHandler": "BoundTransform",
            "popsize": self._population * 2 ** min(self.runs, self._restarts),
            "randn": lambda *shape: self._rng.standard_normal(shape),
            "seed": math.nan,  # pycma is to leave numpy's global generator alone
            "verbose": -9,
            "CMA_diagonal": self._diagonal,
            # We stop it; its own criteria read function values, and it gets ranks.
            "tolfun": 0.0,
            "tolfunhist": 0.0,
            "tolflatfitness": math.inf,
            "tolstagnation": math.inf,
            "maxiter": math.inf,
            "tolx": _SMALLEST_STEP,
        }
        if self._least.any():
            options["minstd"] = self._least
        with self._blas.limit(limits=1):
            self._es = cma.CMAEvolutionStrategy(mean, self._sigma, options)
        self._queue: list[np.ndarray] = []
        self._told: list[tuple[np.ndarray, tuple[float, float]]] = []
        self._flat = 0

    @property
    def mean(self) -> np.ndarray:
        """The mean of the distribution, (dimension,) float64 in [0, 1]."""
        return np.clip(self._es.result.xfavorite, 0.0, 1.0)

    def ask(self, n: int) -> list[Proposal]:
        proposals = []
        for _ in range(n):
            if not self._queue:
                with self._blas.limit(limits=1):
                    self._queue = list(self._es.ask())
            point = self._queue.pop(0)
            self._pending[self._asked] = (self.runs, point)
            self._asked += 1
            proposals.append(Proposal(np.clip(point, 0.0, 1.0)))
        return proposals

    def tell(self, told: Told) -> None:
        if told.ordinal is None:
            self._hear_foreign(told)
        run, point = self._pending.pop(told.ordinal, (None, None))
        if run != self.runs:
            return  # not ours, or asked before the latest restart
        failed = told.value is None
        if told.genome is not None:  # where the space put genes back, learn from what was scored
            moved = np.abs(np.clip(point, 0.0, 1.0) - told.genome) > _ROUNDED
            point = np.where(moved, told.genome, point) if moved.any() else point
        # ascending: those that keep the constraints by value, the others by violation, failures
        self._told.append((point, (math.inf, 0.0) if failed else (told.violation, -told.value)))
        if len(self._told) >= self._es.popsize:
            self._update()

    def _hear_foreign(self, told: Told) -> None:
        """Begin at the best genome that others proposed, if it comes before the first ask."""
        if self._asked or told.genome is None or told.value is None:
            return
        found = (-told.violation, told.value)
        if found > self._best_foreign:
            self._best_foreign = found
            self._begin(np.clip(told.genome, 0.02, 0.98))

    def _update(self) -> None:
        points, losses = zip(*self._told, strict=True)
        self._told, self._queue = [], []
        if len(set(losses)) == 1:
            self._flat += 1
            self._es.sigma *= _WIDEN
        else:
            self._flat = 0
            violation, loss = np.array(losses).T
            order = np.lexsort((self._rng.random(len(loss)), loss, violation))
            ranks = np.empty(len(loss))
            ranks[order] = np.arange(len(loss))
            with self._blas.limit(limits=1):
                self._es.tell(list(points), list(ranks))
        if self._flat >= _FLAT_GENERATIONS or self._es.stop():
            self.runs += 1
            self._begin(self._rng.random(self._dimension) * 0.8 + 0.1)
