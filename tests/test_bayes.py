"""Bayesian optimization: its processes in closed form, its proposals where they can be foretold."""

import importlib.util
import math
from importlib import metadata

import numpy as np
import pytest
from scipy import stats

from evomerge.errors import BadInput
from evomerge.search.controllers import Feedback, Problem
from evomerge.search.controllers.bayes import Bayes, BayesSection
from evomerge.search.controllers.cmaes import CmaEs, CmaEsSection
from evomerge.search.controllers.random import RandomSearch, RandomSection
from evomerge.search.pareto import hypervolume
from evomerge.search.processes import Process, fit_process, gaussian_process
from evomerge.search.surrogate import Surrogate, Told, beaten_by, snapped
from evomerge.sections import parse

torch = pytest.importorskip("torch")
pytest.importorskip("botorch")
pytestmark = pytest.mark.filterwarnings("ignore:Data .outcome observations. is not standardized")


def make(dimension=3, *, objectives=1, levels=(), steps=None, parts=1, **options):
    start, seed = options.pop("start", 0.5), options.pop("seed", 1)
    begin = np.full(dimension, start)
    problem = Problem(dimension, seed, begin, objectives, levels, steps, parts)
    return Bayes(problem, parse(BayesSection, {"kind": "bayes", **options}))


def foreign(genome, *objectives, errors=None, violation=0.0):
    value = float(np.mean(objectives))
    return Feedback(None, np.asarray(genome), value, objectives, violation, errors=errors)


def bowl(genome):
    return -float(((genome - 0.3) ** 2).sum())


def taught(score=bowl, *, count=14, dimension=3, **more):
    """A controller that was told of points drawn at random, whose next ask is its model's."""
    controller = make(dimension, startup=1, **more)
    for genome in np.random.default_rng(5).random((count, dimension)):
        controller.tell(foreign(genome, *np.atleast_1d(score(genome)).tolist()))
    controller.tell(Feedback(0, None, *_outcome(score(controller.ask(1)[0].genome))))
    return controller


def _outcome(found):
    """The value and the objectives of what a score gave."""
    if found is None:
        return None, None
    vector = tuple(np.atleast_1d(found).tolist())
    return float(np.mean(vector)), vector


def search(controller, score, evaluations, errors=None):
    """One in flight; returns the genomes."""
    genomes = []
    for ordinal in range(evaluations):
        genome = controller.ask(1)[0].genome
        genomes.append(genome)
        controller.tell(Feedback(ordinal, genome, *_outcome(score(genome)), errors=errors))
    return np.array(genomes)


# --- processes -----------------------------------------------------------------------------


def kernel(a, b, lengths):
    return np.exp(-0.5 * (((a[:, None] - b[None]) / lengths) ** 2).sum(axis=2))


def test_the_posterior_is_the_textbook_s():
    """Rasmussen & Williams 2006, equations 2.25 and 2.26, with an output of its own each."""
    rng = np.random.default_rng(0)
    x, y, variances = rng.random((3, 9, 2))
    at = rng.random((4, 2))
    processes = [Process(np.array([0.3, 0.7]), 0.01, 0.4), Process(np.array([0.5, 0.1]), 0.2, -1.0)]
    posterior = gaussian_process(x, y, variances, processes).posterior(torch.tensor(at))
    for i, (lengths, noise, mean) in enumerate(processes):
        gain = kernel(at, x, lengths) @ np.linalg.inv(
            kernel(x, x, lengths) + np.diag(variances[:, i] + noise)
        )
        expected = mean + gain @ (y[:, i] - mean)
        assert np.allclose(posterior.mean[:, i], expected)
        left = kernel(at, at, lengths) - gain @ kernel(x, at, lengths)
        assert np.allclose(posterior.variance[:, i], np.diag(left))


def test_the_fit_is_the_highest_density():
    """Of the likelihood by scipy, and priors as they are written, no step up is left."""
    rng = np.random.default_rng(2)
    x, steps = rng.random((25, 3)), np.array([0.5, 1.0, 1.5])
    variances = rng.uniform(0.0, 0.1, 25)
    y = np.sin(4 * x[:, 0]) + x[:, 1] + np.sqrt(variances + 0.02) * rng.standard_normal(25)
    usual = math.exp(math.sqrt(2.0) - 3.0) * math.sqrt(3)

    def density(lengths, noise):
        own = np.log(lengths / steps / usual)
        # the length that all share is where it is likeliest, given the products with their own
        shared = own.mean() * 3 / 0.3**2 / (3 / 0.3**2 + 1)
        covariance = kernel(x, x, lengths) + np.diag(variances + noise)
        inverse = np.linalg.inv(covariance)
        mean = (inverse @ y).sum() / inverse.sum()
        found = stats.multivariate_normal(np.full(25, mean), covariance).logpdf(y)
        found += stats.norm(0.0, 0.3).logpdf(own - shared).sum() + stats.norm.logpdf(shared)
        return found + stats.lognorm(1.0, scale=math.exp(-4.0)).logpdf(noise)

    fitted = fit_process(x, y, variances, steps)
    best = density(fitted.lengths, fitted.noise)
    for gene in range(3):
        for factor in (0.9, 1.1):
            other = fitted.lengths * np.where(np.arange(3) == gene, factor, 1.0)
            assert density(other, fitted.noise) < best + 1e-4
    for factor in (0.8, 1.25):
        assert density(fitted.lengths, fitted.noise * factor) < best + 1e-4


def test_lengths_follow_the_steps_until_there_is_data():
    steps = np.array([0.25, 0.5, 1.0, 2.25])
    x = np.full((2, 4), 0.5) + np.array([[0.0], [1e-3]])
    lengths = fit_process(x, np.array([-0.5, 0.5]), np.ones(2), steps).lengths
    assert np.allclose(lengths / steps, (lengths / steps)[0], rtol=1e-2)
    rng = np.random.default_rng(0)
    x = rng.random((60, 4))
    y = np.sin(12 * x[:, 3]) / 0.7  # the last one changes most, whatever was expected of it
    assert np.argmin(fit_process(x, y, np.zeros(60), steps).lengths / steps) == 3


def test_noise_that_is_told_counts_by_its_variance():
    """Of a constant, values are averaged by their precision."""
    x, y, variances = np.array([[0.4], [0.6]]), np.array([[0.0], [1.0]]), np.array([[0.1], [0.3]])
    model = gaussian_process(x, y, variances, [Process(np.array([1e4]), 1e-9, 0.0)])
    weights = np.array([1.0, 1 / 0.1, 1 / 0.3])  # 1: of the prior, whose mean is 0
    found = float(model.posterior(torch.tensor([[0.5]], dtype=torch.float64)).mean)
    assert np.isclose(found, weights @ [0.0, 0.0, 1.0] / weights.sum(), atol=1e-6)


def test_an_estimate_without_an_error_is_no_certainty():
    """A part of which all items were right: its error is the others', in good part."""
    told = [Told(np.array([g]), (g,), (0.1,), 0.0, True) for g in np.linspace(0, 1, 8)]
    told.append(Told(np.array([0.5]), (3.0,), (0.0,), 0.0, True))
    means = []
    for entries in ([*told[:-1], told[-1]._replace(is_estimate=False)], told):
        process = [Process(np.array([0.2]), 1e-4, 0.0)]
        model = Surrogate(entries, np.ones(1), np.zeros(1, int), process)
        means.append(model._posterior(np.array([[0.5]])).item())
    assert means[0] > means[1] + 0.1


def test_beaten_by_counts_and_snapped_rounds_to_middles():
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, 4, (20, 2)).astype(float)
    assert beaten_by(vectors).tolist() == [sum((o > v).all() for o in vectors) for v in vectors]
    points = snapped(rng.random((200, 2)), np.array([3, 0]))
    assert np.allclose(np.unique(points[:, 0]), [1 / 6, 0.5, 5 / 6])
    assert len(np.unique(points[:, 1])) == 200


# --- what is proposed ----------------------------------------------------------------------


def test_it_begins_at_the_start_then_spreads_and_what_was_told_before_counts():
    controller = make(4, start=0.25)
    first = np.array([p.genome for p in controller.ask(12)])
    assert first[0].tolist() == [0.25] * 4
    assert first[1::2].max() > 0.9 and first[1::2].min() < 0.1
    halves = first[2::2]
    assert halves.min() >= 0.125 and halves.max() <= 0.625
    nearer = taught(dimension=4).ask(1)[0].genome
    assert abs(nearer - 0.3).max() < 0.15


def test_candidates_in_flight_are_kept_clear_of():
    genomes = np.array([p.genome for p in taught().ask(4)])
    apart = [np.abs(a - b).max() for i, a in enumerate(genomes) for b in genomes[:i]]
    assert min(apart) > 0.02


def test_each_candidate_has_a_part_of_its_own():
    assert [p.part for p in taught(parts=3).ask(5)] == [1, 2, 3, 4, 5]


def test_a_lucky_value_is_not_chased_if_its_error_is_known():
    """Far from the optimum, one candidate scores best by chance."""
    lucky, found = np.array([0.9, 0.9, 0.9]), []
    for error in (0.001, 1.5):
        controller = make(startup=1)
        for genome in np.random.default_rng(3).random((25, 3)):
            controller.tell(foreign(genome, bowl(genome), errors=(0.01,)))
        controller.tell(foreign(lucky, 0.5, errors=(error,)))
        found.append(np.abs(controller.recommend()[0].genome - lucky).max())
    assert found[0] < 0.1 < 0.4 < found[1]


def test_a_region_that_fails_is_left():
    """Beyond 0.5 all do, and hardly any is tried any more."""
    genomes = search(make(), lambda g: None if g[0] > 0.5 else bowl(g), 26)
    failed = genomes[:, 0] > 0.5
    assert failed[12:].sum() <= 3
    assert max(bowl(g) for g in genomes[~failed]) > -1e-3


def test_what_fails_says_nothing_of_the_rest():
    """The optimum lies beyond; what is near it, and does not fail, is found as well as ever."""
    genomes = search(make(), lambda g: None if g[0] < 0.4 else bowl(g), 26)
    assert max(bowl(g) for g in genomes if g[0] >= 0.4) > -0.03  # -0.01 is the best


def test_where_all_miss_a_constraint_less_is_sought():
    controller = make(startup=1)
    missed = []
    for ordinal in range(25):
        genome = controller.ask(1)[0].genome
        missed.append(1.0 + genome[0])
        vector = (float(genome[1]),)
        controller.tell(Feedback(ordinal, genome, vector[0], vector, missed[-1]))
    assert np.mean(missed[-8:]) < 1.25 < np.mean(missed[:8])


def test_genes_with_levels_have_their_middles_proposed():
    def score(genome):
        return -abs(genome[0] - 5.5 / 8) - abs(genome[1] - 0.75) - (genome[2] - 0.4) ** 2

    genomes = search(make(levels=(8, 2, 0)), score, 25)[1:]
    assert np.allclose((genomes[:, 0] * 8) % 1, 0.5) and np.allclose((genomes[:, 1] * 2) % 1, 0.5)
    assert max(score(g) for g in genomes) > -0.03
    only = search(make(levels=(3, 3, 3)), lambda genome: 1.0, 16)
    assert set(np.unique(only[1:])) <= {1 / 6, 0.5, 5 / 6}


# --- how good it is ------------------------------------------------------------------------


def sensitive(genome):
    """Twelve genes of which some matter sixteen times as much as others."""
    scales = 4.0 ** np.linspace(-1, 1, 12)
    return -float((scales * (genome - np.linspace(0.3, 0.6, 12)) ** 2).sum())


def test_within_48_candidates_it_is_better_than_cmaes_and_random_search():
    makers = {
        "bayes": lambda problem: Bayes(problem, BayesSection()),
        "cmaes": lambda problem: CmaEs(problem, CmaEsSection()),
        "random": lambda problem: RandomSearch(problem, RandomSection()),
    }
    best = {}
    for name, maker in makers.items():
        problems = [Problem(12, seed, np.full(12, 0.5)) for seed in range(5)]
        found = [search(maker(problem), sensitive, 48) for problem in problems]
        best[name] = [max(map(sensitive, genomes)) for genomes in found]
    for other in ("cmaes", "random"):
        assert all(a > b for a, b in zip(best["bayes"], best[other], strict=True))
    assert np.median(best["bayes"]) > 0.2 * np.median(best["cmaes"])  # both are below 0


def test_what_it_recommends_of_noisy_scores_is_better_than_the_best_of_them():
    """An accuracy over 25 items, a part each."""
    recommended, luckiest = [], []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        controller = make(6, parts=16, seed=seed)
        genomes, scores = [], []
        for ordinal in range(40):
            genome = controller.ask(1)[0].genome
            score = rng.binomial(25, right(genome)) / 25
            error = math.sqrt(score * (1.0 - score) / 24)
            controller.tell(Feedback(ordinal, genome, score, (score,), errors=(error,)))
            genomes.append(genome)
            scores.append(score)
        recommended.append(right(controller.recommend()[0].genome))
        luckiest.append(right(genomes[int(np.argmax(scores))]))
    assert np.mean(recommended) > np.mean(luckiest)
    assert min(recommended) > 0.65  # of 0.8 at most


def right(genome):
    return 0.8 / (1.0 + 3.0 * float(((genome - 0.3) ** 2).sum()))


def test_the_front_has_more_hypervolume_than_at_random():
    def two(genome):
        return tuple(1.0 - 6.0 * float(((genome - at) ** 2).sum()) for at in (0.3, 0.6))

    for seed in (1, 2):
        problem = Problem(4, seed, np.full(4, 0.5), 2)
        ours, random = Bayes(problem, BayesSection()), RandomSearch(problem, RandomSection())
        volumes = [
            hypervolume(np.array([two(g) for g in search(controller, two, 30)]), np.zeros(2))
            for controller in (ours, random)
        ]
        assert volumes[0] > max(volumes[1] + 0.1, 0.85 * FRONT)


def _area(ends):
    """The area below the front of two bowls whose bests are `ends` apart, squared and scaled."""
    t = np.linspace(0.0, 1.0, 20001)
    first, second = 1.0 - ends * t**2, 1.0 - ends * (1.0 - t) ** 2
    inside = (first > 0) & (second > 0)
    return hypervolume(np.stack([first, second], axis=1)[inside], np.zeros(2))


FRONT = _area(6.0 * 4 * 0.3**2)


# --- recommendations, and manners ----------------------------------------------------------


def test_recommendations_are_the_front_of_the_means_the_optimum_first():
    controller = taught(lambda g: (bowl(g), -float(((g - 0.6) ** 2).sum())), objectives=2)
    first, *told = controller.recommend()
    assert first.label == "optimum of the model" and np.abs(first.genome - 0.45).max() < 0.1
    assert 0 < len(told) < 8 and {r.label for r in told} == {"told"}
    vectors = np.array([(bowl(r.genome), -((r.genome - 0.6) ** 2).sum()) for r in told])
    assert beaten_by(vectors).tolist() == [0] * len(told)


def test_whoever_misses_a_constraint_is_not_recommended():
    controller = make(startup=1)
    for genome in np.random.default_rng(0).random((20, 3)):
        controller.tell(foreign(genome, bowl(genome), violation=max(0.0, 0.5 - genome[0])))
    genomes = np.array([r.genome for r in controller.recommend()])
    assert genomes[1:, 0].min() >= 0.5 and genomes[0, 0] > 0.4


def test_there_is_nothing_to_recommend_of_failures():
    controller = make()
    for ordinal, proposal in enumerate(controller.ask(5)):
        controller.tell(Feedback(ordinal, proposal.genome, None, None))
    assert controller.recommend() == []


def test_recommending_and_asking_leave_all_as_it_was():
    """The next proposal, the generators of torch and numpy, threads and settings."""
    from botorch.acquisition.multi_objective import logei

    def two(genome):
        return bowl(genome), float(genome[0])

    plain, asked = taught(two, objectives=2), taught(two, objectives=2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    before = torch.get_rng_state(), repr(np.random.get_state(legacy=False)), logei._load_attempted
    first, again = asked.recommend(), asked.recommend()
    assert all(np.array_equal(a.genome, b.genome) for a, b in zip(first, again, strict=True))
    assert np.array_equal(plain.ask(1)[0].genome, asked.ask(1)[0].genome)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (repr(np.random.get_state(legacy=False)), logei._load_attempted)
    assert torch.get_num_threads() == threads


def test_botorch_s_compiled_kernel_can_be_kept_out():
    """`_alone` leans on these two names; without them a replay would hang on a compiler."""
    from botorch.acquisition.multi_objective import logei

    for name in ("_C", "_load_attempted", "_try_load_fused_kernel"):
        assert hasattr(logei, name), f"botorch {metadata.version('botorch')}: logei.{name} is gone"


def test_it_learns_from_no_more_than_its_memory():
    controller = make(startup=1, memory=40)
    for genome in np.random.default_rng(0).random((200, 3)):
        controller.tell(foreign(genome, bowl(genome)))
    values = sorted((t.objectives[0] for t in controller._told), reverse=True)
    assert 20 < len(controller._told) <= 40
    assert values[0] > -0.03  # the best are among them


def test_without_botorch_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "botorch" else find(name)
    )
    section = parse(BayesSection, {"kind": "bayes"})
    (fault,) = section.faults(1)
    assert str(fault) == (
        'kind: bayes needs BoTorch, which is not installed; run pip install "evomerge[bayes]"'
    )
    with pytest.raises(BadInput, match=r"evomerge\[bayes\]"):
        Bayes(Problem(2, 1, np.full(2, 0.5)), section)


@pytest.mark.parametrize(("option", "value"), [("startup", 0), ("memory", 39)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(BadInput, match=f"{option}: {value} is out of range"):
        parse(BayesSection, {"kind": "bayes", option: value})
