"""How large a model's tensors are."""

from collections.abc import Sequence

import numpy as np

from evomerge.scoring.fitness import Fitness, FitnessSection, Scorable
from evomerge.scoring.kinds import fitness
from evomerge.sections import Whole, option


class NormSection(FitnessSection):
    """The root mean square of some tensors; less is better."""

    key = "norm_of"

    norm_of: Whole = option("how many of the tensors, the first", ge=1)


class Norm(Fitness):
    """One item a tensor."""

    direction = "minimize"

    def __init__(self, section: NormSection):
        self.definition = "norm 1"
        self.hashes = [f"tensor {n}" for n in range(section.norm_of)]

    def prepare(self, live: Scorable, ordinals: Sequence[int]) -> None:
        self._parameters = list(live.model.parameters())

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        found = [float(self._parameters[o].float().square().mean().sqrt()) for o in ordinals]
        return np.array(found, np.float32)


@fitness(NormSection)
def open_norm(section: NormSection, own_test: bool) -> Norm:
    """Open it."""
    return Norm(section)
