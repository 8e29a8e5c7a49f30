"""A group of lm-eval tasks as one objective, over the items of all its tasks together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.canonical import file_hash, item_hash
from evomerge.errors import BadInput, Fault
from evomerge.scoring.fitness import Fitness, Scorable, TaskSection
from evomerge.scoring.items import ItemText
from evomerge.scoring.lm_eval_documents import TaskDocuments, open_documents, set_examples_aside
from evomerge.scoring.lm_eval_model import answer
from evomerge.scoring.lm_eval_task import TaskFitness

_NAMED = 5  # tasks that a fault names


class GroupFitness(Fitness):
    """The tasks of a group and a metric that all of them have; every item counts once.

    The mean is over items, so a task with more items weighs more.

    >>> section = TaskSection(name="x", task="x.yaml", metric="acc", aggregate="mean")
    >>> GroupFitness(section, own_test=False)
    Traceback (most recent call last):
    evomerge.errors.BadInput: task: there is no file 'x.yaml'; write a path to a task YAML
    """

    def __init__(
        self,
        section: TaskSection,
        own_test: bool,
        documents: Sequence[TaskDocuments] | None = None,
    ):
        """
        Args:
            section: the campaign's entry.
            own_test: items are the validation (or training) documents of all tasks, then their
                test ones.
            documents: of the tasks, where these are loaded already.

        Raises:
            BadInput: a task cannot be loaded, or has not the metric.
        """
        if documents is None:
            documents = open_documents(section, own_test)
        self.notes = set_examples_aside(documents)
        self._section = section
        self._tasks = _with_metric(section, own_test, documents)
        self.definition = _definition(section, documents)
        self.direction = _direction(section, self._tasks, documents)
        # of each item its task, and its ordinal there
        self._places: list[tuple[TaskFitness, int]] = []
        for side in (0, 1) if own_test else (0,):
            if side:
                self.test_from = len(self._places)
            for task in self._tasks:
                count, test = len(task.hashes), task.test_from
                own = range(count) if test is None else (range(test), range(test, count))[side]
                self._places += [(task, ordinal) for ordinal in own]
        self.hashes = [task.hashes[ordinal] for task, ordinal in self._places]

    def is_public_test_split(self) -> bool:
        """Tell whether items of any task are of a test split that others report on."""
        return any(task.is_public_test_split() for task in self._tasks)

    def characters(self) -> float:
        """Return the mean length of a document's prompt and target, over the first few of each."""
        total = sum(task.characters() * len(task.hashes) for task in self._tasks)
        return total / max(1, len(self.hashes))

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        self._lm = live.language_model(self._section)
        for task, own, _ in self._by_task(ordinals):
            task.build(self._lm, own)

    def questions(self, ordinals: Sequence[int]) -> tuple[Any, list[Any]]:
        by_task = self._by_task(ordinals)
        return self._lm, [r for task, own, _ in by_task for r in task.requests(own)]

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        answer(*self.questions(ordinals))
        return self.scores(ordinals)

    def scores(self, ordinals: Sequence[int]) -> np.ndarray:
        scores = np.empty(len(ordinals), np.float32)
        for task, own, at in self._by_task(ordinals):
            scores[at] = task.scores(own)
        return scores

    def answers(self, ordinals: Sequence[int]) -> list[str] | None:
        """Return what the model said; "" to an item of a task that it answers by likelihoods."""
        if not any(task.speaks for task in self._tasks):
            return None
        said = [""] * len(ordinals)
        for task, own, at in self._by_task(ordinals):
            for place, text in zip(at, task.answers(own) or (), strict=False):
                said[place] = text
        return said

    def text(self, ordinal: int) -> ItemText:
        task, inner = self._places[ordinal]
        return task.text(inner)

    def spoken(self) -> Sequence[int]:
        return [ordinal for ordinal, (task, _) in enumerate(self._places) if task.speaks]

    def lengths(self, ordinals: Sequence[int]) -> np.ndarray:
        lengths = np.empty(len(ordinals), np.float32)
        for task, own, at in self._by_task(ordinals):
            lengths[at] = task.lengths(own)
        return lengths

    def _by_task(self, ordinals: Sequence[int]) -> list[tuple[TaskFitness, list[int], list[int]]]:
        """Return each task that has any of the items, their ordinals there, their places here."""
        own: dict[int, list[int]] = {}
        at: dict[int, list[int]] = {}
        tasks: dict[int, TaskFitness] = {}
        for place, ordinal in enumerate(ordinals):
            task, inner = self._places[ordinal]
            tasks[id(task)] = task
            own.setdefault(id(task), []).append(inner)
            at.setdefault(id(task), []).append(place)
        return [(task, own[key], at[key]) for key, task in tasks.items()]


def _with_metric(
    section: TaskSection, own_test: bool, documents: Sequence[TaskDocuments]
) -> list[TaskFitness]:
    """Return the tasks as fitnesses, or say which have not the metric."""
    tasks: list[TaskFitness] = []
    without: list[str] = []
    faults: list[Fault] = []
    for one in documents:
        try:
            tasks.append(TaskFitness(section, own_test, one))
        except BadInput as error:
            without.append(one.task.config.task)
            faults += error.faults
    if not without:
        return tasks
    if len(documents) == 1:
        raise BadInput(*faults)
    named = ", ".join(without[:_NAMED]) + (", ..." if len(without) > _NAMED else "")
    wrong = f"'{section.metric}' cannot be had of {len(without)} of the {len(documents)} tasks"
    wrong += f" of '{section.task}' ({named}): {faults[0].wrong}"
    shared = set.intersection(*(set(one.task.aggregation()) for one in documents))
    mend = f"all of them have {', '.join(sorted(shared))}" if shared else "no metric is in all"
    raise BadInput(Fault("metric", wrong, f"{mend}; or write one objective for each"))


def _direction(
    section: TaskSection, tasks: Sequence[TaskFitness], documents: Sequence[TaskDocuments]
) -> Any:
    """Return what is better, which all tasks must agree on."""
    directions = {task.direction for task in tasks}
    if len(directions) > 1:
        less = [
            one.task.config.task
            for task, one in zip(tasks, documents, strict=True)
            if task.direction == "minimize"
        ]
        wrong = f"less is better in {', '.join(less[:_NAMED])} and more in the other tasks of"
        raise BadInput(Fault("direction", f"{wrong} '{section.task}'", "write which is meant"))
    return directions.pop()


def _definition(section: TaskSection, documents: Sequence[TaskDocuments]) -> str:
    """Return a hash of the group's file and its tasks' files, where it is a file."""
    if not Path(section.task).is_file():
        return ""
    sources = {Path(section.task)}
    for one in documents:
        sources.add(Path((one.task.config.metadata or {}).get("config_source", "")))
    return item_hash(sorted(file_hash(path) for path in sources if path.is_file()))
