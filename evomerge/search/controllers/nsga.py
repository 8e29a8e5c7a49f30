"""NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017) and NSGA-III (Deb & Jain 2014,
doi:10.1109/TEVC.2013.2281534) by Optuna. They search the objectives, not their mean.
"""

import math
import warnings
from typing import Any

import numpy as np

from evomerge.search.controllers import controller
from evomerge.search.controllers.optuna_samplers import Sampled


class _Generations:
    """Keeps count of the generations of an Optuna sampler, whose class stands behind it.

    Optuna counts them anew from all trials at every ask, some 10 ms after 10,000 of them, and
    leaves out trials whose genomes were given to it.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._generation: dict[int, int] = {}  # of each trial, by its number
        self._scored: list[list[int]] = [[]]  # the numbers of scored trials, by generation
        self._parents: dict[int, list] = {0: []}

    def before_trial(self, study: Any, trial: Any) -> None:
        super().before_trial(study, trial)
        newest = len(self._scored) - 1
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


class _Nsga(Sampled):
    kind: str  # Optuna's name of the sampler

    def __init__(
        self,
        *,
        dimension: int,
        seed: int,
        start: np.ndarray,
        objectives: int = 1,
        population: int = 20,
    ):
        """
        Args:
            dimension: genes.
            seed: of everything drawn here.
            start: (dimension,) the first genome.
            objectives: how many there are.
            population: scored candidates per generation, at least 2; genomes that were scored
                elsewhere count in the first.

        Raises:
            ValueError: an option is out of range.
        """
        if population < 2:
            raise ValueError(f"population: {population} is below 2; write 2 or more, e.g. 20")
        import optuna
        from optuna.samplers import nsgaii

        cls = type(self.kind, (_Generations, getattr(optuna.samplers, self.kind)), {})
        with warnings.catch_warnings():  # crossover and mutation are the papers', not Optuna's
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = cls(
                population_size=population,
                crossover=nsgaii.SBXCrossover(),
                mutation=nsgaii.PolynomialMutation(),
                seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),  # 32 bits at most
                **self._options(population, objectives),
            )
        super().__init__(sampler, dimension, start, objectives)

    def _options(self, population: int, objectives: int) -> dict[str, Any]:
        return {}


@controller("nsga2")
class Nsga2(_Nsga):
    """NSGA-II by Optuna: survival by rank of dominance, then by crowding distance."""

    kind = "NSGAIISampler"


@controller("nsga3")
class Nsga3(_Nsga):
    """NSGA-III by Optuna: survival by rank, then by how lonely a reference direction is.

    There are as many directions, evenly spread (Das & Dennis 1998), as a population can fill.
    """

    kind = "NSGAIIISampler"

    def _options(self, population: int, objectives: int) -> dict[str, Any]:
        divisions = 1
        while objectives > 1 and math.comb(divisions + objectives, objectives - 1) <= population:
            divisions += 1
        return {"dividing_parameter": divisions}
