"""Several lm-eval tasks as one objective, or as one each."""

import re
from pathlib import Path
from typing import Literal

from evomerge.canonical import file_hash, item_hash
from evomerge.errors import BadInput
from evomerge.scoring.fitness import Fitness, FitnessSection, LmEvalSection, TaskSection, from_root
from evomerge.scoring.kinds import fitness
from evomerge.scoring.lm_eval_documents import TaskDocuments, open_documents
from evomerge.scoring.lm_eval_group import GroupFitness
from evomerge.sections import Text, option


class TasksSection(LmEvalSection):
    """Several lm-eval tasks that share a metric.

    >>> section = TasksSection(name="all", tasks=["arc_easy", "my/boolq.yaml"], metric="acc")
    >>> [(one.name, one.task) for one in section.each()]
    [('all.arc_easy', 'arc_easy'), ('all.boolq', 'my/boolq.yaml')]
    """

    key = "tasks"

    tasks: list[Text] = option(
        "names of lm-eval tasks, or paths of their YAML files",
        least=1,
        example=["arc_easy", "arc_challenge"],
    )
    aggregate: Literal["mean", "objectives"] = option(
        "mean: one objective, over the items of all tasks together, every item once; objectives:"
        " each task as an objective of its own, called NAME.TASK, which share the weight",
        "mean",
    )

    def resolved(self) -> FitnessSection:
        return self.model_copy(update={"tasks": list(map(from_root, self.tasks))})

    def each(self) -> list[TaskSection]:
        """Return an entry for every task."""
        return [entry_of(self, task) for task in self.tasks]


def entry_of(section: LmEvalSection, task: str, share: int = 1) -> TaskSection:
    """Return the entry of one of several tasks, with their options and its share of the weight.

    Args:
        section: of all of them.
        task: its name or file.
        share: among how many the weight is shared out.

    >>> section = TasksSection(name="all", tasks=["a", "b"], metric="acc", weight=3.0)
    >>> entry_of(section, "b", share=2).weight
    1.5
    """
    shared = section.model_dump(include=set(LmEvalSection.model_fields))
    label = Path(task).stem if task.endswith((".yaml", ".yml")) else task
    name = f"{section.name}.{re.sub(r'[^A-Za-z0-9_.-]', '-', label)}"
    shared |= {"name": name, "weight": section.weight / share}
    return TaskSection(task=task, **shared)


@fitness(TasksSection)
def open_tasks(section: TasksSection, own_test: bool) -> Fitness:
    """Open several tasks as one objective.

    >>> from evomerge.testing.lm_eval_tasks import example_section
    >>> tasks = [example_section().task, example_section(fewshot=0).task]
    >>> section = TasksSection(name="all", tasks=tasks, metric="acc")
    >>> len(open_tasks(section, own_test=False).hashes)
    48
    """
    documents: list[TaskDocuments] = []
    for index, one in enumerate(section.each()):
        try:
            documents += open_documents(one, own_test)
        except BadInput as error:
            found = [f.under(f"tasks.{index}") if f.key == "task" else f for f in error.faults]
            raise BadInput(*found) from error.__cause__
    whole = section.each()[0].model_copy(update={"task": ", ".join(section.tasks)})
    opened = GroupFitness(whole, own_test, documents)
    files = [Path(task) for task in section.tasks]
    opened.definition = item_hash([file_hash(file) if file.is_file() else "" for file in files])
    return opened
