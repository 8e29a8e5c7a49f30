"""What a model costs to run, or how long its answers are."""

from evomerge.scoring.answer_lengths import AnswerLengths
from evomerge.scoring.costs import CostFitness
from evomerge.scoring.fitness import CostSection, Fitness
from evomerge.scoring.kinds import fitness


@fitness(CostSection)
def open_cost(section: CostSection, own_test: bool) -> Fitness:
    """Open a cost.

    >>> open_cost(CostSection(name="depth", cost="hops"), own_test=False).direction
    'minimize'
    """
    return AnswerLengths(section) if section.cost == "tokens" else CostFitness(section)
