"""Greedy forward selection: of many experts, one after the other, each because it helps.

Caruana et al. 2004 (ICML, "Ensemble selection from libraries of models", section 2.1) add to an
ensemble, again and again, whichever model improves it most, also one that is in it already, until
none does; greedy soups (Wortsman et al. 2022, arXiv:2203.05482) do so with weights, in one pass;
FW-Merging (arXiv:2503.12649) goes towards one model at a time too, along a gradient that a search
without gradients has to ask for: by scoring a step towards each. Which it takes is here decided in
a race on the same items. Ours are also: a round has the better half of the models of the round
before, and all of them before it ends; and the weights of those that were chosen are refined
afterwards, by CMA-ES over their genes alone.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from evomerge.search.controllers import (
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    Recommendation,
    controller,
)
from evomerge.search.controllers.cmaes import CmaEs, CmaEsSection
from evomerge.search.ingredients import Ingredients
from evomerge.sections import Number, Whole, option

_LEAST_FIELD = 3  # models of a round that has not all of them
_KEPT = 5  # of the latest who led, to recommend; of those scored elsewhere, to begin with

Rank = tuple[float, float]  # -violation, value: more is better
_LAST: Rank = (-np.inf, -np.inf)


class GreedySection(ControllerSection):
    """Options of greedy selection.

    >>> GreedySection(most=4).dose
    0.5
    """

    kind: Literal["greedy"] = "greedy"
    dose: Number = option(
        "weight of a model that is added, where task vectors are added up; where models are"
        " averaged, the n-th one gets 1/n. Of a space without weights of models, a first step,"
        " as a share of the box, is half of it",
        0.5,
        gt=0,
        le=1,
    )
    most: Whole | None = option("models that may be chosen; null: all", None, unit="models", ge=1)
    heats: Whole = option(
        "parts of the items on which who is to be added is compared with what there is, at least;"
        " without a meaning where all items are scored",
        3,
        unit="parts",
        ge=1,
    )
    sigma: Number = option(
        "first step size of the refinement", 0.1, unit="share of the box", gt=0, le=1
    )


@dataclass(eq=False)
class _Racer:
    """One who runs in a round: what there is, or that with one more model.

    Attributes:
        genome: (dimension,) float64 in [0, 1].
        move: number of the way that it went; None for who did not go any.
        candidate: its number, once it was scored.
        ranks: of the round's heats, less violation and then more value.
    """

    genome: np.ndarray
    move: int | None = None
    candidate: int | None = None
    ranks: list[Rank] = field(default_factory=list)

    @property
    def rank(self) -> Rank:
        """The mean over the heats; a failure in one is a failure."""
        if not self.ranks or _LAST in self.ranks:
            return _LAST
        violation, value = np.mean(self.ranks, axis=0)
        return float(violation), float(value)


@controller(GreedySection)
class Greedy(Controller):
    """Adds one model after the other, then refines their weights; told in any order.

    A round has what there is, its leader, and the leader with each of the models once more. All are
    scored on the same items; scored in parts, the better half runs another heat on other items,
    and so on, until one is left beside the leader. If it is better on all these items together, it
    leads from then on. When nobody is, though all models ran, the genes of those that were chosen
    (if none was, of all), and those that are no model's weight, are left to CMA-ES. When that has
    converged, the rounds begin again with what it found, and half the dose.

    In a space without weights of models each gene is one to add, or to take from.

    Attributes:
        leader: (dimension,) float64, what the rounds have come to.
        chosen: the models in it, by number.

    >>> problem = Problem(dimension=2, seed=1, start=np.full(2, 0.5))
    >>> search = Greedy(problem, GreedySection())
    >>> for number, proposal in enumerate(search.ask(9)):  # a round of one and four
    ...     value = -float(abs(proposal.genome - 0.25).sum())
    ...     search.tell(Feedback(number, proposal.genome, value, (value,)))
    >>> sorted(search.leader.tolist())
    [0.25, 0.5]
    """

    def __init__(self, problem: Problem, options: GreedySection):
        self._problem, self._options = problem, options
        self._rng = np.random.default_rng(problem.seed)
        self._pool = problem.ingredients
        self._dose = options.dose
        self._in_parts = problem.parts > 1
        self._led: list[np.ndarray] = []
        start = self._pool.nothing if self._pool else np.asarray(problem.start, float)
        self._leader = _Racer(np.clip(start, 0.0, 1.0))
        # an average of no models is none: the first round is then among single ones
        self._leads = self._pool is None or self._pool.adds_up
        # scored elsewhere, with what they scored there: the best of them run in the first round
        self._others: list[tuple[Rank, _Racer]] = []
        self._part = 0
        self._asked = 0
        self._pending: dict[int, _Racer | tuple[CmaEs, int]] = {}
        self._queue: deque[_Racer] = deque()
        self._field: list[_Racer] = []  # of the heat, without the leader
        self._heats = 0  # of the round, those that have begun
        self._running = 0  # of the heat, those who are not told yet
        self._promising: list[int] = []  # moves of the better half of the last round
        self._has_all = True  # whether the round has all models
        self._search: CmaEs | None = None
        self._free = np.zeros(0, int)  # the genes that it refines
        self._sampled = 0  # candidates of it that were asked for

    @property
    def leader(self) -> np.ndarray:
        return self._leader.genome.copy()

    @property
    def chosen(self) -> list[int]:
        return self._pool.models_in(self._leader.genome) if self._pool else []

    # --- ask ---------------------------------------------------------------------------

    def ask(self, n: int) -> list[Proposal]:
        if self._search is None and not self._running:
            self._begin_round(list(range(self._moves)))
        found: list[Proposal] = []
        while len(found) < n and self._queue:
            racer = self._queue.popleft()
            again = racer.candidate if self._in_parts else None
            found.append(Proposal(racer.genome.copy(), part=self._part, again=again))
            self._pending[self._asked] = racer
            self._asked += 1
        if self._search is not None:
            found += [self._refining(self._search) for _ in range(n - len(found))]
        return found

    def _refining(self, search: CmaEs) -> Proposal:
        (proposal,) = search.ask(1)
        self._pending[self._asked] = (search, self._sampled)
        self._asked += 1
        self._sampled += 1
        return Proposal(self._whole(proposal.genome), part=self._part + proposal.part)

    def _whole(self, genes: np.ndarray) -> np.ndarray:
        """Return the leader with these values of the genes that are refined."""
        genome = self.leader
        genome[self._free] = genes
        return genome

    # --- rounds ------------------------------------------------------------------------

    @property
    def _moves(self) -> int:
        """How many ways there are to go: one a model, or two a gene."""
        return len(self._pool.alone) if self._pool else 2 * self._problem.dimension

    def _begin_round(self, moves: list[int]) -> None:
        """Let the leader run against itself with one step along each of these ways."""
        self._has_all = len(moves) == self._moves
        runners = []
        for move in moves:
            genome = self._moved(move)
            if np.abs(genome - self._leader.genome).max() > 1e-6:  # not at its bound already
                runners.append(_Racer(genome, move))
        runners += [racer for _, racer in self._others]
        self._others = []
        self._promising = [racer.move for racer in runners if racer.move is not None]
        # where scores are equal, who comes first has no claim to be taken
        self._rng.shuffle(runners)
        is_known = bool(self._leader.ranks) and not self._in_parts
        if not is_known:
            self._leader.ranks = []
        self._heats = 0
        self._begin_heat(runners, with_leader=self._leads and not is_known)

    def _moved(self, move: int) -> np.ndarray:
        """Return the leader after one step along a way, (dimension,) float64."""
        genome, pool = self.leader, self._pool
        if pool is None:
            gene, is_down = divmod(move, 2)
            genome[gene] += self._dose / 2 * (-1.0 if is_down else 1.0)
        elif pool.adds_up:
            genome += self._dose * pool.ways[move]
        else:
            # the average of n models and one more: x + (x_k - x) / (n + 1)
            weighs = pool.genes_of(range(len(pool.alone)))
            count = self._averaged(pool)
            genome[weighs] += (pool.alone[move] - genome)[weighs] / (count + 1)
        if pool is not None and self._options.most is not None:
            chosen = self.chosen
            if move not in chosen and len(chosen) >= self._options.most:
                return self.leader
        return np.clip(genome, 0.0, 1.0)

    def _averaged(self, pool: Ingredients) -> int:
        """Return of how many models, repeated ones counted, the leader is the average."""
        ways, gone = pool.ways, self._leader.genome - pool.nothing
        # a model that is there n times of N has weight n / N; the least one is there once
        weights = [
            float(np.median(gone[way != 0.0] / way[way != 0.0])) for way in ways if way.any()
        ]
        shares = [weight for weight in weights if weight > 1e-3]
        return round(1.0 / min(shares)) if shares else 0

    def _begin_heat(self, runners: list[_Racer], *, with_leader: bool) -> None:
        self._field = runners
        self._heats += 1
        self._queue.extend([self._leader, *runners] if with_leader else runners)
        self._running = len(self._queue)
        if not self._running:
            self._end_round()

    def _end_heat(self) -> None:
        """Let the better half run on, or decide the round."""
        order = sorted(self._field, key=lambda racer: racer.rank, reverse=True)
        if self._heats == 1:  # which all who ran have run
            moves = [racer.move for racer in order if racer.move is not None]
            half = max(_LEAST_FIELD, (len(moves) + 1) // 2)
            self._promising = moves[:half]
        self._part += 1
        left = [racer for racer in order if racer.rank > _LAST]
        if not self._in_parts or not left:
            self._field = left[:1]
            self._end_round()
            return
        left = left[: (len(left) + 1) // 2]
        if len(left) == 1 and (self._heats >= self._options.heats or not self._leads):
            self._field = left
            self._end_round()
        else:
            self._begin_heat(left, with_leader=self._leads)

    def _end_round(self) -> None:
        """Take the winner if it is better, and begin what comes next."""
        before = self._leader
        if self._field and self._field[0].rank > before.rank:
            self._led = [*self._led[1 - _KEPT :], before.genome]
            self._leader, self._leads = self._field[0], True
            self._begin_round(self._promising)
        elif not self._has_all:
            self._begin_round(list(range(self._moves)))
        else:
            self._begin_refinement()

    # --- refinement --------------------------------------------------------------------

    def _begin_refinement(self) -> None:
        """Leave to CMA-ES the genes of the chosen models, and those of no model."""
        dimension = self._problem.dimension
        free = np.ones(dimension, bool)
        if self._pool is not None and self.chosen:
            free = self._pool.genes_of(self.chosen)
            free |= ~self._pool.genes_of(range(len(self._pool.alone)))
        self._free = np.flatnonzero(free)
        levels = self._problem.levels or (0,) * dimension
        part = Problem(
            len(self._free),
            int(self._rng.integers(2**32)),
            # off the bounds, where the transform of pycma has no slope
            np.clip(self._leader.genome[self._free], 0.02, 0.98),
            levels=tuple(levels[gene] for gene in self._free),
            parts=self._problem.parts,
        )
        self._sampled = 0
        self._search = CmaEs(part, CmaEsSection(sigma=self._options.sigma))

    def _end_refinement(self, found: np.ndarray) -> None:
        """Begin the rounds anew at what was found."""
        self._led = [*self._led[1 - _KEPT :], self.leader]
        self._part += self._sampled + 1  # more than it had parts
        self._leader = _Racer(found)
        self._search, self._dose = None, self._dose / 2

    # --- tell --------------------------------------------------------------------------

    def tell(self, feedback: Feedback) -> None:
        if feedback.ordinal is None:
            self._hear_foreign(feedback)
            return
        racer = self._pending.pop(feedback.ordinal)
        if isinstance(racer, tuple):
            self._hear_refined(feedback, *racer)
            return
        if racer.candidate is None:
            racer.candidate = feedback.candidate
            if feedback.genome is not None:
                racer.genome = feedback.genome  # as the space has settled it
        racer.ranks.append(_rank(feedback))
        self._running -= 1
        if not self._running:
            self._end_heat()

    def _hear_foreign(self, feedback: Feedback) -> None:
        """Let who was scored in full elsewhere run in the first round."""
        is_sampled = feedback.errors is not None and any(feedback.errors)
        if feedback.genome is not None and feedback.value is not None and not is_sampled:
            self._others.append(
                (_rank(feedback), _Racer(feedback.genome, None, feedback.candidate))
            )
            self._others.sort(key=lambda other: other[0], reverse=True)
            del self._others[_KEPT:]

    def _hear_refined(self, feedback: Feedback, search: CmaEs, ordinal: int) -> None:
        if search is not self._search:
            return  # asked before the rounds began again
        genome = feedback.genome
        mean = search.mean
        search.tell(
            Feedback(
                ordinal,
                None if genome is None else genome[self._free],
                feedback.value,
                feedback.objectives,
                feedback.violation,
                feedback.candidate,
            )
        )
        if search.runs:
            self._end_refinement(self._whole(mean))

    # --- recommend ---------------------------------------------------------------------

    def recommend(self) -> list[Recommendation]:
        found = []
        if self._search is not None:
            for genes, label in self._search.recommend():
                found.append(Recommendation(self._whole(genes), f"refined {label}"))
        found.insert(min(3, len(found)), Recommendation(self.leader, "selection"))
        for back, genome in enumerate(reversed(self._led), start=1):
            found.append(Recommendation(genome.copy(), f"selection of {back} steps before"))
        return found


def _rank(feedback: Feedback) -> Rank:
    if feedback.value is None:
        return _LAST
    return -feedback.violation, feedback.value
