"""Search spaces, one file each: named axes over recipes.

A space is a class registered with `@space(kind)`. It is made from the campaign's `space`
mapping and the sources' shape (`Sources`), and maps genomes, float64 vectors in [0, 1]^d,
to recipes: `decode(genome) -> Recipe`, `encode(recipe) -> genome`, `start` (where a search
may begin), `names` (one per gene). Its classmethod `faults` checks the mapping beforehand, whose
`keys` it lists.

A space that `breeds` has individuals instead of points: a genome says how two are crossed,
`cross(genome, parents, ids) -> Recipe`, and `takes(candidate)` whether one may be a parent. If
it `carries`, recipes tell the last birth alone, and weights are made where the archive is. One that
`weighs` decodes to models' weights by group, so that soups and other such spaces fit it. Of genes
that may have no say, `settled(genome) -> genome` puts those back to their start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from evomerge.registry import Registry

SPACES = Registry("evomerge.search.spaces", "search space")

RESOLUTION = 2.0**-24


@dataclass(frozen=True)
class Sources:
    """What a space needs to know of the sources: names, labels, layers, tensors.

    `layers` and `dtype` are those of the first source, `depths` and `dtypes` of each by name.
    `grams` reads all weights, and gives the models' inner products tensor by tensor; `weights`
    reads one model's, flattened.
    """

    base: str | None
    models: tuple[str, ...]
    labels: tuple[str, ...]
    layers: int
    dtype: str
    seed: int
    tensors: Mapping[str, int] = field(default_factory=dict)  # elements, in canonical order
    grams: Callable[[], np.ndarray] | None = None  # (tensors, models, models) float64
    weights: Callable[[str], np.ndarray] | None = None  # (parameters,) float32 of a model
    depths: Mapping[str, int] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)


def space(kind: str, *, breeds: bool = False, weighs: bool = True) -> Callable:
    """Register a space class under the `kind` that campaign files write."""

    def decorate(cls: type) -> type:
        cls.breeds, cls.carries = breeds, getattr(cls, "carries", False)
        cls.weighs = weighs and not breeds
        SPACES.add(kind, cls)
        return cls

    return decorate


def quantize(genome: np.ndarray) -> np.ndarray:
    """Round a genome to multiples of 2^-24 in [0, 1], so that no hash hangs on a last bit."""
    return np.clip(np.round(np.asarray(genome, np.float64) / RESOLUTION) * RESOLUTION, 0.0, 1.0)
