"""A Python file that scores."""

from evomerge.scoring.fitness import Fitness, FunctionSection
from evomerge.scoring.function import FunctionFitness
from evomerge.scoring.kinds import fitness


@fitness(FunctionSection)
def open_function(section: FunctionSection, own_test: bool) -> Fitness:
    """Open a Python file.

    >>> open_function(FunctionSection(name="x", function="x.py"), own_test=False)
    Traceback (most recent call last):
    evomerge.errors.BadInput: function: there is no file 'x.py'; write a path to a .py file
    """
    return FunctionFitness(section)
