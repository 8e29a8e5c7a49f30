"""CMA-ES (Hansen 2016, arXiv:1604.00772) by pycma, asked and told one candidate at a time.

pycma samples and updates; the rest is ours, because pycma takes NaN, half a population and
ties without a word: failures rank last, ties are broken by our own generator, a generation
without any difference teaches nothing and widens the step, and restarts double the
population (IPOP, Auger & Hansen 2005).

Scored in parts, a generation has its items to itself: all of it is ranked on the same few, and the
next one on others. Its noise is then averaged by the distribution, whose mean is a better pick than
any point that was sampled.
"""

import math
import warnings
from typing import Any, Literal

import numpy as np
from threadpoolctl import ThreadpoolController

from evomerge.search.controllers import (
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    Recommendation,
    controller,
)
from evomerge.sections import Flag, Number, Whole, option

# In a row, after which the search starts anew elsewhere: accuracies over few items tie often, so
# that one flat generation says little; ten widen sigma by a factor of 14.
_FLAT_GENERATIONS = 10
_WIDEN = 1.3  # factor on sigma after a flat generation; doubles it in three
# Of a level's share of the box: the least deviation of a gene that has levels. A normal step then
# passes half a level, and so reaches a neighbouring value, with probability 0.1.
_MARGIN = 0.3
_SMALLEST_STEP = 1e-5  # of the box; below it, bfloat16 weights hardly change
_ROUNDED = 1e-6  # more than genomes are rounded by, which is 2^-25 = 3e-8
# Of the last generations' means that are averaged for a recommendation, and of those before.
_AVERAGED, _BEFORE = (5, 10, 20), (3, 6, 12)
_DIAGONAL_FROM = 100  # genes from which only the diagonal is adapted (Ros & Hansen 2008)


def default_population(dimension: int) -> int:
    """Return lambda = 4 + floor(3 ln d) (Hansen 2016, table 1).

    >>> default_population(12)
    11
    """
    return 4 + int(3 * math.log(max(dimension, 1)))


class CmaEsSection(ControllerSection):
    """Options of CMA-ES.

    >>> CmaEsSection(population=6).sigma
    0.2
    """

    kind: Literal["cmaes"] = "cmaes"
    population: Whole | None = option(
        "candidates for each update; null: 4 + floor(3 ln d), and twice that scored in parts",
        None,
        unit="candidates",
        ge=3,
    )
    sigma: Number = option("first step size", 0.2, unit="share of the box", gt=0, le=1)
    restarts: Whole = option(
        "how often to start anew, with a doubled population, when a search has converged;"
        " after that it starts anew with the last population",
        9,
        ge=0,
    )
    diagonal: Flag | None = option(
        "adapt the variances alone; null: from 100 genes on (Ros & Hansen 2008)", None
    )


@controller(CmaEsSection)
class CmaEs(Controller):
    """CMA-ES on [0, 1]^d without a generation barrier.

    Points are handed out as long as they are asked for; whenever `population` outcomes of
    the present start have come, whatever their order, the distribution is updated. Points
    sampled before the latest update count too; pycma shortens the steps of those that are
    unlikely under it. Genes with levels keep a step wide enough to reach a neighbouring value
    (the margin of Hamano et al. 2022, arXiv:2205.13482, by pycma's least deviation).

    Attributes:
        runs: how often the search has begun anew.

    >>> search = CmaEs(Problem(2, 1, np.full(2, 0.5)), CmaEsSection(population=3))
    >>> for number, proposal in enumerate(search.ask(3)):
    ...     value = -float(((proposal.genome - 0.3) ** 2).sum())
    ...     search.tell(Feedback(number, proposal.genome, value, (value,)))
    >>> bool(np.all((0 <= search.mean) & (search.mean <= 1)))
    True
    """

    def __init__(self, problem: Problem, options: CmaEsSection):
        self._rng = np.random.default_rng(problem.seed)
        self._dimension = dimension = problem.dimension
        self._sigma, self._restarts = options.sigma, options.restarts
        self._in_parts = problem.parts > 1
        # more candidates on fewer items: recombination averages their noise
        usual = default_population(dimension) * (2 if self._in_parts else 1)
        self._population = options.population or usual
        self._diagonal = options.diagonal
        if self._diagonal is None:
            self._diagonal = dimension >= _DIAGONAL_FROM
        levels = problem.levels or (0,) * dimension
        self._least = np.array([_MARGIN / n if n else 0.0 for n in levels])
        self._blas = ThreadpoolController()
        self.runs = 0
        self._asked = 0
        # ordinal -> run, generation, point
        self._pending: dict[int, tuple[int, int, np.ndarray]] = {}
        self._generation, self._asked_of_it = 0, 0
        self._means: list[np.ndarray] = []  # of the latest generations of this run
        self._best_foreign = (-math.inf, -math.inf)
        self._begin(np.asarray(problem.start, float))

    def _begin(self, mean: np.ndarray) -> None:
        """Start a run at `mean`, its population doubled for every run before."""
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
        if self._dimension == 1:  # pycma fails where it would limit the deviation of a single gene
            options["maxstd"] = math.inf
        elif self._least.any():
            options["minstd"] = self._least
        # One BLAS thread: with several, sums come in another order, and replay differs in a bit.
        with self._blas.limit(limits=1), warnings.catch_warnings():  # to which pycma adds one
            self._es = cma.CMAEvolutionStrategy(mean, self._sigma, options)
        self._queue: list[np.ndarray] = []
        # of each generation: point, (violation, loss)
        self._told: dict[int, list[tuple[np.ndarray, tuple[float, float]]]] = {}
        self._flat = 0
        self._means = []
        self._generation += self._asked_of_it > 0
        self._asked_of_it = 0

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
            self._pending[self._asked] = (self.runs, self._generation, point)
            proposals.append(Proposal(np.clip(point, 0.0, 1.0), part=self._generation))
            self._asked += 1
            self._asked_of_it += 1
            if self._asked_of_it >= self._es.popsize:
                self._generation, self._asked_of_it = self._generation + 1, 0
        return proposals

    def tell(self, feedback: Feedback) -> None:
        if feedback.ordinal is None:
            self._hear_foreign(feedback)
            return
        run, generation, point = self._pending.pop(feedback.ordinal)
        if run != self.runs:
            return  # asked before the latest restart
        # Where the space put genes back to their start, learn from what was scored.
        if feedback.genome is not None:
            moved = np.abs(np.clip(point, 0.0, 1.0) - feedback.genome) > _ROUNDED
            point = np.where(moved, feedback.genome, point) if moved.any() else point
        # Ascending: those that keep the constraints by value, the others by violation, failures.
        rank = (math.inf, 0.0)
        if feedback.value is not None:
            rank = (feedback.violation, -feedback.value)
        # scored in full, whatever has come can be ranked together, whenever it was asked for
        told = self._told.setdefault(generation if self._in_parts else 0, [])
        told.append((point, rank))
        if len(told) >= self._es.popsize:
            self._update(self._told.pop(generation if self._in_parts else 0))

    def recommend(self) -> list[Recommendation]:
        found = []
        for count in _AVERAGED:
            if len(self._means) >= count:
                label = f"average of the last {count} means"
                found.append(Recommendation(np.mean(self._means[-count:], axis=0), label))
        found.append(Recommendation(self.mean, "mean"))
        for back in _BEFORE:
            if len(self._means) > back:
                label = f"mean of {back} generations before"
                found.append(Recommendation(self._means[-1 - back], label))
        return found

    def _hear_foreign(self, feedback: Feedback) -> None:
        """Begin at the best genome that others proposed, if it comes before the first ask."""
        if self._asked or feedback.genome is None or feedback.value is None:
            return
        rank = (-feedback.violation, feedback.value)
        if rank > self._best_foreign:
            self._best_foreign = rank
            # off the bounds, where the transform of pycma has no slope
            self._begin(np.clip(feedback.genome, 0.02, 0.98))

    def _update(self, told: list[tuple[np.ndarray, tuple[float, float]]]) -> None:
        """Tell pycma a generation as ranks, or widen the step if all of it scored the same."""
        points, losses = zip(*told, strict=True)
        self._queue = []
        if len(set(losses)) == 1:
            self._flat += 1
            self._es.sigma *= _WIDEN
        else:
            self._flat = 0
            violation, loss = np.array(losses).T
            # by violation, then loss, then a draw: equals have no order of their own
            order = np.lexsort((self._rng.random(len(loss)), loss, violation))
            ranks = np.empty(len(loss))
            ranks[order] = np.arange(len(loss))
            with self._blas.limit(limits=1), warnings.catch_warnings():
                # points of earlier updates are meant to come; pycma takes them for a slip
                warnings.filterwarnings("ignore", r"\s*orphanated injected solution")
                self._es.tell(list(points), list(ranks))
            if self._dimension == 1:
                self._es.sigma *= max(1.0, float(self._least[0] / self._es.stds[0]))
        self._means = [*self._means[-max(_AVERAGED) :], self.mean]
        if self._flat >= _FLAT_GENERATIONS or self._es.stop():
            self.runs += 1
            # anywhere but in the outer tenth on each side
            self._begin(self._rng.random(self._dimension) * 0.8 + 0.1)
