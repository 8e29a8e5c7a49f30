"""GENOME (arXiv:2503.01155): a population of merges that are crossed and mutated.

Its individuals are the weights of adapters; here they are genomes, so that what is crossed stays
within what a space can express. Taken from the paper and its code: parents drawn in proportion to
fitness, a child at the mean of two by fitness, mutants with noise on some of their genes, survival
of an elite and of the winners of tournaments. Ours, for the reason named: fitness is counted from
the worst of the population, as values may be negative; the noise is as wide as a first step of
cmaes and mutants are more frequent, as a genome has some dozens of genes and not millions, of which
a few always move; who survives is settled whenever a child is told, so that no worker waits.

GENOME+ adds succession, by which individuals move as a swarm (see `pso`), and answers by an
ensemble of the population, which is not one model. Neither is here.
"""

from collections import deque
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
from evomerge.search.pooling import Pooled
from evomerge.sections import Number, Whole, option

# Of generations whose means are averaged for a recommendation: more of them average more noise, and
# lag behind more.
_AVERAGED = 10


class GenomeSection(ControllerSection):
    """Options of GENOME.

    >>> GenomeSection(sigma=0.1).population
    10
    """

    kind: Literal["genome"] = "genome"
    population: Whole = option("individuals that live", 10, unit="individuals", ge=2)
    crossover: Number = option(
        "probability that one of population / 2 pairs has a child, in each generation",
        0.8,  # the authors' run_genome.py
        ge=0,
        le=1,
    )
    mutation: Number = option(
        "probability that an individual or a child has a mutant, in each generation",
        0.3,  # the paper has 0.1
        ge=0,
        le=1,
    )
    gene_mutation: Number = option(
        "probability that a gene of a mutant differs; one at least does", 0.1, ge=0, le=1
    )
    sigma: Number = option(
        "standard deviation of a gene's mutation",
        0.2,  # the paper has 0.001, of weights
        unit="share of the box",
        gt=0,
        le=1,
    )
    elite: Number = option("share of the population that no tournament removes", 0.1, ge=0, lt=1)
    tournament: Whole = option(
        "individuals among whom the worst leaves", 3, unit="individuals", ge=1
    )
    spread: Number = option(
        "standard deviation of the first genomes around the start",
        0.2,  # the first step of cmaes
        unit="share of the box",
        gt=0,
        le=1,
    )


@controller(GenomeSection)
class Genome(Controller):
    """A genetic algorithm on [0, 1]^d, told in any order, with any number in flight.

    A generation is bred of who lives when its first child is asked for. Scored in parts, it has
    its items to itself, and begins with scoring the population once more on them, so that whoever
    came in by luck is found out.

    Attributes:
        population: those who live.

    >>> search = Genome(Problem(2, 1, np.full(2, 0.5)), GenomeSection(population=4))
    >>> for number, proposal in enumerate(search.ask(8)):
    ...     value = -float(((proposal.genome - 0.3) ** 2).sum())
    ...     search.tell(Feedback(number, proposal.genome, value, (value,)))
    >>> len(search.population)
    4
    """

    def __init__(self, problem: Problem, options: GenomeSection):
        self._rng = np.random.default_rng(problem.seed)
        self._options = options
        self._start = np.clip(np.asarray(problem.start, float), 0.0, 1.0)
        self._in_parts = problem.parts > 1
        self.population: list[Pooled] = []
        self._generation = -1
        self._means: deque[np.ndarray] = deque(maxlen=_AVERAGED)  # of the latest generations
        self._queue: deque[np.ndarray | Pooled] = deque()  # children, and who is scored again
        self._asked = 0
        self._pending: dict[int, Pooled | None] = {}  # who is scored again; None for a child

    # --- ask ---------------------------------------------------------------------------

    def ask(self, n: int) -> list[Proposal]:
        return [self._propose() for _ in range(n)]

    def _propose(self) -> Proposal:
        if not self._queue:
            self._generation += 1
            if self.population:
                self._means.append(self._mean())
            self._queue.extend(self._first() if self._generation == 0 else self._bred())
        next_one = self._queue.popleft()
        again = next_one if isinstance(next_one, Pooled) else None
        self._pending[self._asked] = again
        self._asked += 1
        if again is not None:
            return Proposal(again.genome, part=self._generation, again=again.candidate)
        assert isinstance(next_one, np.ndarray)
        return Proposal(next_one, part=self._generation)

    def _first(self) -> list[np.ndarray]:
        """Return the start, and as many around it as the population lacks."""
        lacking = self._options.population - len(self.population) - 1
        noise = self._rng.standard_normal((max(lacking, 0), len(self._start)))
        around = self._start + self._options.spread * noise
        return [self._start, *np.clip(around, 0.0, 1.0)]

    def _bred(self) -> list[np.ndarray | Pooled]:
        """Return a generation: the population to score again, if that is due, and children."""
        size = self._options.population
        if len(self.population) < 2:  # all but one failed, or are in flight
            return list(self._rng.random((size, len(self._start))))
        weights = self._weights()
        chances = weights / weights.sum()
        children = []
        for _ in range(size // 2):
            if self._rng.random() < self._options.crossover:
                a, b = self._rng.choice(len(weights), 2, replace=False, p=chances)
                # child = (f_a x_a + f_b x_b) / (f_a + f_b)
                total = weights[a] * self.population[a].genome
                total = total + weights[b] * self.population[b].genome
                children.append(total / (weights[a] + weights[b]))
        for genome in [one.genome for one in self.population] + children:
            if self._rng.random() < self._options.mutation:
                children.append(self._mutant(genome))
        if not children:
            drawn = int(self._rng.choice(len(weights), p=chances))
            children.append(self._mutant(self.population[drawn].genome))
        again = [one for one in self.population if self._in_parts and not one.is_exact]
        return [*again, *children]

    def _mutant(self, genome: np.ndarray) -> np.ndarray:
        """Return a copy some of whose genes have noise, N(0, sigma^2)."""
        differs = self._rng.random(len(genome)) < self._options.gene_mutation
        differs[self._rng.integers(len(genome))] = True
        noise = self._options.sigma * self._rng.standard_normal(len(genome))
        return np.clip(genome + differs * noise, 0.0, 1.0)

    def _weights(self) -> np.ndarray:
        """Return everyone's share in a draw, (population,) float64 above 0.

        Fitness counted from the worst, who gets an n-th of the range of n, not to be without any.
        """
        fitness = self._fitness()
        beyond = fitness - fitness.min()
        weights = beyond + beyond.max() / len(beyond)
        return weights if weights.max() > 0.0 else np.ones(len(beyond))

    def _fitness(self) -> np.ndarray:
        """Return (population,) float64, more is better; constraints count as in Deb 2000.

        Who keeps them has its value. Who does not comes below all who do: the least of their
        values, or 0 if there are none, less what it misses (equation 4 there).
        """
        values = np.array([one.value for one in self.population])
        violations = np.array([one.violation for one in self.population])
        keeps = violations <= 0.0
        least = values[keeps].min() if keeps.any() else 0.0
        return np.where(keeps, values, least - violations)

    # --- tell --------------------------------------------------------------------------

    def tell(self, feedback: Feedback) -> None:
        again = None if feedback.ordinal is None else self._pending.pop(feedback.ordinal)
        if again is not None:
            again.add(feedback)
            self.population = [one for one in self.population if not one.has_failed]
        elif feedback.value is not None and feedback.genome is not None:
            self.population.append(Pooled.of(feedback))
            if len(self.population) > self._options.population:
                self._remove_one()

    def _remove_one(self) -> None:
        """Remove the worst of a tournament among all but the elite."""
        fitness = self._fitness()
        order = np.argsort(-fitness, kind="stable")
        rest = order[max(1, int(self._options.elite * self._options.population)) :]
        drawn = self._rng.choice(rest, min(self._options.tournament, len(rest)), replace=False)
        del self.population[drawn[np.argmin(fitness[drawn])]]

    def recommend(self) -> list[Recommendation]:
        if not self.population:
            return []
        best = self.population[int(np.argmax(self._fitness()))]
        found = [
            Recommendation(self._mean(), "mean of the population"),
            Recommendation(best.genome, "best of the population"),
        ]
        if len(self._means) == _AVERAGED:
            average = np.mean(self._means, axis=0)
            found.insert(1, Recommendation(average, f"average of the last {_AVERAGED} means"))
        return found

    def _mean(self) -> np.ndarray:
        return np.mean([one.genome for one in self.population], axis=0)
