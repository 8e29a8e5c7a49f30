"""A campaign's entry of `fitness` becomes what scores."""

from evomerge.scoring.fitness import Fitness, FitnessSection
from evomerge.scoring.kinds import FITNESSES


def open_fitness(section: FitnessSection, own_test: bool = False) -> Fitness:
    """Open the fitness of a campaign's entry; loads its items but no model.

    Args:
        section: the entry.
        own_test: hold out the task's own test split: items are the validation (or training)
            documents, then the test ones.

    Raises:
        BadInput: the task, metric, file or items will not do.

    >>> from evomerge.scoring.fitness import CostSection
    >>> len(open_fitness(CostSection(name="depth", cost="hops")).hashes)
    1
    """
    return FITNESSES.get(section.key).open(section, own_test)
