"""Every registered merge method, controller and space passes the shipped laws."""

import importlib

import numpy as np
import pytest

from evomerge.errors import BadInput
from evomerge.merging.methods import METHODS
from evomerge.search.controllers import CONTROLLERS, Feedback, Problem
from evomerge.search.controllers.cmaes import CmaEs, CmaEsSection
from evomerge.sections import parse
from evomerge.testing import controller_laws, drive, method_laws


@pytest.mark.parametrize("law", method_laws, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", [n for n, o in METHODS.all().items() if o.reads != "texts"])
def test_merge_method(name, law):
    assert law(name) is None


@pytest.mark.parametrize("law", controller_laws, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", CONTROLLERS.all())
def test_controller(name, law):
    assert law(name) is None


def test_random_search_fails_the_law_of_improvement(monkeypatch):
    from evomerge.search.controllers.random import RandomSearch
    from evomerge.testing.controllers import law_improves_on_a_sphere

    monkeypatch.setattr(RandomSearch, "learns", True)
    with pytest.raises(AssertionError):
        law_improves_on_a_sphere("random")


OWN = """
from typing import Literal
import numpy as np
from evomerge.search.controllers import Controller, ControllerSection, Proposal, controller
from evomerge.sections import Number, option

class CornersSection(ControllerSection):
    kind: Literal["corners"] = "corners"
    {name}: Number = option("from the corner", {value})

@controller(CornersSection)
class Corners(Controller):
    learns = False
    def __init__(self, problem, options):
        self._rng, self._dimension = np.random.default_rng(problem.seed), problem.dimension
        self._far = options.{name}
    def ask(self, n):
        draws = self._rng.integers(0, 2, (n, self._dimension)) * (1 - 2 * self._far) + self._far
        return [Proposal(draw + 0.01 * self._rng.random(self._dimension)) for draw in draws]
    def tell(self, feedback):
        pass
"""


def test_a_controller_of_ones_own_is_known_when_it_is_imported(tmp_path, monkeypatch):
    """Also when plans were read before, and anew when it is changed; laws find its module."""
    from evomerge.config.schema import StageSection, json_schema
    from evomerge.config.validate import checked_plan
    from evomerge.testing.campaigns import example_mapping
    from evomerge.testing.controllers import law_replays_in_another_process

    def kind_of(**options):
        return checked_plan(example_mapping(controller={"kind": "corners", **options})).controller

    with pytest.raises(BadInput, match="there is no controller 'corners'"):
        kind_of()
    before = dict(CONTROLLERS._entries)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "corners_of_mine.py"
    try:
        file.write_text(OWN.format(name="far", value=0.1))
        module = importlib.import_module("corners_of_mine")
        assert kind_of(far=0.2).far == 0.2
        file.write_text(OWN.format(name="distance", value=0.25))
        importlib.invalidate_caches()
        importlib.reload(module)
        assert kind_of().distance == 0.25
        with pytest.raises(BadInput, match=r"controller\.far: unknown key 'far'"):
            kind_of(far=0.2)
        stage = {"name": "first", "space": example_mapping()["space"], "budget": {"evaluations": 1}}
        assert parse(StageSection, stage | {"controller": {"kind": "corners"}}).controller.kind
        assert "CornersSection" in json_schema()["$defs"]
        law_replays_in_another_process("corners")
        with pytest.raises(ValueError, match="two controllers are called 'corners'"):
            CONTROLLERS.add("corners", CmaEs)
    finally:
        CONTROLLERS._entries.clear()
        CONTROLLERS._entries.update(before)
    with pytest.raises(BadInput, match="there is no controller 'corners'"):
        kind_of()


def test_the_registries_are_not_empty():
    assert {"linear", "task_arithmetic", "ties", "dare_ties", "slerp"} <= set(METHODS.all())
    assert {"cmaes", "random"} <= set(CONTROLLERS.all())


def test_cmaes_converges_where_random_search_does_not():
    """On a 5-dimensional sphere within 600 evaluations: linear convergence, or none."""
    best = {n: max(v for v in drive(n, 600)[1]) for n in ("cmaes", "random")}
    assert best["cmaes"] > -1e-6
    assert best["random"] < -1e-4


def test_cmaes_finds_an_optimum_on_the_bound():
    _, values = drive("cmaes", 900, score=lambda g: -float(((g - 1.0) ** 2).sum()))
    assert max(values) > -1e-4


def test_cmaes_is_no_worse_than_pycmas_own_loop():
    """An ill-conditioned ellipsoid: the same evaluations, the same order of magnitude."""
    import cma

    scales = 10.0 ** np.linspace(0, 3, 5)

    def loss(x):
        return float((scales * (np.asarray(x) - 0.3) ** 2).sum())

    ours, theirs = [], []
    for seed in range(1, 6):
        genomes, _ = drive("cmaes", 800, seed=seed, score=lambda g: -loss(g))
        ours.append(min(map(loss, genomes)))
        options = {"bounds": [0, 1], "verbose": -9, "seed": seed, "maxfevals": 800, "tolfun": 0}
        es = cma.CMAEvolutionStrategy([0.5] * 5, 0.2, options)
        es.optimize(loss)
        theirs.append(es.result.fbest)
    assert np.median(np.log10(ours)) < np.median(np.log10(theirs)) + 2.0


def test_cmaes_widens_and_restarts_on_a_plateau():
    controller = CmaEs(Problem(4, 1, np.full(4, 0.5)), CmaEsSection(population=5, sigma=0.05))
    genomes = []
    for ordinal in range(300):
        (proposal,) = controller.ask(1)
        genome = proposal.genome
        genomes.append(genome)
        controller.tell(Feedback(ordinal, genome, 1.0, (1.0,)))
    spread = [np.std(genomes[i : i + 10], axis=0).mean() for i in (0, 40)]  # before a restart
    assert spread[1] > 2 * spread[0]
    assert np.ptp(np.array(genomes), axis=0).min() > 0.6  # it has been all over the box


def test_cmaes_failures_rank_below_any_score():
    """A half-space that fails pushes the search out of it."""
    _, values = drive("cmaes", 200, score=lambda g: None if g[0] > 0.45 else float(g[1]) - 1e6)
    failed = [v is None for v in values]
    assert sum(failed[-50:]) < sum(failed[:50])


def test_cmaes_keeps_trying_the_next_levels():
    """Where a gene has eight levels and the best is at a border, neighbours go on being tried."""
    worth = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6])

    def score(genome):
        return worth[min(int(genome[0] * 8), 7)] - float(((genome[1:] - 0.3) ** 2).sum())

    others = {}
    for levels in ((), (8, 0, 0, 0, 0)):
        late = [drive("cmaes", 500, seed=s, score=score, levels=levels)[0][-150:] for s in range(5)]
        others[levels] = np.mean([(genomes[:, 0] * 8).astype(int) != 5 for genomes in late])
    assert others[8, 0, 0, 0, 0] > 0.03 > others[()]
