"""Bayesian optimization by BoTorch (Balandat et al. 2020, arXiv:1910.06403): for few candidates.

Every objective is a Gaussian process over the genes. The next candidate is the one that promises
most over those told and in flight, their noise counted: log-NEI for one objective (Ament et al.
2023, arXiv:2310.20708), log-NEHVI for several (Daulton et al. 2021, arXiv:2105.08195). AP-BMM
(arXiv:2512.09972) searches merges so too, by expected hypervolume, after grouping their layers; the
grouping is the space's here.

A candidate is scored on a part of its own. Processes take what they are told for independent, and
candidates with the same items err together: a lucky part would lift the whole region that was
proposed meanwhile. With a part each, errors are independent, and all items come up in turn.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from threadpoolctl import ThreadpoolController

from evomerge.errors import BadInput, Fault
from evomerge.search.controllers import (
    Controller,
    ControllerSection,
    Feedback,
    Problem,
    Proposal,
    Recommendation,
    controller,
)
from evomerge.search.processes import Process
from evomerge.search.surrogate import Surrogate, Told, beaten_by, snapped
from evomerge.sections import Whole, option

_REFIT = 1.1  # times as many told as at the last fit
_STEPS = (0.05, 20.0)  # at least and at most: a step of 0 would leave a gene no length
_PENDING = 64  # candidates in flight that are counted: the latest


class BayesSection(ControllerSection):
    """Options of Bayesian optimization.

    >>> BayesSection().memory
    400
    """

    kind: Literal["bayes"] = "bayes"
    startup: Whole | None = option(
        "candidates before there is a model, evenly spread over the box and around the start; those"
        " that were scored elsewhere count; null: d + 1, at most 10",
        None,
        unit="candidates",
        ge=1,
    )
    memory: Whole = option(
        "candidates to learn from; when there are more, the newest half stays, and of the others"
        " the best quarter",
        400,
        unit="candidates",
        ge=40,
    )

    def faults(self, objectives: int) -> Iterable[Fault]:
        if importlib.util.find_spec("botorch") is None:
            wrong = "bayes needs BoTorch, which is not installed"
            yield Fault("kind", wrong, 'run pip install "evomerge[bayes]"')


@controller(BayesSection)
class Bayes(Controller):
    """Bayesian optimization on [0, 1]^d, told in any order, with any number in flight.

    An improvement counts by the probability that constraints are kept there and that nothing fails,
    by a further process; so failures say nothing of the objectives. Genes with levels are proposed
    at the middle of one.

    >>> search = Bayes(Problem(2, 1, np.full(2, 0.5)), BayesSection(startup=3))
    >>> for number in range(5):
    ...     (proposal,) = search.ask(1)
    ...     value = -float(((proposal.genome - 0.3) ** 2).sum())
    ...     search.tell(Feedback(number, proposal.genome, value, (value,)))
    >>> search.recommend()[0].label
    'optimum of the model'
    """

    seeks_front = True
    minds_steps = True
    is_for_few = True

    def __init__(self, problem: Problem, options: BayesSection):
        if faults := tuple(options.faults(problem.objectives)):
            raise BadInput(*faults)
        self._problem, self._memory = problem, options.memory
        self._startup = options.startup or min(10, problem.dimension + 1)
        self._levels = np.array(problem.levels or (0,) * problem.dimension)
        steps = np.ones(problem.dimension) if problem.steps is None else problem.steps
        self._steps = np.clip(np.asarray(steps, float), *_STEPS)
        self._rng = np.random.default_rng(problem.seed)
        self._design: Any = None
        self._asked = self._heard = self._foreign = 0
        self._refit_at = 0
        self._pending: dict[int, np.ndarray] = {}
        self._told: list[Told] = []
        self._fitted: list[Process] = []
        self._blas: ThreadpoolController | None = None

    def ask(self, n: int) -> list[Proposal]:
        with self._alone():
            return [self._propose() for _ in range(n)]

    def _propose(self) -> Proposal:
        scored = sum(told.objectives is not None for told in self._told)
        if self._asked == 0:
            genome = np.clip(np.asarray(self._problem.start, float), 0.0, 1.0)
        elif self._asked + self._foreign < self._startup or scored < 2:
            genome = self._spread()
        else:
            if self._heard >= self._refit_at:
                self._fitted = []
                self._refit_at = max(self._heard + 1, int(_REFIT * self._heard))
            model = self._model(self._fitted)
            self._fitted = model.processes
            pending = list(self._pending.values())[-_PENDING:]
            genome = model.most_promising(np.array(pending), self._rng)
        self._pending[self._asked] = genome
        self._asked += 1
        return Proposal(genome, part=self._asked - 1)

    def _spread(self) -> np.ndarray:
        """Return the next point of a Sobol sequence, every other one half-way to the start."""
        if self._design is None:
            from torch.quasirandom import SobolEngine

            seed = int(np.random.SeedSequence(self._problem.seed).generate_state(1)[0])
            self._design = SobolEngine(self._problem.dimension, scramble=True, seed=seed)
        import torch

        point = self._design.draw(1, dtype=torch.float64)[0].numpy()
        if self._asked % 2 == 0:
            point = 0.5 * (point + self._problem.start)
        return snapped(point, self._levels)

    def tell(self, feedback: Feedback) -> None:
        genome = feedback.genome
        if feedback.ordinal is not None:
            asked = self._pending.pop(feedback.ordinal)
            genome = asked if genome is None else genome
        if genome is None:
            return
        errors = feedback.errors or (0.0,) * self._problem.objectives
        is_estimate = feedback.ordinal is not None and self._problem.parts > 1
        self._told.append(
            Told(
                snapped(np.clip(genome, 0.0, 1.0), self._levels),
                feedback.objectives,
                errors,
                feedback.violation,
                is_estimate,
            )
        )
        self._heard += 1
        self._foreign += feedback.ordinal is None and feedback.objectives is not None
        if len(self._told) > self._memory:
            self._forget()

    def _forget(self) -> None:
        half = self._memory // 2
        older, newer = self._told[:-half], self._told[-half:]
        kept = [told for told in older if told.objectives is not None and told.violation <= 0.0]
        if kept:
            beaten = beaten_by(np.array([told.objectives for told in kept]))
            best = np.argsort(beaten, kind="stable")[: self._memory // 4]
            newer = [kept[i] for i in np.sort(best)] + newer
        self._told = newer

    def recommend(self) -> list[Recommendation]:
        if sum(told.objectives is not None for told in self._told) < 2:
            return []
        with self._alone():
            model = self._model([])
            best = Recommendation(model.optimum(), "optimum of the model")
            return [best, *(Recommendation(genome, "told") for genome in model.best_told())]

    def _model(self, fitted: Sequence[Process]) -> Surrogate:
        return Surrogate(self._told, self._steps, self._levels, fitted)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep torch's generator and settings from what is done within, and that from them.

        One thread: with several, sums come in another order, and replay differs in a bit.
        """
        import torch
        from botorch.acquisition.multi_objective import logei

        if self._blas is None:
            self._blas = ThreadpoolController()
        threads, kernel = torch.get_num_threads(), (logei._C, logei._load_attempted)
        torch.set_num_threads(1)
        # BoTorch would compile a kernel when it is first needed, if there is a compiler; then a
        # replay elsewhere would differ, and this one where something else in the process began it.
        logei._C, logei._load_attempted = None, True
        try:
            with (
                torch.random.fork_rng(devices=[]),
                torch.enable_grad(),
                self._blas.limit(limits=1),
                warnings.catch_warnings(record=True),  # an optimizer that stops early is no news
            ):
                torch.default_generator.manual_seed(self._asked)
                yield
        finally:
            torch.set_num_threads(threads)
            logei._C, logei._load_attempted = kernel
