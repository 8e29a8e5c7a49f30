"""How genes say a path through the layers of several models: slots, exchanges, or blocks."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

_Hop = tuple[int, int, int]  # model, layer, place


class PathGenes(ABC):
    """Genes of a path. The first hop is the frame's first layer, the last hop its last.

    Attributes:
        free: places from here on may put other hops on the path than the first.
        places: what may put hops on the path, as people read it.
        names: of the genes.
        levels: how many values each gene has; 0 for one that is continuous.
        start: (genes,) float64, where a search may begin.

    >>> genes = Exchange([3, 3], frame=0, prior=0, longest=6, certainty=0.25)
    >>> genes.hops(genes.start)
    [(0, 0, 0), (0, 1, 1), (0, 2, 2)]
    """

    free: ClassVar[int]
    places: list[str]
    names: list[str]
    levels: list[int]
    start: np.ndarray

    @abstractmethod
    def hops(self, genes: np.ndarray) -> list[_Hop]:
        """Return the path of some genes, a list of (model, layer, place)."""

    @abstractmethod
    def encoded(self, path: Sequence[tuple[int, int]]) -> tuple[np.ndarray, list[int | None]]:
        """Return genes of a path of (model, layer), and each hop's place; None: it has none."""

    def settled(self, genes: np.ndarray) -> np.ndarray:
        """Return the genes, those that have no say at their start."""
        return genes.copy()


def _likeliest(uses: np.ndarray, most: int) -> list[int]:
    """Return the genes above a half in order, of too many those that are the largest."""
    chosen = np.flatnonzero(uses > 0.5)
    kept = np.argsort(-uses[chosen], kind="stable")[: max(0, most)]
    return sorted(chosen[kept].tolist())


class Slots(PathGenes):
    """Every layer is a slot with a gene that says, above a half, that it is on the path.

    Slots stand in the models' order, the whole row `repeats` times over (Akiba et al.,
    arXiv:2403.13187); or by depth, the models' first layers before their second ones; or, if
    `permuted`, by depth and within it in the order of another gene each (the random keys of Bean,
    ORSA J. Computing 6, 1994).

    >>> slots = Slots([2, 2], ["a", "b"], 0, 0, "models", 1, longest=4, certainty=0.25)
    >>> slots.names, slots.hops(np.array([0.9, 0.1]))
    (['use b 0', 'use b 1'], [(0, 0, 0), (1, 0, 1), (0, 1, 3)])
    """

    free = 1

    def __init__(
        self,
        depths: Sequence[int],
        labels: Sequence[str],
        frame: int,
        prior: int,
        order: str,
        repeats: int,
        longest: int,
        certainty: float,
    ):
        """
        Args:
            depths: layers of each model.
            labels: the models'.
            frame: the model that begins and ends the path.
            prior: the model whose path is likelier at first.
            order: "models", "depth" or "permuted".
            repeats: how often the row of slots comes.
            longest: hops at most; of more, those with the least genes are left out.
            certainty: how far from a half genes begin; 0 where no path is likelier.
        """
        row = [(m, layer) for m, depth in enumerate(depths) for layer in range(depth)]
        if order != "models":
            row.sort(key=lambda slot: (slot[1], slot[0]))
        every = [(m, layer, turn) for turn in range(repeats) for m, layer in row]
        ends = (frame, 0, 0), (frame, depths[frame] - 1, repeats - 1)
        free = [slot for slot in every if slot not in ends]
        self._slots = [ends[0], *free, ends[1]]
        self._permuted, self._longest = order == "permuted", longest
        again = ["" if turn == 0 else f" #{turn + 1}" for turn in range(repeats)]
        self.places = [f"{labels[m]} {layer}{again[turn]}" for m, layer, turn in self._slots]
        depth = depths[prior]
        # The frame's ends are on the path anyhow; of another model, its inside is between them.
        once = {(prior, layer, 0) for layer in range(1, depth - 1)}
        likely = np.array([slot in once for slot in free], float)
        uses = 0.5 + certainty * (2.0 * likely - 1.0)
        self._count = len(uses)
        self.names = [f"use {place}" for place in self.places[1:-1]]
        self.levels = [2] * self._count
        self.start = uses
        if self._permuted:
            self.names += [f"turn {place}" for place in self.places[1:-1]]
            self.levels += [0] * self._count
            self.start = np.concatenate([uses, np.full(self._count, 0.5)])

    def hops(self, genes: np.ndarray) -> list[_Hop]:
        """Return the path, a list of (model, layer, place)."""
        chosen = self._chosen(genes)
        if self._permuted:
            turns = genes[self._count :]
            chosen.sort(key=lambda i: (*self._rank(i + 1), turns[i]))
        places = [0, *(i + 1 for i in chosen), len(self._slots) - 1]
        return [(*self._slots[place][:2], place) for place in places]

    def settled(self, genes: np.ndarray) -> np.ndarray:
        """Return the genes, those of slots that are not on the path at their start."""
        settled = genes.copy()
        if self._permuted:
            off = np.ones(self._count, bool)
            off[self._chosen(genes)] = False
            settled[self._count :][off] = 0.5
        return settled

    def encoded(self, path: Sequence[tuple[int, int]]) -> tuple[np.ndarray, list[int | None]]:
        """Return genes of a path of (model, layer), and each hop's place; None: it has none."""
        genes = self.start.copy()
        uses, turns = genes[: self._count], genes[self._count :]
        uses[:] = 0.25
        last = len(self._slots) - 1
        places: list[int | None] = []
        before = (0, 0)
        for number, hop in enumerate(path):
            if number in (0, len(path) - 1):
                end = 0 if number == 0 else last
                places.append(end if self._slots[end][:2] == hop else None)
                continue
            found = next((p for p in range(1, last) if self._follows(p, before, hop, uses)), None)
            places.append(found)
            if found is not None:
                uses[found - 1] = 0.75
                before = self._rank(found)
                if self._permuted:
                    turns[found - 1] = (number + 0.5) / len(path)
        return genes, places

    def _rank(self, place: int) -> tuple[int, int]:
        """Return what never falls along a path: the slot, or its depth if slots are permuted."""
        _, layer, turn = self._slots[place]
        return (turn, layer) if self._permuted else (place, 0)

    def _follows(
        self, place: int, before: tuple[int, int], hop: tuple[int, int], uses: np.ndarray
    ) -> bool:
        """Tell whether a slot that is not used yet is that of the hop after `before`."""
        later = self._rank(place) >= before and uses[place - 1] < 0.5
        return later and self._slots[place][:2] == hop

    def _chosen(self, genes: np.ndarray) -> list[int]:
        """Return the free slots on the path, the likeliest if there are too many."""
        return _likeliest(genes[: self._count], self._longest - 2)


class Exchange(PathGenes):
    """One layer at each depth, of the model that a gene chooses, unless another leaves it out.

    For models of one base, whose layers of equal depth can stand in for one another: where slots
    need two genes to change at once, so that no depth comes twice or never, here one does.

    >>> genes = Exchange([3, 3], frame=0, prior=0, longest=6, certainty=0.25)
    >>> genes.hops(np.array([0.9, 0.9]))
    [(0, 0, 0), (1, 1, 1), (0, 2, 2)]
    """

    free = 1

    def __init__(
        self, depths: Sequence[int], frame: int, prior: int, longest: int, certainty: float
    ):
        """
        Args:
            depths, frame, prior, longest, certainty: as of `Slots`. Where the chosen model has no
                layer of that depth, the frame has.
        """
        self._depths, self._frame, self._longest = list(depths), frame, longest
        inner = range(1, depths[frame] - 1)
        self.places = [f"layer {depth}" for depth in range(depths[frame])]
        self.names = [f"{what} layer {depth}" for depth in inner for what in ("model", "use")]
        self.levels = [len(depths), 2] * len(inner)
        self.start = np.tile([(prior + 0.5) / len(depths), 0.5 + certainty], len(inner))

    def hops(self, genes: np.ndarray) -> list[_Hop]:
        """Return the path, a list of (model, layer, place)."""
        last = self._depths[self._frame] - 1
        chosen = self._chosen(genes)
        inside = [(self._model(genes, depth), depth, depth) for depth in chosen]
        return [(self._frame, 0, 0), *inside, (self._frame, last, last)]

    def settled(self, genes: np.ndarray) -> np.ndarray:
        """Return the genes, the model of a depth that is left out at its start."""
        settled = genes.copy()
        off = set(range(1, self._depths[self._frame] - 1)) - set(self._chosen(genes))
        for depth in off:
            settled[2 * (depth - 1)] = self.start[2 * (depth - 1)]
        return settled

    def encoded(self, path: Sequence[tuple[int, int]]) -> tuple[np.ndarray, list[int | None]]:
        """Return genes of a path of (model, layer), and each hop's place; None: it has none."""
        genes, before = self.start.copy(), 0
        genes[1::2] = 0.25
        last = self._depths[self._frame] - 1
        places: list[int | None] = []
        for number, (model, layer) in enumerate(path):
            if number in (0, len(path) - 1):
                end = 0 if number == 0 else last
                places.append(end if (model, layer) == (self._frame, end) else None)
            elif before < layer < last:
                at = 2 * (layer - 1)
                genes[at : at + 2] = (model + 0.5) / len(self._depths), 0.75
                before = layer
                places.append(layer)
            else:
                places.append(None)
        return genes, places

    def _chosen(self, genes: np.ndarray) -> list[int]:
        """Return the inner depths on the path, the likeliest if there are too many."""
        return [index + 1 for index in _likeliest(genes[1::2], self._longest - 2)]

    def _model(self, genes: np.ndarray, depth: int) -> int:
        count = len(self._depths)
        model = min(int(genes[2 * (depth - 1)] * count), count - 1)
        return model if depth < self._depths[model] else self._frame


class Blocks(PathGenes):
    """Some blocks of consecutive layers, each of one model: depth upscaling, as by hand.

    A block's genes are its model, its first and its last layer.

    >>> blocks = Blocks([4, 4], frame=0, prior=0, blocks=1, longest=8)
    >>> [hop[:2] for hop in blocks.hops(np.array([0.9, 0.3, 0.6]))]
    [(0, 0), (1, 1), (1, 2), (0, 3)]
    """

    free = 0

    def __init__(self, depths: Sequence[int], frame: int, prior: int, blocks: int, longest: int):
        """
        Args:
            depths, frame, longest: as of `Slots`; what is too long is cut before the last hop.
            prior: the model whose path is the first one.
            blocks: how many.
        """
        self._depths, self._frame, self._longest = list(depths), frame, longest
        # Another model's path begins and ends with the frame's ends, and is its inside between.
        low, high = 0, depths[prior]
        if prior != frame and depths[prior] > 2:
            low, high = 1, depths[prior] - 1
        blocks = min(blocks, high - low)
        self.places = [f"block {b + 1}" for b in range(blocks)]
        self.names = [f"{what} {p}" for p in self.places for what in ("model", "first", "last")]
        self.levels = [len(depths), max(depths), max(depths)] * blocks
        cuts = np.linspace(low, high, blocks + 1).round().astype(int)
        spans = itertools.pairwise(cuts)
        rows = [[prior, first, max(first, last - 1)] for first, last in spans]
        self.start = (np.array(rows).ravel() + 0.5) / np.array(self.levels)

    def hops(self, genes: np.ndarray) -> list[_Hop]:
        """Return the path, a list of (model, layer, place)."""
        found: list[_Hop] = []
        for place, (model, first, last) in enumerate(self._numbers(genes)):
            end = self._depths[model] - 1
            first, last = min(first, end), min(last, end)
            found += [(model, x, place) for x in range(min(first, last), max(first, last) + 1)]
        ends = (self._frame, 0), (self._frame, self._depths[self._frame] - 1)
        if found[0][:2] != ends[0]:
            found.insert(0, (*ends[0], 0))
        if found[-1][:2] != ends[1] or len(found) == 1:
            found.append((*ends[1], len(self.places) - 1))
        return [*found[: self._longest - 1], found[-1]] if len(found) > self._longest else found

    def encoded(self, path: Sequence[tuple[int, int]]) -> tuple[np.ndarray, list[int | None]]:
        """Return genes of a path of (model, layer), and each hop's place; None: it has none."""
        runs: list[list[int]] = []
        for model, layer in path:
            if not runs or runs[-1][0] != model or layer != runs[-1][2] + 1:
                runs.append([model, layer, layer])
            runs[-1][2] = layer
        count, end = len(self.places), self._depths[self._frame] - 1
        if len(runs) > count and runs[0] == [self._frame, 0, 0]:  # ends come without a block
            runs = runs[1:]
        if len(runs) > count and runs[-1] == [self._frame, end, end]:
            runs = runs[:-1]
        runs = runs[:count]
        while len(runs) < count and any(first < last for _, first, last in runs):
            index = max(range(len(runs)), key=lambda i: runs[i][2] - runs[i][1])
            model, first, last = runs[index]
            middle = (first + last) // 2
            runs[index : index + 1] = [[model, first, middle], [model, middle + 1, last]]
        runs += runs[-1:] * (count - len(runs))
        genes = (np.array(runs).ravel() + 0.5) / np.array(self.levels)
        hops, at = self.hops(genes), 0
        places: list[int | None] = []
        for slot in path:
            found = next((i for i in range(at, len(hops)) if hops[i][:2] == slot), None)
            places.append(None if found is None else hops[found][2])
            at = at if found is None else found + 1
        return genes, places

    def _numbers(self, genes: np.ndarray) -> list[list[int]]:
        levels = np.array(self.levels)
        numbers = np.minimum((genes * levels).astype(int), levels - 1)
        return numbers.reshape(-1, 3).tolist()
