"""What a first campaign scores: tasks of lm-eval and Python functions, opened as they are named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import BadInput, Fault, nearest
from evomerge.scoring.fitness import FunctionSection, TaskSection
from evomerge.scoring.lm_eval_loading import load_tasks, members_of
from evomerge.scoring.lm_eval_metric import usable_metrics
from evomerge.scoring.open_fitness import open_fitness

# Of the metrics that a task has, what is taken first: answers before likelihoods, and of two
# accuracies the one that does not depend on how long the choices are.
_PREFERRED = ("exact_match", "acc_norm", "acc")


@dataclass(frozen=True)
class FirstTask:
    """A task that was named.

    Attributes:
        name: lm-eval's, or the path of a file.
        metrics: that it can be scored by, the likeliest first; none of a function.
        items: that it has, where no split of its own is held out.
        is_group: whether it is several tasks.
        has_own_test: whether it has items to search on beside a test split.
        is_public: whether its items are the test split of a public benchmark.

    >>> FirstTask("maths.yaml", ("exact_match",), 400, False, False, False).entry(None)
    {'task': 'maths.yaml', 'metric': 'exact_match'}
    """

    name: str
    metrics: tuple[str, ...]
    items: int
    is_group: bool
    has_own_test: bool
    is_public: bool

    def entry(self, metric: str | None) -> dict[str, Any]:
        """Return a campaign's entry of `fitness`, without its name; by the likeliest metric."""
        if not self.metrics:
            return {"function": self.name}
        entry = {"task": self.name, "metric": metric or self.metrics[0]}
        return entry | ({"aggregate": "mean"} if self.is_group else {})

    def metric(self, answer: str) -> str:
        """Return a metric that was asked for.

        Raises:
            BadInput: the task does not have it.
        """
        if answer not in self.metrics:
            wrong = f"'{self.name}' has no metric '{answer}' that is a mean of items"
            raise BadInput(Fault("", wrong, nearest(answer, self.metrics)))
        return answer


def look_up(answer: str) -> FirstTask:
    """Open what was named: a task of lm-eval by name or file, or a Python file.

    Raises:
        BadInput: there is no such task, it cannot be loaded, or nothing in it can be averaged.

    >>> look_up("nowhere.yaml")
    Traceback (most recent call last):
    evomerge.errors.BadInput: there is no file 'nowhere.yaml'; write a path to a task YAML
    """
    try:
        return _of_function(answer) if answer.endswith(".py") else _of_task(answer)
    except BadInput as error:
        raise BadInput(*(Fault("", fault.wrong, fault.mend) for fault in error.faults)) from None


def public_benchmark(tasks: Sequence[FirstTask]) -> str | None:
    """Return a task whose test split others report on, so that it has to be held out; or None.

    Raises:
        BadInput: there is one, and a task without other items to search on.

    >>> maths = FirstTask("gsm8k", ("exact_match",), 1319, False, True, True)
    >>> own = FirstTask("own.yaml", ("acc",), 200, False, False, False)
    >>> public_benchmark([maths])
    'gsm8k'
    >>> public_benchmark([maths, own])
    Traceback (most recent call last):
    evomerge.errors.BadInput: gsm8k is searched on its training items and reported on its test ...
    """
    public = next((task.name for task in tasks if task.is_public), None)
    without = next((task.name for task in tasks if not task.has_own_test), None)
    if public is not None and without is not None:
        wrong = f"{public} is searched on its training items and reported on its test items, and"
        wrong += f" {without} has no two splits"
        mend = "take tasks that have, or none of public benchmarks"
        if without == public:
            wrong = f"{public} has no items but the test split that others report on"
            mend = "take a task with a validation or training split, or items of your own"
        raise BadInput(Fault("", wrong, mend))
    return public


def _of_function(path: str) -> FirstTask:
    fitness = open_fitness(FunctionSection(name="x", function=path))
    return FirstTask(path, (), len(fitness.hashes), False, False, False)


def _of_task(name: str) -> FirstTask:
    is_group = members_of(name) is not None
    kept: dict[str, Any] = {"aggregate": "mean"} if is_group else {}
    tasks = load_tasks(TaskSection(name="x", task=name, metric="x", **kept))
    shared = [usable_metrics(task) for task in tasks]
    metrics = [m for m in shared[0] if all(m in others for others in shared)]
    if not metrics:
        wrong = f"'{name}' has no metric that is a mean of items"
        raise BadInput(Fault("", wrong, "take another task"))
    metrics.sort(key=_rank)
    section = TaskSection(name="x", task=name, metric=metrics[0], **kept)
    fitness = open_fitness(section)
    try:
        has_own_test = open_fitness(section, own_test=True).test_from is not None
    except BadInput:
        has_own_test = False
    items, is_public = len(fitness.hashes), fitness.is_public_test_split()
    return FirstTask(name, tuple(metrics), items, is_group, has_own_test, is_public)


def _rank(metric: str) -> int:
    name = metric.partition(",")[0]
    return _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED)
