"""A campaign's entry of `fitness` becomes what scores."""

from evomerge.scoring.answer_lengths import AnswerLengths
from evomerge.scoring.costs import CostFitness
from evomerge.scoring.fitness import (
    CostSection,
    Fitness,
    FitnessSection,
    FunctionSection,
    TaskSection,
)
from evomerge.scoring.function import FunctionFitness
from evomerge.scoring.lm_eval_group import GroupFitness
from evomerge.scoring.lm_eval_task import TaskFitness


def open_fitness(section: FitnessSection, own_test: bool = False) -> Fitness:
    """Open the fitness of a campaign's entry; loads its items but no model.

    Args:
        section: the entry.
        own_test: hold out the task's own test split: items are the validation (or training)
            documents, then the test ones.

    Raises:
        BadInput: the task, metric, file or items will not do.

    >>> len(open_fitness(CostSection(name="depth", cost="hops")).hashes)
    1
    """
    if isinstance(section, TaskSection):
        kind = GroupFitness if section.aggregate else TaskFitness
        return kind(section, own_test)
    if isinstance(section, FunctionSection):
        return FunctionFitness(section)
    if isinstance(section, CostSection):
        return AnswerLengths(section) if section.cost == "tokens" else CostFitness(section)
    raise TypeError(f"no fitness has options of type {type(section).__name__}")
