"""The mixture space: individuals are segments of the parameters, each a mean of the models.

The search of M2N2 (arXiv:2508.16204) over models whose weights are merged, never trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.dtypes import DTYPES
from evomerge.errors import Checks, Fault
from evomerge.recipes.mixture import Chromosome, Layout, Mixture, interpolated, one_hot
from evomerge.recipes.parameters import Recipe, single
from evomerge.search.spaces import Sources, space


@space("mixture", breeds=True)
class MixtureSpace:
    """Crosses two individuals chromosome by chromosome, at a split point each.

    A genome is (mix, split) per chromosome: left of the parameter at `split` of the whole, the
    child is f_mix(A, B), right of it f_(1 - mix)(A, B) (equation 2 of the paper).
    """

    keys = ("kind", "chromosomes", "interpolation", "split", "dtype")

    def __init__(self, spec: Mapping[str, Any], sources: Sources):
        self.sources = sources
        self.modules = (*spec.get("chromosomes", ()), None)
        self.slerp = spec.get("interpolation", "lerp") == "slerp"
        self.split = spec.get("split", True)
        self.dtype = spec.get("dtype", sources.dtype)
        self.layout = Layout(sources.tensors)
        self._prefix: list[np.ndarray] | None = None

    @property
    def names(self) -> list[str]:
        """One readable name per gene, e.g. `split self_attn`."""
        what = ("mix", "split") if self.split else ("mix",)
        several = len(self.modules) > 1
        return [w + (f" {m or 'rest'}" if several else "") for m in self.modules for w in what]

    @property
    def dimension(self) -> int:
        return len(self.names)

    @property
    def start(self) -> np.ndarray:
        return np.full(self.dimension, 0.5)

    @property
    def first(self) -> Mixture:
        """The first model as an individual."""
        return self._individual(single(self.sources.models[0], self.dtype))

    def takes(self, candidate: Any) -> bool:
        """Tell whether a candidate may be a parent: a model, or a child of this search."""
        return candidate.origin != "baseline" or candidate.label in self.sources.labels

    def cross(
        self, genome: np.ndarray, parents: Sequence[Recipe | Mixture], ids: Sequence[str] = ()
    ) -> Mixture:
        """Return the child of two parents; of one, crossed with itself, its equal.

        Args:
            genome: (dimension,) float64 in [0, 1].
            parents: recipes of individuals, or of single models.
            ids: of the recipes; a mixture says all by itself.
        """
        a, b = (self._individual(p) for p in (parents[0], parents[-1]))
        genes = np.reshape(genome, (len(self.modules), -1))
        children = []
        for index, (mine, theirs) in enumerate(zip(a.chromosomes, b.chromosomes, strict=True)):
            mix = float(genes[index, 0])
            split = int(genes[index, 1] * self.layout.total) if self.split else self.layout.total
            angle = self._angle(index, mine, theirs) if self.slerp else 0.0
            children.append(_crossed(mine, theirs, mix, split, angle))
        return Mixture(self.sources.models, tuple(children), self.dtype, self.layout.hash)

    def _individual(self, recipe: Recipe | Mixture) -> Mixture:
        if recipe.kind == "mixture":
            return recipe
        return one_hot(recipe, self.sources.models, self.layout, self.modules)

    def _angle(self, index: int, a: Chromosome, b: Chromosome) -> float:
        """Return the angle between two individuals' vectors of one chromosome."""
        dot, mine, theirs = (self._inner(index, *p) for p in ((a, b), (a, a), (b, b)))
        if mine <= 0.0 or theirs <= 0.0:
            return 0.0
        return float(np.arccos(np.clip(dot / np.sqrt(mine * theirs), -1.0, 1.0)))

    def _inner(self, index: int, a: Chromosome, b: Chromosome) -> float:
        """Return <A, B> from the models' Gram matrices, summed up over the tensors."""
        if self._prefix is None:
            grams = self.sources.grams()  # (tensors, models, models)
            taken: set[str] = set()
            self._prefix = []
            for modules in self.modules:
                mine = {n for n in self.layout.names if modules is None or modules in n} - taken
                taken |= mine
                there = np.array([n in mine for n in self.layout.names])
                sums = np.cumsum(grams * there[:, None, None], axis=0)
                self._prefix.append(np.concatenate([np.zeros_like(sums[:1]), sums]))
        edges = np.union1d(a.edges, b.edges)
        # Within a tensor the products are taken as spread evenly: only the angle hangs on it.
        count = len(self.sources.models)
        flat = self._prefix[index].reshape(-1, count * count)
        at = np.stack([np.interp(edges, self.layout.edges, column) for column in flat.T], axis=1)
        grams = np.diff(at, axis=0).reshape(-1, count, count)
        return float(np.einsum("si,sij,sj->", a.at(edges[:-1]), grams, b.at(edges[:-1])))

    @classmethod
    def faults(
        cls, spec: Mapping[str, Any], labels: Sequence[str], base: bool, file: str
    ) -> list[Fault]:
        """Return what is wrong with a campaign's `space` mapping of this kind."""
        checks = Checks(spec, cls.keys, file, "space.")
        need, faults = checks.need, checks.faults
        listed = spec.get("chromosomes", [])
        texts = isinstance(listed, list) and all(isinstance(m, str) and m for m in listed)
        need("chromosomes", texts, "list substrings of tensor names, e.g. [self_attn]")
        said = spec.get("interpolation", "lerp")
        need("interpolation", said in ("lerp", "slerp"), "write lerp or slerp")
        need("split", isinstance(spec.get("split", True), bool), "write true or false")
        need("dtype", spec.get("dtype", DTYPES[0]) in DTYPES, f"write one of {', '.join(DTYPES)}")
        if len(labels) < 2:
            wrong = f"{len(labels)} model has nobody to be crossed with"
            faults.append(Fault(file, "sources.models", wrong, "list two or more"))
        return faults


def _crossed(a: Chromosome, b: Chromosome, mix: float, split: int, angle: float) -> Chromosome:
    total = int(a.edges[-1])
    edges = np.union1d(np.union1d(a.edges, b.edges), [min(max(split, 0), total)])
    starts = edges[:-1]
    shares = np.array([interpolated(mix, angle), interpolated(1.0 - mix, angle)])
    side = (starts >= split).astype(int)
    coefficients = shares[side, :1] * a.at(starts) + shares[side, 1:] * b.at(starts)
    return Chromosome(a.modules, edges, coefficients).joined()
