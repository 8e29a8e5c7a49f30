"""What the parameters of merge methods are: their ranges, and what they mean in each."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np


@dataclass(frozen=True)
class Axis:
    """The range in which a parameter makes sense; `per_model` ones hold one float per model.

    >>> Axis(0.0, 1.0, per_model=True).high
    1.0
    """

    low: float
    high: float
    per_model: bool = False


Weights = Annotated[
    np.ndarray,
    Axis(-np.inf, np.inf, per_model=True),
    "factor of each model, or of its task vector where there is a base",
]

Densities = Annotated[
    np.ndarray,
    Axis(0.0, 1.0, per_model=True),
    "share of each task vector's elements that is kept",
]

Thresholds = Annotated[np.ndarray, Axis(0.0, np.inf, per_model=True)]

Scale = Annotated[
    float, Axis(-np.inf, np.inf), "factor of the merged task vector, the papers' lambda"
]

Fraction = Annotated[float, Axis(0.0, 1.0)]

Count = Annotated[float, Axis(1.0, np.inf)]

Positive = Annotated[float, Axis(0.0, np.inf)]

Normalize = Annotated[
    bool, "divide each element by the sum of |weight| of the models that are left of it"
]

Rescale = Annotated[
    bool, "divide what is kept by the probability of keeping it, so that the mean stays"
]

Elect = Annotated[bool, "add only elements whose sign is that of the weighted sum, as TIES does"]

# Defaults of parameters that each model has one of are arrays of no dimension.
ONE = np.array(1.0)  # keeps all of a task vector, or adds it as it is
