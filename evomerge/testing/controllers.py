"""The laws that every controller passes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evomerge.search.controllers import CONTROLLERS, Feedback, Problem, make_controller
from evomerge.search.pareto import hypervolume
from evomerge.sections import parse
from evomerge.testing.breeding import crossed, founders
from evomerge.testing.noisy_search import found_distance


def sphere(genome: np.ndarray) -> float:
    """Return minus the squared distance to a point off the centre: more is better.

    >>> sphere(np.array([0.3, 0.3]))
    -0.0
    """
    return -float(((genome - 0.3) ** 2).sum())


def drive(
    name: str,
    evaluations: int,
    *,
    dimension: int = 5,
    seed: int = 1,
    workers: int = 1,
    score: Callable[[np.ndarray], float | Sequence[float] | None] = sphere,
    violation: Callable[[np.ndarray], float] = lambda genome: 0.0,
    objectives: int = 1,
    levels: Sequence[int] = (),
    order_seed: int = 0,
    **options: Any,
) -> tuple[np.ndarray, list]:
    """Run a controller on a function with `workers` candidates in flight, told in any order.

    A controller that breeds crosses points of the box, beginning with a few of its corners; the
    score's `items` are then one a gene, by how near each comes to 0.3.

    Args:
        score: gives a point's value, or its objectives where there are several; None: it fails.
        violation: of constraints.
        levels: how many values each gene has, see `Problem`.
        options: of the controller.

    Returns:
        The (evaluations, dimension) points scored, and what `score` gave.

    >>> genomes, values = drive("cmaes", 8, dimension=2)
    >>> genomes.shape, len(values)
    ((8, 2), 8)
    """
    cls = CONTROLLERS.get(name)
    sides = 2 if cls.breeds else dimension
    section = parse(cls.section, {"kind": name, **options})
    problem = Problem(sides, seed, np.full(sides, 0.5), objectives, tuple(levels))
    controller = make_controller(problem, section)
    individuals: dict[int, np.ndarray] = {}

    def tell(ordinal: int | None, candidate: int, genome: Any, point: Any, found: Any) -> None:
        if found is None:
            controller.tell(Feedback(ordinal, genome, None, None, 0.0, candidate))
            return
        vector = tuple(map(float, np.atleast_1d(found)))
        items = np.exp(-4 * np.abs(point - 0.3)).astype(np.float32)
        value, missed = float(np.mean(vector)), violation(point)
        controller.tell(
            Feedback(ordinal, genome, value, vector, missed, candidate, items, cls.breeds)
        )

    corners = founders(dimension)
    for candidate, point in enumerate(corners, start=1):  # baselines, before the first ask
        individuals[candidate] = point
        found = score(point)
        tell(None, candidate, None, point, (0.0,) * objectives if found is None else found)
    order = np.random.default_rng(order_seed)
    flying: list[tuple[int, np.ndarray]] = []
    genomes: list[np.ndarray] = []
    values: list = []
    while len(genomes) < evaluations or flying:
        wanted = min(workers - len(flying), evaluations - len(genomes))
        asked = controller.ask(wanted) if wanted > 0 else []
        assert len(asked) <= max(wanted, 0), "proposed more than it was asked for"
        assert asked or flying, "proposed nothing while nothing is outstanding"
        for genome, parents, _, again in asked:
            assert again is None, "nobody need be scored again where all items were scored"
            point = genome
            if cls.breeds:
                point = individuals[len(genomes) + 5] = crossed(genome, parents, individuals)
            flying.append((len(genomes), genome))
            genomes.append(point)
            values.append(score(point))
        if flying and (len(flying) >= workers or not asked):
            ordinal, genome = flying.pop(order.integers(len(flying)))
            tell(ordinal, ordinal + 5, genome, genomes[ordinal], values[ordinal])
    return np.array(genomes), values


def candidates_for_laws(name: str, many: int) -> int:
    """Return after how many candidates a law judges: a fifth for those that are meant for few.

    >>> candidates_for_laws("cmaes", 300), candidates_for_laws("bayes", 300)
    (300, 60)
    """
    return many // 5 if CONTROLLERS.get(name).is_for_few else many


def law_stays_within_bounds(name: str) -> None:
    """Proposes (dimension,) float64 genomes within [0, 1], whatever it is told."""
    for score in (sphere, lambda g: -sphere(g), lambda g: 1.0, lambda g: None):
        count = candidates_for_laws(name, 120)
        genomes, _ = drive(name, count, workers=3, score=score)
        assert len(np.unique(genomes, axis=0)) > 20
        assert genomes.shape == (count, 5) and genomes.dtype == np.float64
        assert np.isfinite(genomes).all() and genomes.min() >= 0.0 and genomes.max() <= 1.0


def options_for_laws(name: str) -> dict[str, Any]:
    """Return the options with which a controller is held to the laws.

    >>> options_for_laws("cmaes")
    {}
    """
    # crossing alone finds nothing that its founders have not: it needs many of them for long
    return {"population": 30} if CONTROLLERS.get(name).breeds else {}


def law_improves_on_a_sphere(name: str) -> None:
    """Its best of 300 is twice as near as random search's, in flight or not, with failures.

    Those that are meant for few candidates have a fifth as many, and chance has all.
    """
    if not CONTROLLERS.get(name).learns:
        return

    def best_of_many(of: str, workers: int, seed: int) -> float:
        options = options_for_laws(of)
        count = candidates_for_laws(of, 300)
        _, values = drive(
            of, count, workers=workers, seed=seed, score=_sometimes_failing, **options
        )
        return -max(v for v in values if v is not None)

    runs = [(1, 1), (7, 3), (1, 2)]  # workers, seed
    if CONTROLLERS.get(name).is_for_few:  # which take long over each
        runs = runs[:2]
    own, chance = (
        np.mean([np.log(best_of_many(of, *run)) for run in runs]) for of in (name, "random")
    )
    assert own < chance - 2 * np.log(2.0)  # of the squared distance: half the distance


def _sometimes_failing(genome: np.ndarray) -> float | None:
    return None if int(genome[0] * 1e6) % 13 == 0 else sphere(genome)


def spheres(genome: np.ndarray) -> tuple[float, float]:
    """Return two objectives that pull apart: minus the squared distances to two points.

    >>> spheres(np.array([0.2, 0.6]))[0] == spheres(np.array([0.6, 0.2]))[0]
    True
    """
    return -float(((genome - 0.2) ** 2).sum()), -float(((genome - 0.6) ** 2).sum())


def law_improves_on_several_objectives(name: str) -> None:
    """Hypervolume grows beyond that of the first 20, with failures; every kind of tell is taken."""
    _, vectors = drive(
        name,
        candidates_for_laws(name, 300),
        workers=4,
        score=lambda g: None if int(g[0] * 1e6) % 13 == 0 else spheres(g),
        objectives=2,
    )
    first, whole = (
        hypervolume(np.array([v for v in part if v is not None]), np.full(2, -1.5))
        for part in (vectors[:20], vectors)
    )
    assert whole > first


def law_minds_constraints(name: str) -> None:
    """Of what keeps a constraint that leaves out the optimum, it finds better and better."""

    def missed(genome: np.ndarray) -> float:
        return max(0.0, float(genome[0]) - 0.25)

    genomes, values = drive(name, candidates_for_laws(name, 300), workers=3, violation=missed)
    kept = [v if missed(g) == 0.0 else -np.inf for g, v in zip(genomes, values, strict=True)]
    assert max(kept) > max(kept[:20])


def law_is_a_function_of_its_calls(name: str) -> None:
    """The same seed and calls propose the same genomes; another seed does not."""
    count = candidates_for_laws(name, 80)
    first, _ = drive(name, count, workers=4)
    again, _ = drive(name, count, workers=4)
    other, _ = drive(name, count, workers=4, seed=2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def _global_state() -> str:
    """Return what numpy's global generator is at, as text."""
    return repr(np.random.get_state(legacy=False))


def law_leaves_global_generators_alone(name: str) -> None:
    """Neither reads nor moves numpy's global generator."""
    count = candidates_for_laws(name, 60)
    np.random.seed(5)
    first, _ = drive(name, count)
    state = _global_state()
    np.random.seed(6)
    again, _ = drive(name, count)
    np.random.seed(5)
    assert np.array_equal(first, again)
    assert _global_state() == state


def law_replays_in_another_process(name: str) -> None:
    """A fresh process with another hash seed proposes the same genomes, to the last bit.

    It imports the controller's module, from where this process has it.
    """
    count = candidates_for_laws(name, 60)
    module = CONTROLLERS.get(name).__module__
    assert module != "__main__", f"no other process can import {name}: put it into a module"
    code = (
        f"import sys, json, importlib; sys.path[:] = {sys.path!r};"
        f"importlib.import_module({module!r}); from evomerge.testing import drive;"
        f"print(json.dumps([g.hex() for g in drive({name!r}, {count}, workers=3)[0].ravel()]))"
    )
    here, _ = drive(name, count, workers=3)
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [g.hex() for g in here.ravel()]


def law_gains_from_scoring_in_parts(name: str) -> None:
    """Where scores are noisy, the same items bring it nearer if each candidate gets few of them."""
    options, items = options_for_laws(name), candidates_for_laws(name, 10_000)
    seeds = range(1, 3 if CONTROLLERS.get(name).is_for_few else 5)

    def mean_distance(in_parts: bool) -> float:
        found = [
            found_distance(name, items, in_parts=in_parts, seed=seed, **options) for seed in seeds
        ]
        return float(np.mean(found))

    assert mean_distance(in_parts=True) < 0.95 * mean_distance(in_parts=False)


controller_laws = (
    law_stays_within_bounds,
    law_improves_on_a_sphere,
    law_improves_on_several_objectives,
    law_minds_constraints,
    law_gains_from_scoring_in_parts,
    law_is_a_function_of_its_calls,
    law_leaves_global_generators_alone,
    law_replays_in_another_process,
)
