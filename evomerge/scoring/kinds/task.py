"""An lm-eval task, or a group of them as one objective."""

from evomerge.scoring.fitness import Fitness, TaskSection
from evomerge.scoring.kinds import fitness
from evomerge.scoring.lm_eval_group import GroupFitness
from evomerge.scoring.lm_eval_task import TaskFitness


@fitness(TaskSection)
def open_task(section: TaskSection, own_test: bool) -> Fitness:
    """Open a task, or a group that is one objective.

    >>> from evomerge.testing.lm_eval_tasks import example_section
    >>> len(open_task(example_section(), own_test=False).hashes)
    24
    """
    kind = GroupFitness if section.aggregate else TaskFitness
    return kind(section, own_test)
