"""Genomes from an Optuna sampler, asked and told through a study in memory; and TPE by it.

TPE: Watanabe 2023, arXiv:2304.11127; for several objectives Ozaki et al. 2022,
doi:10.1613/jair.1.13188. It searches the objectives, not their mean.
"""

from typing import Any

import numpy as np

from evomerge.search.controllers import Proposal, Told, controller

_ROUNDED = 1e-6  # more than genomes are rounded by


class Sampled:
    """Genomes on [0, 1]^d from an Optuna sampler; the first is `start`.

    A failure is told as one, and a violation as a constraint. Genomes that were scored elsewhere
    join the study as though it had asked for them.
    """

    def __init__(self, sampler: Any, dimension: int, start: np.ndarray, objectives: int):
        from optuna.distributions import FloatDistribution

        self._genes = {f"gene{i:06d}": FloatDistribution(0.0, 1.0) for i in range(dimension)}
        self._objectives, self._start = objectives, start
        self._asked = 0
        self._pending: dict[int, Any] = {}
        self._begin(sampler)

    def _begin(self, sampler: Any) -> None:
        """Make an empty study, which Optuna would announce to the user."""
        import optuna

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            directions = ["maximize"] * self._objectives
            self._study = optuna.create_study(sampler=sampler, directions=directions)
        finally:
            optuna.logging.set_verbosity(verbosity)

    def ask(self, n: int) -> list[Proposal]:
        proposals = []
        for _ in range(n):
            trial = self._study.ask(self._genes) if self._asked else self._trial_of(self._start)
            self._pending[self._asked] = trial
            self._asked += 1
            proposals.append(Proposal(self._genome_of(trial)))
        return proposals

    def tell(self, told: Told) -> None:
        if told.ordinal is not None:
            trial = self._pending.pop(told.ordinal)
            self._correct(trial, told.genome)
        elif told.genome is not None and told.objectives is not None:
            trial = self._trial_of(told.genome)
        else:
            return
        if told.objectives is None:
            from optuna.trial import TrialState

            self._study.tell(trial, state=TrialState.FAIL)
            return
        if told.violation > 0.0:
            trial.set_constraint("violation", told.violation)
        self._study.tell(trial, list(told.objectives))

    def _correct(self, trial: Any, genome: np.ndarray | None) -> None:
        """Let a trial have the genome that was scored, where the space put genes back."""
        if genome is None:
            return
        for name, asked, value in zip(self._genes, self._genome_of(trial), genome, strict=True):
            if abs(asked - value) > _ROUNDED:
                number, distribution = trial._trial_id, self._genes[name]
                self._study._storage.set_trial_param(number, name, float(value), distribution)

    def _trial_of(self, genome: np.ndarray) -> Any:
        """Let the study ask for a given genome."""
        values = np.clip(genome, 0.0, 1.0).tolist()
        self._study.enqueue_trial(dict(zip(self._genes, values, strict=True)))
        return self._study.ask(self._genes)

    def _genome_of(self, trial: Any) -> np.ndarray:
        params = trial.params
        return np.array([params[gene] for gene in self._genes], float)


@controller("tpe")
class Tpe(Sampled):
    """TPE by Optuna, all genes modelled together; candidates in flight count as bad ones.

    Its ask takes time in proportion to what it learns from, so it forgets: see `memory`.
    """

    def __init__(
        self,
        *,
        dimension: int,
        seed: int,
        start: np.ndarray,
        objectives: int = 1,
        startup: int = 10,
        memory: int = 1000,
    ):
        """
        Args:
            dimension: genes.
            seed: of everything drawn here.
            start: (dimension,) the first genome.
            objectives: how many there are.
            startup: scored candidates, drawn uniformly, before there is a model.
            memory: scored candidates to learn from, 40 or more. When there are as many, the
                newest half stays, and of the front the newest, up to a quarter.

        Raises:
            ValueError: an option is out of range.
        """
        if startup < 1:
            raise ValueError(f"startup: {startup} is below 1; write e.g. 10")
        if memory < 40:
            raise ValueError(f"memory: {memory} is below 40; write e.g. 1000")
        self._rng = np.random.default_rng(seed)
        self._startup, self._memory = startup, memory
        super().__init__(self._sampler(), dimension, start, objectives)

    def _sampler(self) -> Any:
        from optuna.samplers import TPESampler

        seed = int(self._rng.integers(2**32))
        return TPESampler(n_startup_trials=self._startup, multivariate=True, seed=seed)

    def tell(self, told: Told) -> None:
        from optuna.trial import TrialState

        super().tell(told)
        scored = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len(scored) >= self._memory:
            self._forget(scored)

    def _forget(self, scored: list) -> None:
        """Go on in a new study with the newest and the best of this one."""
        best = self._study.best_trials[-(self._memory // 4) :]
        kept = {trial.number: trial for trial in (*best, *scored[-(self._memory // 2) :])}
        self._begin(self._sampler())
        self._study.add_trials(kept[number] for number in sorted(kept))
        self._pending = {
            ordinal: self._trial_of(self._genome_of(trial))
            for ordinal, trial in self._pending.items()
        }
