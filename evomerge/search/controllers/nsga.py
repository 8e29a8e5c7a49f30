"""NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017) and NSGA-III (Deb & Jain 2014,
doi:10.1109/TEVC.2013.2281534) by Optuna. They search the objectives, not their mean.
"""

import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from evomerge.search.controllers import ControllerSection, Problem, controller
from evomerge.search.controllers.optuna_samplers import Sampled
from evomerge.sections import Whole, option

if TYPE_CHECKING:  # Optuna is imported when a search begins; until then nothing stands behind
    from optuna.samplers._ga import BaseGASampler as _Base
else:
    _Base = object


class _Generations(_Base):
    """Keeps count of the generations of an Optuna sampler, whose class stands behind it.

    Optuna counts them anew from all trials at every ask, some 10 ms after 10,000 of them, and
    leaves out trials whose genomes were given to it. The methods below are those of Optuna's base
    class of genetic samplers (`BaseGASampler`), which tests/test_contracts.py holds it to.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._generation: dict[int, int] = {}  # of each trial, by its number
        self._scored: list[list[int]] = [[]]  # the numbers of scored trials, by generation
        self._parents: dict[int, list] = {0: []}

    def before_trial(self, study: Any, trial: Any) -> None:
        super().before_trial(study, trial)
        newest = len(self._scored) - 1
        assert self.population_size is not None  # every sampler here is made with one
        full = len(self._scored[newest]) >= self.population_size
        self._generation[trial.number] = newest + full

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        super().after_trial(study, trial, state, values)
        generation = self._generation[trial.number]
        if values is None:
            return
        if generation == len(self._scored):
            self._scored.append([])
        self._scored[generation].append(trial.number)

    def get_trial_generation(self, study: Any, trial: Any) -> int:
        return self._generation[trial.number]

    def get_population(self, study: Any, generation: int) -> list:
        trials = study.get_trials(deepcopy=False)
        return [trials[number] for number in sorted(self._scored[generation])]

    def get_parent_population(self, study: Any, generation: int) -> list:
        if generation in self._parents:
            return self._parents[generation]
        chosen = self.select_parent(study, generation)
        self._parents[generation] = sorted(chosen, key=lambda trial: trial.number)
        return chosen  # the first time in the order of selection, as Optuna does


class NsgaSection(ControllerSection):
    """Options of NSGA-II and NSGA-III.

    >>> Nsga2Section(population=8).population
    8
    """

    population: Whole = option(
        "scored candidates in each generation; genomes scored elsewhere count in the first",
        20,
        unit="candidates",
        ge=2,
    )


class Nsga2Section(NsgaSection):
    """Options of NSGA-II.

    >>> Nsga2Section().kind
    'nsga2'
    """

    kind: Literal["nsga2"] = "nsga2"


class Nsga3Section(NsgaSection):
    """Options of NSGA-III.

    >>> Nsga3Section().kind
    'nsga3'
    """

    kind: Literal["nsga3"] = "nsga3"


class _Nsga(Sampled):
    seeks_front = True
    sampler: ClassVar[str]  # Optuna's name of it

    def __init__(self, problem: Problem, options: NsgaSection):
        import optuna
        from optuna.samplers import nsgaii

        cls = type(self.sampler, (_Generations, getattr(optuna.samplers, self.sampler)), {})
        with warnings.catch_warnings():  # crossover and mutation are the papers', not Optuna's
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = cls(
                population_size=options.population,
                crossover=nsgaii.SBXCrossover(),
                mutation=nsgaii.PolynomialMutation(),
                # Optuna takes seeds of 32 bits
                seed=int(np.random.SeedSequence(problem.seed).generate_state(1)[0]),
                **self._more(options.population, problem.objectives),
            )
        super().__init__(sampler, problem)

    def _more(self, population: int, objectives: int) -> dict[str, int]:
        return {}


@controller(Nsga2Section)
class Nsga2(_Nsga):
    """NSGA-II by Optuna: survival by rank of dominance, then by crowding distance.

    >>> problem = Problem(dimension=2, seed=1, start=np.full(2, 0.5), objectives=2)
    >>> Nsga2(problem, Nsga2Section()).ask(1)[0].genome.tolist()
    [0.5, 0.5]
    """

    sampler = "NSGAIISampler"


@controller(Nsga3Section)
class Nsga3(_Nsga):
    """NSGA-III by Optuna: survival by rank, then by how lonely a reference direction is.

    There are as many directions, evenly spread (Das & Dennis 1998), as a population can fill.

    >>> problem = Problem(dimension=2, seed=1, start=np.full(2, 0.5), objectives=3)
    >>> Nsga3(problem, Nsga3Section()).ask(1)[0].genome.tolist()
    [0.5, 0.5]
    """

    sampler = "NSGAIIISampler"

    def _more(self, population: int, objectives: int) -> dict[str, int]:
        # p divisions give C(p + m - 1, m - 1) directions; the most that the population fills
        divisions = 1
        while objectives > 1 and math.comb(divisions + objectives, objectives - 1) <= population:
            divisions += 1
        return {"dividing_parameter": divisions}
