"""What keeps a learner from learning."""

from evomerge.errors import EvomergeError


class Unlearnable(EvomergeError):
    """Coefficients cannot be learned of these models, or not on these texts.

    >>> raise Unlearnable("the loss is nan at step 3")
    Traceback (most recent call last):
    evomerge.learning.failure.Unlearnable: the loss is nan at step 3
    """
