"""Particle swarms and populations: one step by its formula, parts, and scoring the best again."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.search.controllers import CONTROLLERS, Feedback, Problem
from evomerge.search.controllers.genome import Genome, GenomeSection
from evomerge.search.controllers.pso import ParticleSwarm, PsoSection
from evomerge.search.pooling import Pooled
from evomerge.sections import parse

HALF = np.full(3, 0.5)


def told(ordinal, genome, value, *, violation=0.0, candidate=None, error=0.1):
    """What a controller hears; candidates are numbered from 100, as baselines come before them."""
    number = ordinal + 100 if candidate is None else candidate
    if value is None:
        return Feedback(ordinal, genome, None, None, candidate=number)
    return Feedback(ordinal, genome, value, (value,), violation, number, errors=(error,))


def hear(controller, proposals, first, score):
    """Tell what `score` gives for each proposal, the first of which has ordinal `first`."""
    for ordinal, proposal in enumerate(proposals, start=first):
        number = proposal.again
        controller.tell(told(ordinal, proposal.genome, score(proposal.genome), candidate=number))


def near(genome):
    return -float(((genome - 0.3) ** 2).sum())


# --- the mean of several scores ----------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_pooled_scores_are_their_mean_whatever_their_errors_say(values):
    pooled = Pooled.of(told(0, HALF, values[0]))
    for ordinal, value in enumerate(values[1:], start=1):
        pooled.add(told(ordinal, HALF, value, error=0.0))  # all right, or all wrong: by luck
    assert pooled.scores == len(values)
    assert pooled.value == pytest.approx(np.mean(values), abs=1e-12)


def test_pooled_candidates_rank_by_violation_then_value_and_failures_last():
    good, better = Pooled.of(told(0, HALF, 0.5)), Pooled.of(told(1, HALF, 0.75))
    missing, failed = (Pooled.of(told(2, HALF, 0.9, violation=0.1)), Pooled.of(told(3, HALF, 0.9)))
    failed.add(told(4, HALF, None))
    failed.add(told(5, HALF, 1.0))  # it stays a failure
    ranked = sorted([failed, good, missing, better], key=lambda one: one.rank)
    assert ranked == [failed, missing, good, better]


def test_only_what_others_had_scored_on_all_items_is_exact():
    assert Pooled.of(Feedback(None, HALF, 0.5, (0.5,), errors=(0.0,))).is_exact
    assert not Pooled.of(Feedback(None, HALF, 0.5, (0.5,), errors=(0.1,))).is_exact
    assert not Pooled.of(Feedback(7, HALF, 1.0, (1.0,), errors=(0.0,))).is_exact


# --- swarms ------------------------------------------------------------------------------------


UNIT = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).map(np.array)


@given(position=UNIT, own=UNIT, leader=UNIT, velocity=UNIT, seed=st.integers(0, 99))
def test_a_particle_moves_by_the_papers_formula(position, own, leader, velocity, seed):
    """v <- w v + c1 r1 (p - x) + c2 r2 (g - x), with the generator's own draws beside it."""
    options = PsoSection(particles=2, inertia=0.3, cognitive=1.5, social=1.25)
    swarm = ParticleSwarm(Problem(3, seed, HALF), options)
    first, second = swarm.swarm
    first.position, first.velocity = position, velocity - 0.5
    first.best, second.best = Pooled.of(told(0, own, 0.5)), Pooled.of(told(1, leader, 0.75))
    r1, r2 = np.random.default_rng(seed).random((2, 3))
    moved = 0.3 * (velocity - 0.5) + 1.5 * r1 * (own - position) + 1.25 * r2 * (leader - position)
    (proposal,) = swarm.ask(1)
    if np.abs(moved).max() >= 1e-3:  # it is not at rest
        reached = position + moved
        assert np.allclose(proposal.genome, np.clip(reached, 0.0, 1.0), atol=1e-14)
        kept = (reached >= 0.0) & (reached <= 1.0)
        assert np.allclose(first.velocity, moved * kept, atol=1e-14)


def test_the_papers_accelerations_are_the_defaults():
    options = PsoSection()
    assert (options.inertia, options.cognitive, options.social) == (0.2, 2.0, 2.0)
    sizes = {d: len(ParticleSwarm(Problem(d, 1, np.full(d, 0.5)), options).swarm) for d in (4, 25)}
    assert sizes == {4: 14, 25: 20}
    assert len(ParticleSwarm(Problem(4, 1, np.full(4, 0.5), parts=16), options).swarm) == 28


def test_a_particle_stops_at_the_wall_and_finds_an_optimum_there():
    swarm = ParticleSwarm(Problem(3, 1, HALF), PsoSection(particles=8))
    ordinal = 0
    for _ in range(40):
        proposals = swarm.ask(8)
        hear(swarm, proposals, ordinal, lambda genome: float(genome.sum()))
        ordinal += len(proposals)
        for particle in swarm.swarm:
            outside = (particle.position == 0.0) | (particle.position == 1.0)
            assert (particle.velocity[outside] == 0.0).all()
    assert swarm.best.genome.tolist() == [1.0, 1.0, 1.0]


def test_a_swarm_never_waits_for_its_slowest():
    swarm = ParticleSwarm(Problem(3, 1, HALF), PsoSection(particles=4))
    assert [len(swarm.ask(3)), len(swarm.ask(3)), len(swarm.ask(3))] == [3, 1, 0]
    waiting = {0: HALF}  # the first one never comes back
    for ordinal in (1, 2, 3):
        swarm.tell(told(ordinal, HALF, 0.5))
    asked = 4
    for _ in range(30):
        proposals = swarm.ask(9)
        assert len(proposals) == 3
        hear(swarm, proposals, asked, near)
        asked += 3
    swarm.tell(told(0, waiting[0], 1.0))
    assert len(swarm.ask(9)) == 4 and swarm.best.value == 1.0


def test_a_swarm_begins_at_the_start_and_moves_on_from_what_was_told_before():
    swarm = ParticleSwarm(Problem(3, 1, HALF), PsoSection(particles=4))
    for value in (0.1, 0.9, 0.4, 0.3, None):
        genome = None if value is None else np.full(3, value)
        objectives = None if value is None else (value,)
        swarm.tell(Feedback(None, genome, value, objectives, candidate=1))
    first, _, third, fourth = (proposal.genome for proposal in swarm.ask(4))
    assert np.array_equal(first, HALF)
    assert [p.best.value for p in swarm.swarm[1:]] == [0.9, 0.4, 0.3]  # 0.1 has no place
    assert ((third > 0.4) & (third <= 1.0)).all()  # from 0.4 towards 0.9, up to twice as far
    assert ((fourth > 0.3) & (fourth <= 1.0)).all()
    assert np.array_equal(swarm.recommend()[-1].genome, np.full(3, 0.9))


def test_who_has_come_to_rest_begins_anew_and_the_best_is_kept():
    swarm = ParticleSwarm(Problem(3, 1, HALF), PsoSection(particles=2))
    best = Pooled.of(told(0, HALF, 0.75))
    for particle, at in zip(swarm.swarm, (best, Pooled.of(told(1, HALF, 0.5))), strict=True):
        particle.position, particle.best = HALF, at
    leader, other = swarm.ask(2)
    assert min(np.abs(leader.genome - HALF).max(), np.abs(other.genome - HALF).max()) > 0.1
    assert [particle.best for particle in swarm.swarm] == [best, None]


def test_who_failed_begins_anew_and_a_plateau_holds_nobody():
    swarm = ParticleSwarm(Problem(3, 1, HALF), PsoSection(particles=2, spread=0.01))
    swarm.ask(2)
    swarm.tell(told(0, HALF, None))
    swarm.tell(told(1, HALF, 0.5))
    anew = swarm.ask(1)[0].genome
    assert np.abs(anew - HALF).max() > 0.1  # anywhere, not around the start
    swarm.tell(told(2, anew, 0.5))
    assert np.array_equal(swarm.swarm[0].best.genome, anew)
    swarm.ask(1)
    swarm.tell(told(3, np.full(3, 0.25), 0.5))  # no better than before
    assert np.array_equal(swarm.swarm[1].best.genome, np.full(3, 0.25))


def test_a_sweep_is_a_part_and_begins_with_the_best_of_the_swarm():
    swarm = ParticleSwarm(Problem(3, 1, HALF, parts=16), PsoSection(particles=4))
    luck = iter([0.5, 0.9, 0.4, 0.6])
    first = swarm.ask(4)
    assert [(p.part, p.again) for p in first] == [(0, None)] * 4
    hear(swarm, first, 0, lambda genome: next(luck))
    second = swarm.ask(5)
    assert [(p.part, p.again) for p in second] == [(1, 101)] + [(1, None)] * 4
    assert np.array_equal(second[0].genome, first[1].genome)
    swarm.tell(told(4, first[1].genome, 0.1, candidate=101))  # it had been luck
    assert swarm.swarm[1].best.value == pytest.approx(0.5)
    assert swarm.best.candidate == 103
    for ordinal in range(5, 9):
        swarm.tell(told(ordinal, second[ordinal - 4].genome, 0.0))
    assert [(p.part, p.again) for p in swarm.ask(1)] == [(2, 103)]


def test_a_best_that_fails_when_scored_again_is_none():
    swarm = ParticleSwarm(Problem(3, 1, HALF, parts=16), PsoSection(particles=2))
    hear(swarm, swarm.ask(2), 0, near)
    lucky = swarm.best.candidate
    again = swarm.ask(1)[0]
    assert again.again == lucky
    swarm.tell(told(2, again.genome, None, candidate=lucky))
    assert swarm.best.candidate != lucky
    assert len(swarm.ask(2)) == 2


@pytest.mark.parametrize("name", ["pso", "genome"])
def test_nothing_is_scored_again_where_all_items_are_scored(name):
    cls = CONTROLLERS.get(name)
    controller = cls(Problem(3, 1, HALF), parse(cls.section, {"kind": name}))
    for ordinal in range(150):
        (proposal,) = controller.ask(1)
        assert proposal.again is None
        controller.tell(told(ordinal, proposal.genome, near(proposal.genome), error=0.0))


@pytest.mark.parametrize("name", ["pso", "genome"])
def test_first_genomes_spread_as_told(name):
    cls = CONTROLLERS.get(name)
    section = parse(cls.section, {"kind": name, "spread": 0.05})
    genomes = []
    for seed in range(40):
        controller = cls(Problem(3, seed, HALF), section)
        genomes += [proposal.genome for proposal in controller.ask(8)[1:]]
    assert np.std(genomes, axis=0) == pytest.approx(np.full(3, 0.05), rel=0.15)


@pytest.mark.parametrize("name", ["pso", "genome"])
def test_a_recommendation_leaves_everything_as_it_was(name):
    cls = CONTROLLERS.get(name)
    genomes = []
    for recommends in (False, True):
        controller = cls(Problem(3, 1, HALF, parts=16), parse(cls.section, {"kind": name}))
        assert controller.recommend() == []
        asked = 0
        for _ in range(20):
            proposals = controller.ask(5)
            if recommends:
                found = controller.recommend() and controller.recommend()
                assert all((r.genome >= 0).all() and (r.genome <= 1).all() for r in found)
            hear(controller, proposals, asked, near)
            asked += len(proposals)
            genomes += [p.genome for p in proposals]
    assert np.array_equal(genomes[:100], genomes[100:])


# --- populations -------------------------------------------------------------------------------


def members(population, rows):
    """Let these (value, gene) live."""
    for number, (value, gene) in enumerate(rows):
        genome = np.full(3, float(gene))
        population.tell(Feedback(None, genome, value, (value,), candidate=number, errors=(0.1,)))


def test_a_child_is_the_mean_of_two_by_fitness():
    """Of 0.2, 0.4 and 0.8, counted from the worst with a third of the range: 0.2, 0.4, 0.8."""
    options = GenomeSection(population=4, crossover=1.0, mutation=0.0)
    population = Genome(Problem(3, 1, HALF), options)
    members(population, [(0.2, 0.0), (0.4, 0.5), (0.8, 1.0)])
    proposals = population.ask(1)  # the start, and nobody around it
    population.tell(told(0, HALF, None))
    weights = {0.0: 0.2, 0.5: 0.4, 1.0: 0.8}
    means = [
        (fa * a + fb * b) / (fa + fb) for a, fa in weights.items() for b, fb in weights.items()
    ]
    seen = set()
    for ordinal in range(1, 60):
        (child,) = population.ask(1)
        distances = np.abs(np.array(means)[:, None] - child.genome)
        assert distances.max(axis=1).min() < 1e-12
        seen.add(round(float(child.genome[0]), 6))
        population.tell(told(ordinal, child.genome, None))
    assert proposals[0].genome.tolist() == HALF.tolist()
    assert seen == {round((0.4 * 0.5) / 0.6, 6), round(0.8 / 1.0, 6), round(1.0 / 1.2, 6)}


def test_parents_are_drawn_in_proportion_to_fitness():
    options = GenomeSection(population=4, crossover=0.0, mutation=0.0, sigma=1e-6)
    population = Genome(Problem(3, 1, HALF), options)
    members(population, [(-3.0, 0.1), (-2.0, 0.5), (-1.0, 0.9)])  # weights 2/3, 5/3, 8/3
    population.ask(1)
    population.tell(told(0, HALF, None))
    drawn = []
    for ordinal in range(1, 1200):
        (mutant,) = population.ask(1)  # a generation has one child at least
        drawn.append(round(float(np.median(mutant.genome)), 1))
        population.tell(told(ordinal, mutant.genome, None))
    shares = [drawn.count(gene) / len(drawn) for gene in (0.1, 0.5, 0.9)]
    assert shares == pytest.approx([2 / 15, 5 / 15, 8 / 15], abs=0.05)


def test_a_mutant_differs_in_some_genes_and_in_one_at_least():
    options = GenomeSection(gene_mutation=0.2, sigma=0.1)
    population = Genome(Problem(400, 1, np.full(400, 0.5)), options)
    changes = np.array([population._mutant(np.full(400, 0.5)) - 0.5 for _ in range(60)])
    differs = changes != 0.0
    assert differs.mean() == pytest.approx(0.2 + 0.8 / 400, abs=0.01)
    assert changes[differs].std() == pytest.approx(0.1, rel=0.05)
    still = Genome(Problem(5, 1, np.full(5, 0.5)), GenomeSection(gene_mutation=0.0))
    assert {(still._mutant(np.full(5, 0.5)) != 0.5).sum() for _ in range(20)} == {1}


def test_constraints_come_before_values_in_a_populations_fitness():
    population = Genome(Problem(3, 1, HALF), GenomeSection(population=4))
    for number, (value, missed) in enumerate([(0.9, 0.2), (0.5, 0.0), (0.7, 0.0), (0.1, 0.1)]):
        population.tell(Feedback(None, HALF, value, (value,), missed, number))
    assert population._fitness() == pytest.approx([0.3, 0.5, 0.7, 0.4])


def test_the_elite_stays_and_the_worst_of_a_tournament_leaves():
    options = GenomeSection(population=10, elite=0.3, tournament=3)
    population = Genome(Problem(3, 1, HALF), options)
    values = np.random.default_rng(2).permutation(60) / 60
    members(population, [(value, 0.5) for value in values])
    left = sorted(one.value for one in population.population)
    assert len(left) == 10
    assert left[-3:] == sorted(values)[-3:]
    # a tournament of all others is plain truncation
    strict = Genome(Problem(3, 1, HALF), GenomeSection(population=10, tournament=10))
    members(strict, [(value, 0.5) for value in values])
    assert sorted(one.value for one in strict.population) == sorted(values)[-10:]


def test_a_generation_is_a_part_and_begins_with_the_population():
    options = GenomeSection(population=4)
    population = Genome(Problem(3, 1, HALF, parts=16), options)
    exact = Feedback(None, HALF, -0.05, (-0.05,), candidate=7, errors=(0.0,))
    population.tell(exact)  # scored on all items before
    first = population.ask(3)
    assert {(p.part, p.again) for p in first} == {(0, None)}
    hear(population, first, 0, near)
    second = population.ask(4)
    assert [(p.part, p.again) for p in second[:3]] == [(1, 100), (1, 101), (1, 102)]
    assert (second[3].part, second[3].again) == (1, None)
    before = population.population[1].value
    population.tell(told(3, first[0].genome, 0.0, candidate=100))
    population.tell(told(4, first[1].genome, None, candidate=101))  # it fails on other items
    assert [one.candidate for one in population.population] == [7, 100, 102]
    assert population.population[1].value == pytest.approx(before / 2)
    assert population.population[1].scores == 2


def test_a_population_of_failures_begins_anew():
    population = Genome(Problem(3, 1, HALF), GenomeSection(population=4, spread=0.01))
    for ordinal in range(4):
        (proposal,) = population.ask(1)
        assert np.abs(proposal.genome - HALF).max() < 0.1
        population.tell(told(ordinal, proposal.genome, None))
    assert np.ptp([p.genome for p in population.ask(8)], axis=0).min() > 0.3


# --- noise -------------------------------------------------------------------------------------


def chance(genome):
    """Of an item being solved, at most .65; the optimum is off the start."""
    return float(np.clip(0.65 - 2.0 * ((genome - 0.3) ** 2).mean(), 0.0, 1.0))


def regret(name, batch, seed, *, items=48_000, whole=800, genes=5):
    """How far from .65 the first recommendation is, after so many scored items."""
    cls = CONTROLLERS.get(name)
    problem = Problem(genes, seed, np.full(genes, 0.5), parts=whole // batch)
    controller = cls(problem, parse(cls.section, {"kind": name}))
    rng, genomes = np.random.default_rng([seed, 99]), {}
    for ordinal in range(items // batch):
        (proposal,) = controller.ask(1)
        number = ordinal if proposal.again is None else proposal.again
        genome = genomes.setdefault(number, proposal.genome)
        value = rng.binomial(batch, chance(genome)) / batch
        error = math.sqrt(value * (1 - value) / (batch - 1) * (1 - batch / whole))
        controller.tell(told(ordinal, genome, value, candidate=number, error=error))
    return 0.65 - chance(controller.recommend()[0].genome)


@pytest.mark.parametrize("name", ["pso", "genome"])
def test_few_items_for_many_candidates_find_more_than_many_for_few(name):
    full, parts = ([regret(name, batch, seed) for seed in range(4)] for batch in (800, 50))
    assert np.mean(parts) < 0.75 * np.mean(full)
