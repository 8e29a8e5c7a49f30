"""A course for races, for examples and tests."""

from evomerge.search.objectives import Objective
from evomerge.search.race import Course


def example_course(items: int = 200, seed: int = 1) -> Course:
    """Return the course of one objective, `x`, whose items are right or wrong.

    >>> example_course().total
    200
    """
    return Course([Objective("x")], {"x": items}, {"x": 1.0}, {"x": 1.0}, [seed])
