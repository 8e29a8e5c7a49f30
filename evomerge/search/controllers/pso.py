"""Particle swarm optimization, as PSO-Merging searches merges (arXiv:2508.19839).

Its particles are whole models: the base, N experts and N experts with four fifths of their changes
dropped, moved for five to fifty steps. Here they are genomes, so that a swarm moves in what a space
can express: it begins at the space's start, at what was scored before, and around the start. The
paper's inertia and accelerations are the defaults; its text leaves open whether the draws are one
for all of a model or one for each weight, and how a swarm begins to move. Draws here are one for
each gene, as in Kennedy & Eberhart 1995, and a particle begins at rest.
"""

import math
from collections import deque
from dataclasses import dataclass
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

# Of the box, along every gene: who would move less than that has come to rest. Swarms of 20 in 30
# genes of a sphere came to rest a squared distance of 0.017 off the optimum after 6,000 candidates;
# when those who rest begin anew, it is 0.0001.
_REST = 1e-3


def default_particles(dimension: int) -> int:
    """Return 10 + floor(2 sqrt(d)) (Standard PSO 2006; Clerc 2012, section 2).

    >>> default_particles(12)
    16
    """
    return 10 + int(2 * math.sqrt(dimension))


class PsoSection(ControllerSection):
    """Options of particle swarm optimization.

    >>> PsoSection(particles=9).inertia
    0.2
    """

    kind: Literal["pso"] = "pso"
    particles: Whole | None = option(
        "particles of the swarm; null: 10 + floor(2 sqrt(d)), and twice that scored in parts",
        None,
        unit="particles",
        ge=2,
    )
    inertia: Number = option("share of its velocity that a particle keeps", 0.2, ge=0, lt=1)
    cognitive: Number = option("acceleration towards a particle's own best", 2.0, ge=0)
    social: Number = option("acceleration towards the swarm's best", 2.0, ge=0)
    spread: Number = option(
        "standard deviation of the first genomes around the start",
        0.2,  # the first step of cmaes
        unit="share of the box",
        gt=0,
        le=1,
    )


@dataclass(eq=False)
class Particle:
    """A point that moves through the box.

    Attributes:
        velocity: (dimension,) float64, of its latest move.
        position: (dimension,) float64 in [0, 1]; None before its first.
        best: the best position that it was scored at; None if it failed wherever it was.

    >>> Particle(np.zeros(2)).best is None
    True
    """

    velocity: np.ndarray
    position: np.ndarray | None = None
    best: Pooled | None = None


@controller(PsoSection)
class ParticleSwarm(Controller):
    """A swarm on [0, 1]^d; a particle moves on as soon as its outcome has come.

    Scored in parts, a sweep of the swarm has its items to itself, and the swarm's best is scored
    once more at the beginning of every sweep: the best of many noisy scores is a lucky one, and
    would hold the swarm for ever. What is recommended first is the mean of the particles' bests,
    in which their luck averages out.

    Attributes:
        swarm: the particles.

    >>> search = ParticleSwarm(Problem(2, 1, np.full(2, 0.5)), PsoSection(particles=3))
    >>> for number, proposal in enumerate(search.ask(3)):
    ...     value = -float(((proposal.genome - 0.3) ** 2).sum())
    ...     search.tell(Feedback(number, proposal.genome, value, (value,)))
    >>> search.recommend()[0].label
    "mean of the particles' bests"
    """

    def __init__(self, problem: Problem, options: PsoSection):
        self._rng = np.random.default_rng(problem.seed)
        self._options = options
        self._start = np.clip(np.asarray(problem.start, float), 0.0, 1.0)
        self._in_parts = problem.parts > 1
        # Twice as many on few items: after 240,000 of them, in parts of 50 and on a sphere of 12
        # genes, the mean of their bests was 1.6 points off the optimum, that of half as many 2.8.
        usual = default_particles(problem.dimension) * (2 if self._in_parts else 1)
        size = options.particles or usual
        self.swarm = [Particle(np.zeros(problem.dimension)) for _ in range(size)]
        self._idle = deque(self.swarm)
        self._asked = self._moves = self._checked = 0
        self._pending: dict[int, Particle | Pooled] = {}  # who moved, or whose best is scored again
        self._told_before: list[Pooled] = []

    @property
    def best(self) -> Pooled | None:
        """The best of the particles' bests, or None before one was scored."""
        bests = self._bests()
        return max(bests, key=lambda best: best.rank) if bests else None

    def _bests(self) -> list[Pooled]:
        return [p.best for p in self.swarm if p.best is not None and not p.best.has_failed]

    def ask(self, n: int) -> list[Proposal]:
        if not self._asked:
            self._take_in_told()
        proposals: list[Proposal] = []
        while self._idle and len(proposals) < n:
            sweep = self._moves // len(self.swarm)
            again = self._best_to_check(sweep)
            if again is not None:
                proposals.append(Proposal(again.genome, part=sweep, again=again.candidate))
                self._pending[self._asked] = again
            else:
                particle = self._idle.popleft()
                particle.position = self._moved(particle)
                proposals.append(Proposal(particle.position, part=sweep))
                self._pending[self._asked] = particle
                self._moves += 1
            self._asked += 1
        return proposals

    def _take_in_told(self) -> None:
        """Give the best genomes that others proposed a particle each; the first is the start's."""
        told = sorted(self._told_before, key=lambda one: one.rank, reverse=True)
        for particle, best in zip(self.swarm[1:], told, strict=False):
            particle.position, particle.best = best.genome, best

    def _best_to_check(self, sweep: int) -> Pooled | None:
        """Return the swarm's best if it is to be scored once more, once a sweep but the first."""
        if not self._in_parts or self._checked >= sweep:
            return None
        self._checked = sweep
        best = self.best
        return None if best is None or best.is_exact else best

    def _moved(self, particle: Particle) -> np.ndarray:
        """Return where a particle goes next."""
        leader, position = self.best, particle.position
        if position is None:
            if particle is self.swarm[0]:
                return self._start
            step = self._options.spread * self._rng.standard_normal(len(self._start))
            return np.clip(self._start + step, 0.0, 1.0)
        if leader is None or particle.best is None or particle.best.has_failed:
            return self._begun_anew(particle)
        # v <- w v + c1 r1 (p - x) + c2 r2 (g - x), with r1 and r2 uniform in [0, 1];  x <- x + v
        own, shared = self._rng.random((2, len(position)))
        velocity = (
            self._options.inertia * particle.velocity
            + self._options.cognitive * own * (particle.best.genome - position)
            + self._options.social * shared * (leader.genome - position)
        )
        if np.abs(velocity).max() < _REST:
            return self._begun_anew(particle)
        reached = position + velocity
        # Stopped at the wall, not thrown back, so that an optimum on it is reached and held; the
        # velocity ends there, or it would press on outwards in the next move.
        inside = (reached >= 0.0) & (reached <= 1.0)
        particle.velocity = np.where(inside, velocity, 0.0)
        return np.clip(reached, 0.0, 1.0)

    def _begun_anew(self, particle: Particle) -> np.ndarray:
        """Return a point anywhere in the box for a particle that nothing draws on from where it is.

        It forgets its best, unless that is the swarm's.
        """
        particle.velocity = np.zeros(len(self._start))
        if particle.best is not self.best:
            particle.best = None
        return self._rng.random(len(self._start))

    def tell(self, feedback: Feedback) -> None:
        if feedback.ordinal is None:
            if not self._asked and feedback.genome is not None and feedback.value is not None:
                self._told_before.append(Pooled.of(feedback))
            return
        told = self._pending.pop(feedback.ordinal)
        if isinstance(told, Pooled):
            told.add(feedback)
            return
        self._idle.append(told)
        if feedback.value is None or feedback.genome is None:
            return
        # Where the space put genes back to their start, the particle is where it was scored.
        told.position, scored = feedback.genome, Pooled.of(feedback)
        # an equal takes the place, so that a plateau holds nobody
        if told.best is None or scored.rank >= told.best.rank:
            told.best = scored

    def recommend(self) -> list[Recommendation]:
        bests = sorted(self._bests(), key=lambda best: best.rank, reverse=True)
        if not bests:
            return []
        genomes = np.array([best.genome for best in bests])
        half = genomes[: (len(genomes) + 1) // 2]
        return [
            Recommendation(genomes.mean(axis=0), "mean of the particles' bests"),
            Recommendation(half.mean(axis=0), "mean of the better half of the particles' bests"),
            Recommendation(genomes[0], "the swarm's best"),
        ]
