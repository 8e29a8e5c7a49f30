"""Mixture: a recipe whose coefficients are constant on segments of the flattened parameters.

A crossover of linear combinations of models is one again (M2N2, arXiv:2508.16204, equation 2), so
a descendant of any depth is segments and coefficients, and is merged in one pass over the models.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.dtypes import DTYPES
from evomerge.errors import BadInput, Checks, Fault
from evomerge.recipes.parameters import VERSION, Recipe

_SMALLEST_SINE = 1e-6  # below it slerp is lerp, as in M2N2's code

_KEYS = {"version", "kind", "models", "dtype", "layout", "chromosomes"}


class Layout:
    """Where each tensor begins and ends among the flattened parameters, in canonical order."""

    def __init__(self, sizes: Mapping[str, int]):
        """
        Args:
            sizes: tensor name -> elements, in canonical order.
        """
        self.names = tuple(sizes)
        self.edges = np.concatenate([[0], np.cumsum(list(sizes.values()), dtype=np.int64)])
        spans = zip(self.names, self.edges[:-1], self.edges[1:], strict=True)
        self.span = {n: (int(a), int(b)) for n, a, b in spans}
        listed = json.dumps(list(sizes.items())).encode()
        self.hash = hashlib.sha256(listed).hexdigest()[:16]

    @property
    def total(self) -> int:
        return int(self.edges[-1])


@dataclass(frozen=True, eq=False)
class Chromosome:
    """The coefficients of the tensors whose name contains `modules` (None: of all the others).

    Segment s holds the flattened parameters from edges[s] to edges[s + 1], and has one
    coefficient a model: `edges` is (segments + 1,) int64, `coefficients` is (segments, models)
    float64.
    """

    modules: str | None
    edges: np.ndarray
    coefficients: np.ndarray

    def joined(self) -> "Chromosome":
        """Return the same with equal neighbours joined."""
        new = np.any(self.coefficients[1:] != self.coefficients[:-1], axis=1)
        starts = np.concatenate([[True], new])
        edges = np.concatenate([self.edges[:-1][starts], self.edges[-1:]])
        return Chromosome(self.modules, edges, self.coefficients[starts])

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the (positions, models) coefficients of parameters."""
        segment = np.searchsorted(self.edges, positions, side="right") - 1
        return self.coefficients[segment]


@dataclass(frozen=True, eq=False)
class Mixture:
    """One merged model of kind `mixture`: sum_k c_k W_k, c constant on segments.

    A tensor has the coefficients of the first chromosome whose `modules` its name contains.
    `layout` is the hash of the layout that positions refer to.
    """

    models: tuple[str, ...]
    chromosomes: tuple[Chromosome, ...]
    dtype: str
    layout: str
    kind: str = "mixture"

    @property
    def sources(self) -> tuple[str, ...]:
        """The distinct models."""
        return tuple(dict.fromkeys(self.models))

    def to_json(self) -> dict:
        """Return the recipe as JSON-able data; `recipe.from_json` reads it back."""
        return {
            "version": VERSION,
            "kind": self.kind,
            "models": list(self.models),
            "dtype": self.dtype,
            "layout": self.layout,
            "chromosomes": [_chromosome_to_json(c) for c in self.chromosomes],
        }

    def id(self, hashes: Mapping[str, str]) -> str:
        """Return the recipe's id, 64 hex digits; see `Recipe.id`."""
        data = self.to_json() | {"models": [hashes[m] for m in self.models]}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()  # canonical: no zero here is negative

    def runs(self, name: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where runs of a tensor's elements begin, and their (runs, models) coefficients.

        Args:
            name: of the tensor.
            first, last: where it begins and ends in the layout.
        """
        held = (c for c in self.chromosomes if c.modules is None or c.modules in name)
        chromosome = next(held)
        last_row = len(chromosome.coefficients) - 1
        low = min(int(np.searchsorted(chromosome.edges, first, side="right")) - 1, last_row)
        high = max(low + 1, int(np.searchsorted(chromosome.edges, last, side="left")))
        starts = np.maximum(chromosome.edges[low:high], first) - first
        return starts, chromosome.coefficients[low:high]


def one_hot(recipe: Recipe, models: Sequence[str], layout: Layout, modules: tuple) -> Mixture:
    """Return a source's own recipe (`recipe.single`) as a mixture over `models`."""
    coefficients = np.array([[float(m == recipe.models[0]) for m in models]])
    edges = np.array([0, layout.total])
    chromosomes = tuple(Chromosome(m, edges, coefficients) for m in modules)
    return Mixture(tuple(models), chromosomes, recipe.dtype, layout.hash)


def interpolated(t: float, angle: float) -> tuple[float, float]:
    """Return the shares of two vectors at t between them: slerp's, or lerp's at no angle."""
    sine = np.sin(angle)
    if sine <= _SMALLEST_SINE:
        return 1.0 - t, t
    return float(np.sin((1.0 - t) * angle) / sine), float(np.sin(t * angle) / sine)


def _chromosome_to_json(chromosome: Chromosome) -> dict:
    edges = chromosome.edges.tolist()
    rows = (chromosome.coefficients + 0.0).tolist()  # no negative zeros
    segments = [list(s) for s in zip(edges[:-1], edges[1:], rows, strict=True)]
    return {"modules": chromosome.modules, "segments": segments}


def mixture_from_json(data: Mapping[str, Any], file: str) -> Mixture:
    """Read a mixture back from its JSON; see `recipe.from_json`."""
    checks = Checks(data, _KEYS, file)
    need, faults = checks.need, checks.faults
    models, listed = data.get("models"), data.get("chromosomes")
    texts = isinstance(models, list) and all(isinstance(m, str) and m for m in models)
    need("version", data.get("version") == VERSION, f"write {VERSION}")
    need("models", texts and bool(models), "write a list of model directories or hub ids")
    need("dtype", data.get("dtype") in DTYPES, f"write one of {', '.join(DTYPES)}")
    need("layout", isinstance(data.get("layout"), str), "write the layout's hash")
    need("chromosomes", isinstance(listed, list) and bool(listed), "write a list")
    if faults:
        raise BadInput(*faults)
    chromosomes = []
    for index, entry in enumerate(listed):
        try:
            chromosomes.append(_chromosome_from_json(entry, len(models)))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            wrong = f"is no chromosome ({str(error)[:80]})"
            mend = "write {modules, segments: [[first, last + 1, [one coefficient a model]], ...]}"
            faults.append(Fault(file, f"chromosomes.{index}", wrong, mend))
    if not faults and chromosomes[-1].modules is not None:
        wrong = "leave out tensors without one of the substrings"
        faults.append(Fault(file, "chromosomes", wrong, "let the last one's modules be null"))
    if not faults and len({int(c.edges[-1]) for c in chromosomes}) > 1:
        faults.append(Fault(file, "chromosomes", "end at different parameters", "end them alike"))
    if faults:
        raise BadInput(*faults)
    return Mixture(tuple(models), tuple(chromosomes), data["dtype"], data["layout"])


def _chromosome_from_json(entry: Any, models: int) -> Chromosome:
    if not isinstance(entry, dict) or set(entry) != {"modules", "segments"}:
        raise ValueError("not {modules, segments}")
    modules, segments = entry["modules"], entry["segments"]
    if modules is not None and not (isinstance(modules, str) and modules):
        raise ValueError(f"modules is {modules!r}")
    if not isinstance(segments, list) or not segments:
        raise ValueError("no segments")
    for first, last, row in segments:
        if not all(type(x) is int for x in (first, last)) or first >= last:
            raise ValueError(f"segment {first!r} to {last!r}")
        if not all(type(x) in (int, float) for x in row) or len(row) != models:
            raise ValueError(f"coefficients {row!r}")
    edges = np.array([0, *(s[1] for s in segments)], np.int64)
    if [s[0] for s in segments] != edges[:-1].tolist():
        raise ValueError("segments do not follow one another from 0")
    coefficients = np.array([s[2] for s in segments], np.float64)
    if not np.isfinite(coefficients).all():
        raise ValueError("a coefficient is not finite")
    return Chromosome(modules, edges, coefficients)
