"""Recipes of kind `mixture`: coefficients that are constant on segments of the parameters.

A crossover of linear combinations of models is one again (M2N2, arXiv:2508.16204, equation 2), so
a descendant of any depth is segments and coefficients, and is merged in one pass over the models.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from evomerge.recipes.block_names import holds
from evomerge.recipes.recipe import VERSION, Recipe

_MOST_UNPACKED = 1 << 30  # bytes: some million segments of a hundred models

_SMALLEST_SINE = 1e-6  # below it slerp is lerp, as in M2N2's code


@dataclass(frozen=True, eq=False)
class Chromosome:
    """The coefficients of the tensors whose name contains `modules`, segment by segment.

    Attributes:
        modules: a substring of tensor names, or None for all that no other chromosome holds.
        edges: (segments + 1,) int64; segment s holds the parameters edges[s] to edges[s + 1].
        coefficients: (segments, models) float64.

    >>> halves = Chromosome(None, np.array([0, 5, 10]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    >>> halves.at(np.array([4, 5]))
    array([[1. , 0. ],
           [0.5, 0.5]])
    """

    modules: str | None
    edges: np.ndarray
    coefficients: np.ndarray

    def joined(self) -> "Chromosome":
        """Return the same with equal neighbours joined."""
        changes = np.any(self.coefficients[1:] != self.coefficients[:-1], axis=1)
        starts = np.concatenate([[True], changes])
        edges = np.concatenate([self.edges[:-1][starts], self.edges[-1:]])
        return Chromosome(self.modules, edges, self.coefficients[starts])

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the (positions, models) coefficients of parameters."""
        segment = self.edges.searchsorted(positions, side="right") - 1
        return self.coefficients[segment]

    def to_json(self) -> dict[str, Any]:
        """Return the chromosome as JSON-able data."""
        edges = self.edges.tolist()
        rows = (self.coefficients + 0.0).tolist()  # -0.0 + 0.0 is 0.0
        segments = [list(segment) for segment in zip(edges[:-1], edges[1:], rows, strict=True)]
        return {"modules": self.modules, "segments": segments}


@dataclass(frozen=True, eq=False)
class MixtureRecipe(Recipe):
    """One merged model: sum_k c_k W_k, c constant on segments.

    A tensor has the coefficients of the first chromosome whose `modules` its name contains.

    Attributes:
        models, dtype: see `Recipe`.
        chromosomes: at least one, the last of all modules.
        parameter_index_hash: of the index that positions refer to.

    >>> from evomerge.recipes.parameter_index import ParameterIndex
    >>> index = ParameterIndex({"embed.weight": 6, "lm_head.weight": 4})
    >>> cut = Chromosome(None, np.array([0, 8, 10]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    >>> recipe = MixtureRecipe(("a", "b"), (cut,), "float32", index.hash)
    >>> recipe.runs("lm_head.weight", *index.span["lm_head.weight"])
    (array([0, 2]), array([[1. , 0. ],
           [0.5, 0.5]]))
    """

    kind: ClassVar[Literal["mixture"]] = "mixture"

    models: tuple[str, ...]
    chromosomes: tuple[Chromosome, ...]
    dtype: str
    parameter_index_hash: str

    def to_json(self) -> dict[str, Any]:
        """See `Recipe.to_json`."""
        return self._head() | {"chromosomes": [c.to_json() for c in self.chromosomes]}

    def id(self, hashes: Mapping[str, str]) -> str:
        """See `Recipe.id`."""
        data = self.to_json() | {"models": [hashes[model] for model in self.models]}
        # `json_hash`, without its pass over each number in search of negative zeros: there is none
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def runs(self, name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where runs of a tensor's elements begin, and their (runs, models) coefficients.

        Args:
            name: of the tensor.
            first, last: where it begins and ends in the parameter index.
        """
        chromosome = next(
            c for c in self.chromosomes if c.modules is None or holds(c.modules, name)
        )
        last_segment = len(chromosome.coefficients) - 1
        low = min(int(chromosome.edges.searchsorted(first, side="right")) - 1, last_segment)
        high = max(low + 1, int(chromosome.edges.searchsorted(last, side="left")))
        starts = np.maximum(chromosome.edges[low:high], first) - first
        return starts, chromosome.coefficients[low:high]

    def _head(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "kind": self.kind,
            "models": list(self.models),
            "dtype": self.dtype,
            "parameter_index_hash": self.parameter_index_hash,
        }


def packed(recipe: MixtureRecipe) -> tuple[dict[str, Any], bytes]:
    """Return a mixture in a small form: JSON-able data without the numbers, and these.

    Returns:
        The recipe's JSON, where each chromosome has the number of its segments in the place of
        them, and bytes: of one chromosome after the other the edges (little-endian int64) and the
        coefficients (little-endian float64), all compressed by zlib.

    >>> one = Chromosome(None, np.array([0, 10]), np.array([[0.25, 0.75]]))
    >>> data, numbers = packed(MixtureRecipe(("a", "b"), (one,), "float32", "hash"))
    >>> data["chromosomes"]
    [{'modules': None, 'segments': 1}]
    """
    listed = [{"modules": c.modules, "segments": len(c.coefficients)} for c in recipe.chromosomes]
    numbers = bytearray()
    for chromosome in recipe.chromosomes:
        numbers += chromosome.edges.astype("<i8").tobytes()
        numbers += chromosome.coefficients.astype("<f8").tobytes()
    return recipe._head() | {"chromosomes": listed}, zlib.compress(numbers)


def unpacked(data: Mapping[str, Any], numbers: bytes) -> MixtureRecipe:
    """Return the mixture that `packed` made smaller.

    Raises:
        ValueError: the numbers are not those of its segments.

    >>> one = Chromosome(None, np.array([0, 10]), np.array([[0.25, 0.75]]))
    >>> recipe = MixtureRecipe(("a", "b"), (one,), "float32", "hash")
    >>> unpacked(*packed(recipe)).to_json() == recipe.to_json()
    True
    """
    models = tuple(data["models"])
    # as many bytes as the recipe says, and no more: a few that are compressed can stand for many
    counts = [entry["segments"] for entry in data["chromosomes"]]
    size = 8 * sum(count + 1 + count * len(models) for count in counts)
    if min(counts, default=0) < 1 or size > _MOST_UNPACKED:
        raise ValueError(f"a mixture of {counts} segments")
    unpacking, offset = zlib.decompressobj(), 0
    raw = unpacking.decompress(numbers, size + 1)
    if len(raw) != size or not unpacking.eof:
        raise ValueError("the segments are not as many as the recipe says")
    chromosomes = []
    for entry in data["chromosomes"]:
        segments = entry["segments"]
        edges = np.frombuffer(raw, "<i8", segments + 1, offset)
        offset += edges.nbytes
        coefficients = np.frombuffer(raw, "<f8", segments * len(models), offset)
        offset += coefficients.nbytes
        by_segment = coefficients.reshape(segments, len(models))
        if edges[0] != 0 or (np.diff(edges) <= 0).any() or not np.isfinite(by_segment).all():
            raise ValueError("the segments do not follow one another, or are no numbers")
        chromosomes.append(Chromosome(entry["modules"], edges, by_segment))
    index_hash = data["parameter_index_hash"]
    return MixtureRecipe(models, tuple(chromosomes), data["dtype"], index_hash)


def interpolated(t: float, angle: float) -> tuple[float, float]:
    """Return the shares of two vectors at t between them: slerp's, or lerp's at no angle.

    Args:
        t: from 0 (the first) to 1 (the second).
        angle: between the vectors, in radians.

    >>> interpolated(0.25, 0.0)
    (0.75, 0.25)
    """
    sine = np.sin(angle)
    if sine <= _SMALLEST_SINE:
        return 1.0 - t, t
    # sin((1 - t) Omega) / sin(Omega) and sin(t Omega) / sin(Omega) (Shoemake 1985)
    return float(np.sin((1.0 - t) * angle) / sine), float(np.sin(t * angle) / sine)
