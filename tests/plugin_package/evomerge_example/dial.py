"""One gene: how much of the task vectors' mean is added."""

from typing import Literal

import numpy as np

from evomerge.recipes.parameters import Group, ParametersRecipe
from evomerge.recipes.recipe import Recipe
from evomerge.search.spaces import PointSpace, SourceShapes, SpaceSection, space


class DialSection(SpaceSection):
    """The dial has no options."""

    kind: Literal["dial"] = "dial"


@space(DialSection)
class Dial(PointSpace):
    """One gene, the weight of all models alike."""

    weighs = True

    def __init__(self, options: DialSection, shapes: SourceShapes):
        self.shapes, self.dtype = shapes, shapes.dtype

    @property
    def names(self) -> list[str]:
        return ["dial"]

    @property
    def start(self) -> np.ndarray:
        return np.array([0.5])

    def decode(self, genome: np.ndarray) -> ParametersRecipe:
        weight = (float(genome[0]),) * len(self.shapes.models)
        groups = (Group(None, None, {"weight": weight}),)
        shapes = self.shapes
        return ParametersRecipe("squared", shapes.models, groups, shapes.base, self.dtype)

    def encode(self, recipe: Recipe) -> np.ndarray:
        return np.array([0.5])
