"""The routing space: which layers of which models a token passes, in what order, how strongly.

The data flow space of Akiba et al. (arXiv:2403.13187, section 3.2): all layers of all models, in a
row, the row some times over, and a gene for each that says whether it is on the path. Instead of
their matrix of scales between layers, genes are what a layer's branches are multiplied by: a
bijection (`Routing.fold`) in which a change of one hop leaves all others as they were.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.dtypes import DTYPES
from evomerge.errors import Checks, Fault, nearest
from evomerge.recipes.routing import Hop, Routing, whole
from evomerge.registry import fits
from evomerge.search.axes import Gene
from evomerge.search.routing_paths import ORDERS, Blocks, Exchange, Slots
from evomerge.search.spaces import Sources, quantize, space

_GAINS = {"none": (), "shared": ("gain",), "separate": ("attention gain", "mlp gain")}

_GAIN = {"low": 0.5, "high": 2.0}


@space("routing", weighs=False)
class RoutingSpace:
    """Paths through the layers of several models, from the frame's first layer to its last.

    A genome has the genes of a path (`paths`), then the gains of each of its places, on a
    logarithmic scale. The first hop has none: to scale it is to scale all others.
    """

    keys = (
        "kind", "frame", "repeats", "order", "blocks", "gains", "gain", "longest", "prior",
        "certainty", "dtype",
    )  # fmt: skip

    def __init__(self, spec: Mapping[str, Any], sources: Sources):
        self.sources = sources
        labels = list(sources.labels)
        self.frame = labels.index(spec["frame"]) if "frame" in spec else 0
        own = sources.dtypes.get(sources.models[self.frame], sources.dtype)
        self.dtype = spec.get("dtype", own)
        depths = [sources.depths[m] for m in sources.models]
        named = spec.get("prior", labels[self.frame])
        prior = None if named is None else labels.index(named)
        longest = spec.get("longest", 2 * max(depths))
        certainty = spec.get("certainty", 0.25)
        if "blocks" in spec:
            self.path = Blocks(depths, self.frame, prior, spec["blocks"], longest)
        elif spec.get("order") == "exchange":
            self.path = Exchange(depths, self.frame, prior, longest, certainty)
        else:
            order, repeats = spec.get("order", "models"), spec.get("repeats", 1)
            self.path = Slots(depths, labels, self.frame, prior, order, repeats, longest, certainty)
        self._each = _GAINS[spec.get("gains", "shared")]  # the gains that a place has
        ends = spec.get("gain", _GAIN)
        self._gene = Gene("gain", None, None, None, ends["low"], ends["high"], True, False)

    @property
    def names(self) -> list[str]:
        """One readable name per gene, e.g. `use ja 3` or `gain ja 3`."""
        return [*self.path.names, *(f"{g} {p}" for p in self._gained for g in self._each)]

    @property
    def dimension(self) -> int:
        return len(self.names)

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each gene has; 0 for a gene that is continuous."""
        return (*self.path.levels, *(0 for _ in self._gained for _ in self._each))

    @property
    def start(self) -> np.ndarray:
        gains = len(self._gained) * len(self._each)
        return np.concatenate([self.path.start, np.full(gains, self._gene.unit(1.0))])

    @property
    def _gained(self) -> list[str]:
        return self.path.places[self.path.free :]

    @property
    def first(self) -> Routing:
        """Where a search may begin, as a recipe."""
        return self.decode(self.start)

    def single(self, name: str) -> Routing:
        """Return the recipe of a source as it is."""
        return whole(name, self.sources.depths[name], self.dtype)

    def decode(self, genome: np.ndarray) -> Routing:
        """Return the recipe at `genome`, (dimension,) float64 in [0, 1]."""
        genes, gains = self._parts(genome)
        hops, before = [], 1.0
        for model, layer, place in self.path.hops(genes):
            units = gains[place - self.path.free] if hops and place >= self.path.free else ()
            own = [self._gene.value(float(u)) for u in units]
            if len(own) == 2:
                hops.append(Hop(model, layer, 1.0, (own[0], own[1])))
            else:
                after = own[0] if own else 1.0  # divides the stream, which multiplies the branch
                hops.append(Hop(model, layer, before / after))
                before = after
        return Routing(self.sources.models, tuple(hops), self.frame, self.dtype)

    def settled(self, genome: np.ndarray) -> np.ndarray:
        """Return `genome` with the genes that have no say at their start.

        Left to drift, they would widen the search for nothing.
        """
        settled = self.start
        genes, gains = self._parts(settled)
        given, own = self._parts(genome)
        places = [place for _, _, place in self.path.hops(given)[1:]]
        on_path = [place - self.path.free for place in places if place >= self.path.free]
        genes[:] = self.path.settled(given)
        gains[on_path] = own[on_path]
        return quantize(settled)

    def encode(self, recipe: Routing) -> np.ndarray:
        """Return the genome nearest to `recipe`: hops that have no place are left out."""
        genome = self.start
        genes, gains = self._parts(genome)
        fold = recipe.fold()
        path = [(hop.model, hop.layer) for hop in recipe.path]
        genes[:], places = self.path.encoded(path)
        for place, (attention, mlp, _) in zip(places[1:], fold.hops[1:], strict=True):
            if place is not None and place >= self.path.free and self._each:
                both = np.abs([attention, mlp]) / abs(fold.embed)
                own = both if len(self._each) == 2 else [np.sqrt(both.prod())]
                gains[place - self.path.free] = [self._gene.unit(float(g)) for g in own]
        return genome

    def _parts(self, genome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return views of the path's genes, and of the gains, (places that have some, of each)."""
        cut = len(self.path.names)
        return genome[:cut], genome[cut:].reshape(len(self._gained), len(self._each))

    @classmethod
    def faults(
        cls, spec: Mapping[str, Any], labels: Sequence[str], base: bool, file: str
    ) -> list[Fault]:
        """Return what is wrong with a campaign's `space` mapping of this kind."""
        checks = Checks(spec, cls.keys, file, "space.")
        need, faults = checks.need, checks.faults
        for key in ("frame", "prior"):
            known = spec.get(key, labels[0]) in labels or (key == "prior" and spec[key] is None)
            need(key, known, f"write a model's label: {nearest(str(spec.get(key)), labels)}")
        for key, least in (("repeats", 1), ("blocks", 1), ("longest", 2)):
            number = spec.get(key, least)
            good = fits(number, int) and number >= least
            need(key, good, f"write a whole number of at least {least}")
        need("order", spec.get("order", "models") in ORDERS, f"write one of {', '.join(ORDERS)}")
        need(
            "gains",
            spec.get("gains", "shared") in tuple(_GAINS),
            f"write one of {', '.join(_GAINS)}",
        )
        certainty = spec.get("certainty", 0.25)
        good = fits(certainty, float) and 0 <= certainty <= 0.5
        need("certainty", good, "write a number from 0 to 0.5")
        need("dtype", spec.get("dtype", DTYPES[0]) in DTYPES, f"write one of {', '.join(DTYPES)}")
        ends = spec.get("gain", _GAIN)
        sound = isinstance(ends, Mapping) and set(ends) == {"low", "high"}
        sound = sound and all(fits(v, float) for v in ends.values())
        need("gain", sound and 0 < ends["low"] < 1 < ends["high"], "write {low: 0.5, high: 2.0}")
        if spec.get("order") == "exchange" and "repeats" in spec:
            wrong = "gives every depth one layer"
            faults.append(Fault(file, "space.order", wrong, "leave repeats out"))
        if "blocks" in spec:
            for key in ("repeats", "order", "certainty"):
                if key in spec:
                    wrong = "says how single layers are searched, and these are blocks"
                    faults.append(Fault(file, f"space.{key}", wrong, "leave one of the two out"))
        return faults
