"""Where the models of a pool stand among a space's genomes: none of them, and each by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ingredients:
    """The genomes that a search which adds one model after the other goes along.

    Attributes:
        nothing: (dimension,) float64 in [0, 1], where no model weighs anything.
        alone: (models, dimension) float64 in [0, 1], where one model alone weighs 1. Both are as
            near to that as the space's ranges allow.
        adds_up: whether weights are those of task vectors, whose sum may be more than 1, so that
            a model is added beside the others; else it is averaged with them.

    >>> pair = Ingredients(np.array([0.0, 0.0]), np.array([[1.0, 0.0], [0.0, 1.0]]), adds_up=True)
    >>> pair.genes_of([0]).tolist()
    [True, False]
    """

    nothing: np.ndarray
    alone: np.ndarray
    adds_up: bool

    @property
    def ways(self) -> np.ndarray:
        """(models, dimension) float64: how far a genome moves when a model's weight grows by 1."""
        return self.alone - self.nothing

    def genes_of(self, models: Sequence[int]) -> np.ndarray:
        """Return which genes weigh any of these models, (dimension,) bool."""
        return (self.ways[list(models)] != 0.0).any(axis=0)

    def models_in(self, genome: np.ndarray) -> list[int]:
        """Return the models that weigh something in a genome, in their order.

        >>> pair = Ingredients(np.array([0.0, 0.0]), np.array([[1.0, 0], [0, 1.0]]), adds_up=True)
        >>> pair.models_in(np.array([0.0, 0.3]))
        [1]
        """
        differs = np.abs(genome - self.nothing) > 1e-6  # more than genomes are rounded by
        return [k for k, way in enumerate(self.ways) if (differs & (way != 0.0)).any()]
