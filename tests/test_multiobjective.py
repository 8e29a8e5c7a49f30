"""Controllers of several objectives against fronts that are known and definitions spelt out."""

import itertools
import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import BadInput
from evomerge.search.controllers import CONTROLLERS, Feedback, Problem, make_controller
from evomerge.search.controllers.como import local_bounds, uncrowded_improvement
from evomerge.search.pareto import hypervolume
from evomerge.sections import parse
from evomerge.testing import drive

SETUPS = {  # name, options, and how much of the front's area may be missing
    "nsga2": ("nsga2", {}, 0.09),
    "nsga3": ("nsga3", {}, 0.10),
    "tpe": ("tpe", {}, 0.04),
    "como": ("como", {"kernels": 4}, 0.09),
    "map_elites": ("map_elites", {}, 0.15),
    "cycleqd": ("map_elites", {"cyclic": True}, 0.07),
}
setups = pytest.mark.parametrize(("name", "options", "most"), SETUPS.values(), ids=SETUPS)
DIMENSION, SEEDS = 5, (1, 2, 3)
HERE, THERE = np.full(DIMENSION, 0.25), np.full(DIMENSION, 0.65)  # the best of each objective
TRUE = 5 / 6  # the area between (0, 0) and the front of `two_peaks`


def two_peaks(genome):
    """1 at an objective's own best, 0 at the other's; the Pareto set is the line between them."""
    squares = [((genome - best) ** 2).sum() for best in (HERE, THERE)]
    return tuple(1.0 - square / ((HERE - THERE) ** 2).sum() for square in squares)


def front(cut=math.inf):
    """The front of `two_peaks` where the first gene is at most `cut`, finely sampled.

    Beyond the cut, the first gene is kept on it, and the others go on along the line.
    """
    line = HERE + np.linspace(0.0, 1.0, 4001)[:, None] * (THERE - HERE)
    line[:, 0] = np.minimum(line[:, 0], cut)
    return np.array([two_peaks(genome) for genome in line])


def area(vectors):
    """The area between (0, 0) and what vectors dominate."""
    return hypervolume(np.reshape(vectors, (-1, 2)), np.zeros(2))


def search(name, options, seed, **more):
    """300 evaluations of `two_peaks`, two in flight."""
    setup = {"dimension": DIMENSION, "workers": 2, "score": two_peaks, "objectives": 2}
    return drive(name, 300, seed=seed, **setup, **more, **options)


def make(name, *, objectives=2, dimension=DIMENSION, seed=1, **options):
    problem = Problem(dimension, seed, np.full(dimension, 0.5), objectives)
    section = parse(CONTROLLERS.get(name).section, {"kind": name, **options})
    return make_controller(problem, section)


def foreign(genome, objectives, violation=0.0):
    return Feedback(None, genome, float(np.mean(objectives)), tuple(objectives), violation)


def test_the_area_below_the_front():
    """With x = a + t (b - a): the integral of 1 - (1 - t)^2 over 1 - t^2, 4/3 - 1/2."""
    assert np.isclose(area(front()), TRUE, atol=1e-3)
    assert area(front(0.35)) < TRUE - 0.05


@setups
def test_the_front_is_approached_and_random_search_is_beaten(name, options, most):
    found, random = (
        [area(search(n, o, seed)[1]) for seed in SEEDS]
        for n, o in ((name, options), ("random", {}))
    )
    assert max(found) < TRUE
    assert all(f > r for f, r in zip(found, random, strict=True))
    assert TRUE - np.mean(found) < most < 0.8 * (TRUE - np.mean(random))


@setups
def test_constraints_bend_the_front(name, options, most):
    """Where the first gene may not exceed 0.35, more is kept, and better, than at random."""

    def missed(genome):
        return max(0.0, float(genome[0]) - 0.35)

    def kept(name, options, seed):
        genomes, vectors = search(name, options, seed, violation=missed)
        return [v for g, v in zip(genomes, vectors, strict=True) if missed(g) == 0.0]

    found, random = (
        [kept(n, o, seed) for seed in SEEDS] for n, o in ((name, options), ("random", {}))
    )
    missing = [area(front(0.35)) - np.mean([area(v) for v in run]) for run in (found, random)]
    assert 0.0 < missing[0] < 0.7 * missing[1]
    assert all(len(f) > 1.1 * len(r) for f, r in zip(found, random, strict=True))


@setups
def test_the_start_comes_first_and_nothing_waits(name, options, most):
    proposals = make(name, **options).ask(150)
    assert len(proposals) == 150
    assert np.allclose(proposals[0].genome, 0.5)


@setups
def test_what_others_scored_is_learned_from(name, options, most):
    """Told good genomes in a corner, and worse ones elsewhere, the next ones are from there."""
    first = {"map_elites": {"initial": 1}, "como": {"sigma": 0.05}}.get(name, {})
    controller = make(name, **(options | first))
    rng = np.random.default_rng(3)
    for _ in range(30):
        bad, good = rng.random(DIMENSION), rng.uniform(0.7, 0.9, DIMENSION)
        controller.tell(foreign(bad, rng.uniform(0.0, 0.1, 2)))
        controller.tell(foreign(good, rng.uniform(0.9, 1.0, 2)))
    away = [np.abs(p.genome - 0.8).mean() for p in controller.ask(60)]
    share = np.mean(np.array(away) < 0.15)
    drawn = np.abs(np.random.default_rng(4).random((1000, DIMENSION)) - 0.8).mean(axis=1) < 0.15
    assert share > 0.3
    assert drawn.mean() < 0.05


def test_three_objectives():
    """More volume than at random, whose three bests are corners of a triangle."""
    bests = np.eye(4)[:3] * 0.5 + 0.25

    def score(genome):
        return tuple(1.0 - 2.0 * ((genome - best) ** 2).sum() for best in bests)

    for seed in SEEDS:
        volumes = {
            name: hypervolume(
                np.array(drive(name, 300, dimension=4, seed=seed, score=score, objectives=3)[1]),
                np.zeros(3),
            )
            for name in ("random", "nsga3", "como", "map_elites")
        }
        assert min(volumes, key=volumes.get) == "random"


# --- uncrowded hypervolume improvement -----------------------------------------------------

vectors = st.integers(1, 3).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=2, max_size=6)
)


@given(vectors)
@settings(deadline=None, derandomize=True)
def test_uhvi_is_what_its_definition_says(some):
    """Volume by counting unit cells; distance by trying every point of the coordinates' grid.

    The nearest point of the free region has in each objective the vector's own coordinate, the
    reference's, or one of the front, so that the grid of these has it.
    """
    (point, *others), reference = some, [1] * len(some[0])

    def free(z):  # in the closure of what no other dominates
        return min(z) >= 1 and not any(
            all(o > c for o, c in zip(s, z, strict=True)) for s in others
        )

    def covers(s, cell):
        return all(a >= c + 1 for a, c in zip(s, cell, strict=True))

    grid = itertools.product(*({1, *axis} for axis in zip(*some, strict=True)))
    expected = -min(math.dist(point, z) for z in grid if free(z))
    if expected == 0.0:
        cells = itertools.product(range(1, 4), repeat=len(point))
        expected = sum(covers(point, c) and not any(covers(s, c) for s in others) for c in cells)
    found = uncrowded_improvement(*(np.array(a, float) for a in ([point], others, reference)))
    assert np.allclose(found, [expected])


@given(vectors)
@settings(deadline=None, derandomize=True)
def test_local_bounds_are_the_corners_of_what_no_point_dominates(points):
    corners = local_bounds(np.array(points, float), np.ones(len(points[0])))
    for z in itertools.product(np.arange(0.5, 5.0), repeat=len(points[0])):
        free = min(z) >= 1 and not (z <= np.array(points)).all(axis=1).any()
        assert (corners <= z).all(axis=1).any() == free
    for a, b in itertools.permutations(corners.tolist(), 2):
        assert not all(x >= y for x, y in zip(a, b, strict=True))


def test_uhvi_of_one_objective_is_the_lead_over_the_best():
    found = uncrowded_improvement(np.array([[0.2], [0.9]]), np.array([[0.1], [0.5]]), np.zeros(1))
    assert np.allclose(found, [-0.3, 0.4])


# --- COMO-CMA-ES ---------------------------------------------------------------------------


def test_como_begins_at_what_adds_most_hypervolume():
    controller = make("como", kernels=3)
    genomes = np.random.default_rng(0).uniform(0.1, 0.9, (5, DIMENSION))
    for genome, vector in zip(genomes, ((0.2, 0.2), (1, 0), (0.1, 0.1), (0, 1)), strict=False):
        controller.tell(foreign(genome, vector))
    controller.tell(foreign(genomes[4], (2.0, 2.0), violation=0.1))
    begun = sorted(p.genome.tolist() for p in controller.ask(3)[1:])
    assert np.allclose(begun, sorted(genomes[[1, 3]].tolist()))


def on_the_plane(genome):
    """`two_peaks` of two genes; t from 0 to 1 on the line between them scores 1-t^2, 1-(1-t)^2."""
    squares = [((genome - best[:2]) ** 2).sum() for best in (HERE, THERE)]
    return tuple(1.0 - square / ((HERE[:2] - THERE[:2]) ** 2).sum() for square in squares)


def stairs(places):
    """The areas above (-0.1, -0.1) of points at (sets, n) increasing places t on the front."""
    widths = 1.1 - places**2
    heights = 1.1 - (1.0 - places) ** 2
    return (widths * np.diff(heights, axis=1, prepend=0.0)).sum(axis=1)


def test_como_kernels_spread_over_the_front_as_four_points_best_do():
    """The last two rounds have the area of the best of all sets of four places, tried in turn."""
    places = np.array(list(itertools.combinations(np.linspace(0.0, 1.0, 41), 4)))
    best = stairs(places).max()
    for seed in SEEDS:
        setup = {"dimension": 2, "objectives": 2, "score": on_the_plane, "seed": seed}
        vectors = np.array(drive("como", 1000, kernels=4, **setup)[1])
        assert abs(hypervolume(vectors[-56:], np.full(2, -0.1)) - best) < 0.006


def test_como_leaves_in_the_front_what_a_kernel_converged_to():
    """So one kernel goes for the middle, then for what adds most to that, then to both."""
    grid, found = np.linspace(0.0, 1.0, 2001), np.empty(0)
    for _ in range(3):
        tried = [np.sort(np.append(found, place)) for place in grid]
        found = tried[np.argmax(stairs(np.array(tried)))]
    setup = {"dimension": 2, "objectives": 2, "score": on_the_plane}
    vectors = np.array(drive("como", 1200, kernels=1, **setup)[1])
    for place in found:
        away = np.abs(vectors - [1.0 - place**2, 1.0 - (1.0 - place) ** 2]).max(axis=1)
        assert (away < 2e-3).sum() > 20


def test_como_takes_no_mean_that_misses_constraints_into_the_front():
    """Whatever such a mean scores, the other kernel learns the same."""

    def proposed(score, violation):
        controller = make("como", kernels=2, population=20)
        for ordinal in range(44):  # two means, 20 points and the mean of one kernel, of the other
            genome = controller.ask(1)[0].genome
            told = Feedback(ordinal, genome, 0.0, two_peaks(genome))
            if ordinal == 22:
                told = Feedback(ordinal, genome, 0.0, (score, score), violation)
            controller.tell(told)
        return genome.tolist()

    assert proposed(0.9, 0.1) == proposed(0.4, 0.1)
    assert proposed(0.9, 0.0) != proposed(0.4, 0.0)


def test_como_with_one_objective_converges_and_then_looks_elsewhere():
    genomes, values = drive("como", 1500, dimension=2)
    assert max(values) > -1e-8
    assert np.ptp(genomes[-500:], axis=0).min() > 0.3


# --- MAP-Elites ----------------------------------------------------------------------------


def quality_and_cell(told, focus):
    """By counting edges of the bins below; `focus` is None where there is one archive."""
    edges = np.linspace(0.0, 1.25, 11)[1:-1]
    bins = [sum(v >= edge for edge in edges) for v in told.objectives]
    if focus is None:
        return told.value, tuple(bins)
    return told.objectives[focus], tuple(b for i, b in enumerate(bins) if i != focus)


@pytest.mark.parametrize("cyclic", [False, True])
def test_every_cell_holds_the_best_that_was_told_of_it(cyclic):
    controller = make("map_elites", cyclic=cyclic)
    rng = np.random.default_rng(0)
    heard, flying = [], []
    for _ in range(30):
        heard.append(foreign(rng.random(DIMENSION), rng.normal(0.5, 0.5, 2), rng.random()))
    heard.append(Feedback(None, None, 9.0, (9.0, 9.0)))
    for told in heard:
        controller.tell(told)
    for ordinal in range(400):
        flying += [(ordinal, p.genome) for p in controller.ask(1)]
        if len(flying) == 4:
            number, genome = flying.pop(rng.integers(4))
            vector = tuple(two_peaks(genome))
            told = Feedback(
                number, genome, float(np.mean(vector)), vector, max(0.0, genome[1] - 0.5)
            )
            heard.append(Feedback(number, genome, None, None) if number % 9 == 0 else told)
            controller.tell(heard[-1])
    for archive, focus in zip(controller.archives, (0, 1) if cyclic else (None,), strict=True):
        best = {}
        for told in heard:
            if told.genome is not None and told.objectives is not None:
                quality, cell = quality_and_cell(told, focus)
                best.setdefault(cell, []).append((told.violation, -quality, told))
        assert archive.keys() == best.keys()
        for cell, elite in archive.items():
            violation, loss, told = min(best[cell], key=lambda entry: entry[:2])
            assert (elite.violation, -elite.quality) == (violation, loss)
            assert np.array_equal(elite.genome, told.genome)
        assert any(e.violation > 0.0 for e in archive.values())
        assert len(archive) > 5


@pytest.mark.parametrize("cyclic", [False, True])
def test_children_lie_around_a_parent_and_along_the_line_to_another(cyclic):
    """Both noises on gene 0, on which two elites differ by 0.4; on gene 1 its own only."""
    controller = make("map_elites", cyclic=cyclic, initial=1, dimension=2)
    for genome, vector in (((0.3, 0.5), (1.0, 0.0)), ((0.7, 0.5), (0.0, 1.0))):
        controller.tell(foreign(np.array(genome), vector))
    children = np.array([p.genome for p in controller.ask(8001)[1:]])
    assert np.isclose(children[:, 1].std(), 0.01, rtol=0.05)
    near = np.abs(children[:, 0, None] - [0.3, 0.7]).min(axis=1)
    differ = 1.0 if cyclic else 0.5  # how often the other parent is not the same one
    expected = math.sqrt(0.01**2 + differ * (0.2 * 0.4) ** 2)
    assert np.isclose(math.sqrt((near**2).mean()), expected, rtol=0.05)


def test_cyclic_archives_take_turns():
    """Of two that share every bin, each archive keeps the one that is better in its focus."""
    controller = make("map_elites", cyclic=True, initial=1, sigma_iso=1e-4)
    for gene, vector in ((0.2, (0.06, 0.02)), (0.8, (0.02, 0.06))):
        controller.tell(foreign(np.full(DIMENSION, gene), vector))
    genes = [p.genome[0] for p in controller.ask(9)[1:]]
    assert np.allclose(genes, [0.8, 0.2] * 4, atol=0.01)


def test_cyclic_parents_are_drawn_by_their_scores():
    """The chance of a first parent is the product of 0.5 + 0.8 * score, each from 0 to 1."""
    controller = make("map_elites", cyclic=True, initial=1, sigma_iso=1e-4, sigma_line=0.0)
    told = [(0.1, (1.2, 0.0)), (0.5, (0.0, 0.5)), (0.9, (0.6, 1.0))]
    for gene, vector in told:
        controller.tell(foreign(np.full(DIMENSION, gene), vector))
    genes = np.array([p.genome[0] for p in controller.ask(6001)[1:]])
    drawn = [np.mean(np.abs(genes - gene) < 0.01) for gene, _ in told]
    expected = np.array([1.3 * 0.5, 0.5 * 0.9, 0.9 * 1.3])
    assert np.allclose(drawn, expected / expected.sum(), atol=0.02)


# --- Optuna's samplers ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_nsga_proposes_what_optunas_own_loop_does(name):
    """To the last bit, over six generations, with failures and constraints."""
    controller = make(name, population=10)
    options = {
        "population_size": 10,
        "seed": int(np.random.SeedSequence(1).generate_state(1)[0]),
        "crossover": optuna.samplers.nsgaii.SBXCrossover(),
        "mutation": optuna.samplers.nsgaii.PolynomialMutation(),
    }
    if name == "nsga2":
        sampler = optuna.samplers.NSGAIISampler(**options)
    else:  # ten directions for two objectives
        sampler = optuna.samplers.NSGAIIISampler(dividing_parameter=9, **options)
    study = optuna.create_study(sampler=sampler, directions=["maximize"] * 2)
    genes = [f"gene{i:06d}" for i in range(DIMENSION)]
    distributions = dict.fromkeys(genes, optuna.distributions.FloatDistribution(0.0, 1.0))
    study.enqueue_trial(dict.fromkeys(genes, 0.5))
    for ordinal in range(65):
        trial = study.ask(distributions)
        if ordinal == 0:  # which Optuna leaves out of its generations
            sampler.get_trial_generation(study, study.trials[0])
        genome = controller.ask(1)[0].genome
        assert genome.tolist() == [trial.params[gene] for gene in genes]
        if ordinal % 7 == 3:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            controller.tell(Feedback(ordinal, genome, None, None))
            continue
        vector, violation = two_peaks(genome), max(0.0, genome[0] - 0.5)
        if violation > 0.0:
            trial.set_constraint("any", violation)
        study.tell(trial, vector)
        controller.tell(Feedback(ordinal, genome, float(np.mean(vector)), vector, violation))


def test_tpe_forgets_what_is_neither_new_nor_best():
    """Of 40 outcomes with a memory of 40, the first ten leave a trace only if they are good."""

    def proposed(memory, seed, lift):
        controller = make("tpe", memory=memory)
        early, late = np.random.default_rng(seed), np.random.default_rng(1)
        for i in range(40):
            genome = (early if i < 10 else late).random(DIMENSION)
            controller.tell(foreign(genome, np.array(two_peaks(genome)) + lift * (i < 10)))
        return np.array([p.genome for p in controller.ask(20)])

    assert np.array_equal(proposed(40, 2, -5.0), proposed(40, 3, -5.0))
    assert not np.array_equal(proposed(40, 2, 5.0), proposed(40, 3, 5.0))
    assert not np.array_equal(proposed(41, 2, -5.0), proposed(41, 3, -5.0))


def test_tpe_still_learns_when_it_forgets():
    """Also from candidates that were in flight when it did, and past failures."""

    def score(genome):
        return None if int(genome[0] * 1e6) % 7 == 0 else two_peaks(genome)

    def found(name, **options):
        vectors = drive(name, 200, workers=6, score=score, objectives=2, **options)[1]
        return area([v for v in vectors if v is not None])

    assert found("tpe", memory=40) > found("random") + 0.05


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "tpe"])
def test_optuna_is_silent_and_as_it_was(name, capfd, recwarn):
    before = optuna.logging.get_verbosity()
    make(name).ask(3)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "nsga2",
            {"population": 1},
            "population: 1 is out of range; write a whole",
        ),
        ("nsga3", {"population": 0}, "population: 0 is out of range"),
        ("tpe", {"startup": 0}, "startup: 0 is out of range"),
        ("tpe", {"memory": 39}, "memory: 39 is out of range; write a whole number of at least 40"),
        ("como", {"kernels": 0}, "kernels: 0 is out of range"),
        ("como", {"population": 2}, "population: 2 is out of range"),
        (
            "como",
            {"sigma": 0.0},
            "sigma: 0.0 is out of range; write a number above",
        ),
        ("map_elites", {"initial": 0}, "initial: 0 is out of range"),
        ("map_elites", {"bins": 1}, "bins: 1 is out of range"),
        ("map_elites", {"low": 1.0, "high": 1.0}, "high: 1.0 is not above low, 1.0"),
        (
            "map_elites",
            {"sigma_iso": 0.0},
            "sigma_iso: 0.0 is out of range; write a",
        ),
        ("map_elites", {"sigma_line": -1.0}, "sigma_line: -1.0 is out of range"),
        ("map_elites", {"cyclic": True, "objectives": 1}, "cyclic: there is one objective only"),
    ],
)
def test_options_out_of_range_are_refused(name, options, said):
    objectives = options.pop("objectives", 2)
    try:
        section = parse(CONTROLLERS.get(name).section, {"kind": name, **options})
        faults = list(section.faults(objectives))
    except BadInput as error:
        faults = error.faults
    (fault,) = faults
    assert str(fault).startswith(said)
