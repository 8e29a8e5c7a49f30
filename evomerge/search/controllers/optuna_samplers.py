"""Genomes from an Optuna sampler, asked and told through a study in memory; and TPE by it.

TPE: Watanabe 2023, arXiv:2304.11127; for several objectives Ozaki et al. 2022,
doi:10.1613/jair.1.13188. It searches the objectives, not their mean.
"""

from typing import Any, Literal

import numpy as np

from evomerge.search.controllers import (
    CANDIDATES_A_PART,
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    controller,
)
from evomerge.sections import Whole, option

_ROUNDED = 1e-6  # more than genomes are rounded by


class Sampled(Controller):
    """Genomes on [0, 1]^d from an Optuna sampler; the first is `start`.

    A failure is told as one, and a violation as a constraint. Genomes that were scored elsewhere
    join the study as though it had asked for them.

    >>> from optuna.samplers import RandomSampler
    >>> search = Sampled(RandomSampler(seed=1), Problem(2, 1, np.full(2, 0.5)))
    >>> [proposal.genome.shape for proposal in search.ask(2)]
    [(2,), (2,)]
    """

    def __init__(self, sampler: Any, problem: Problem):
        """
        Args:
            sampler: Optuna's.
            problem: whose objectives are all maximized.
        """
        from optuna.distributions import BaseDistribution, FloatDistribution

        # Optuna orders parameters by name
        names = [f"gene{i:06d}" for i in range(problem.dimension)]
        self._genes: dict[str, BaseDistribution] = {}
        for name in names:
            self._genes[name] = FloatDistribution(0.0, 1.0)
        self._objectives, self._start = problem.objectives, problem.start
        self._asked = 0
        self._pending: dict[int, Any] = {}
        self._begin(sampler)

    def _begin(self, sampler: Any) -> None:
        """Make an empty study, which Optuna would announce to the user."""
        import optuna

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            directions = [optuna.study.StudyDirection.MAXIMIZE] * self._objectives
            self._study = optuna.create_study(sampler=sampler, directions=directions)
        finally:
            optuna.logging.set_verbosity(verbosity)

    def ask(self, n: int) -> list[Proposal]:
        proposals = []
        for _ in range(n):
            trial = self._study.ask(self._genes) if self._asked else self._trial_of(self._start)
            self._pending[self._asked] = trial
            part = self._asked // CANDIDATES_A_PART
            self._asked += 1
            proposals.append(Proposal(self._genome_of(trial), part=part))
        return proposals

    def tell(self, feedback: Feedback) -> None:
        if feedback.ordinal is not None:
            trial = self._pending.pop(feedback.ordinal)
            self._correct(trial, feedback.genome)
        elif feedback.genome is not None and feedback.objectives is not None:
            trial = self._trial_of(feedback.genome)
        else:
            return
        if feedback.objectives is None:
            from optuna.trial import TrialState

            self._study.tell(trial, state=TrialState.FAIL)
            return
        if feedback.violation > 0.0:
            trial.set_constraint("violation", feedback.violation)
        self._study.tell(trial, list(feedback.objectives))

    def _correct(self, trial: Any, genome: np.ndarray | None) -> None:
        """Let a trial have the genome that was scored, where the space put genes back."""
        if genome is None:
            return
        for name, asked, value in zip(self._genes, self._genome_of(trial), genome, strict=True):
            if abs(asked - value) > _ROUNDED:
                # the study has no public way; tests/test_contracts.py holds Optuna to this one
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


class TpeSection(ControllerSection):
    """Options of TPE.

    >>> TpeSection().memory
    1000
    """

    kind: Literal["tpe"] = "tpe"
    startup: Whole = option(
        "scored candidates, drawn uniformly, before there is a model", 10, unit="candidates", ge=1
    )
    memory: Whole = option(
        "scored candidates to learn from; when there are as many, the newest half stays, and of"
        " the front the newest, up to a quarter",
        1000,
        unit="candidates",
        ge=40,
    )


@controller(TpeSection)
class Tpe(Sampled):
    """TPE by Optuna, all genes modelled together; candidates in flight count as bad ones.

    It models where the better share of the candidates lies, whose noise it averages: scored in
    parts, it has more of them to learn from.

    Its ask takes time in proportion to what it learns from, so that it forgets: see `memory`.

    >>> Tpe(Problem(2, 1, np.full(2, 0.5)), TpeSection()).ask(1)[0].genome.tolist()
    [0.5, 0.5]
    """

    seeks_front = True

    def __init__(self, problem: Problem, options: TpeSection):
        self._rng = np.random.default_rng(problem.seed)
        self._options = options
        super().__init__(self._sampler(), problem)

    def _sampler(self) -> Any:
        from optuna.samplers import TPESampler

        seed = int(self._rng.integers(2**32))
        return TPESampler(n_startup_trials=self._options.startup, multivariate=True, seed=seed)

    def tell(self, feedback: Feedback) -> None:
        from optuna.trial import TrialState

        super().tell(feedback)
        scored = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len(scored) >= self._options.memory:
            self._forget(scored)

    def _forget(self, scored: list) -> None:
        """Go on in a new study with the newest and the best of this one."""
        best = self._study.best_trials[-(self._options.memory // 4) :]
        kept = {trial.number: trial for trial in (*best, *scored[-(self._options.memory // 2) :])}
        self._begin(self._sampler())
        self._study.add_trials(kept[number] for number in sorted(kept))
        self._pending = {
            ordinal: self._trial_of(self._genome_of(trial))
            for ordinal, trial in self._pending.items()
        }
