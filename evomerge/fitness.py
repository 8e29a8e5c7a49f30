"""Fitness: per-item scores of a model. Items are split once into search and held-out ones.

A fitness is an lm-eval task (lm_eval.py) or a Python module with `items()`, which returns a
list, and `score(model, tokenizer, items)`, which returns one float per item.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from evomerge.errors import BadInput, Fault, one_line


class Fitness(Protocol):
    """What scores a model on items known by their ordinal, 0 to len(hashes) - 1.

    Attributes:
        direction: "maximize" or "minimize".
        hashes: one per item; they tell whether the items are still the same.
        test_from: the first ordinal of the task's own held-out items, where asked for.
    """

    direction: str
    hashes: list[str]
    test_from: int | None

    def prepare(self, model: Any, tokenizer: Any, ordinals: Sequence[int]) -> None:
        """Get ready to score `model`, whose weights will change, on any of `ordinals`."""

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        """Return the (len(ordinals),) float32 scores of the model as it is now."""


@dataclass(frozen=True)
class Split:
    """Ordinals of the items that the search sees, and of those it never does; both sorted."""

    search: tuple[int, ...]
    heldout: tuple[int, ...]


def open_fitness(spec: Mapping[str, Any], file: str, key: str) -> Fitness:
    """Open the fitness of a campaign's entry `spec`; loads its items but no model.

    Raises:
        BadInput: the task, metric, file or items will not do.
    """
    if "function" in spec:
        return FunctionFitness(spec, file, key)
    from evomerge.lm_eval import TaskFitness

    return TaskFitness(spec, file, key)


class FunctionFitness:
    """A Python module's `items()` and `score(model, tokenizer, items)`."""

    def __init__(self, spec: Mapping[str, Any], file: str, key: str):
        self.direction = spec.get("direction") or "maximize"
        self.test_from = None
        self._module = _import_file(Path(spec["function"]), file, f"{key}.function")
        try:
            self._items = list(self._module.items())
        except Exception as error:
            wrong = f"{spec['function']}: items() failed with {one_line(error)}"
            raise BadInput(Fault(file, f"{key}.function", wrong, "mend items()")) from error
        self.hashes = [item_hash(item) for item in self._items]

    def prepare(self, model: Any, tokenizer: Any, ordinals: Sequence[int]) -> None:
        self._model, self._tokenizer = model, tokenizer

    def score(self, ordinals: Sequence[int]) -> np.ndarray:
        items = [self._items[i] for i in ordinals]
        scores = np.asarray(self._module.score(self._model, self._tokenizer, items), np.float32)
        if scores.shape != (len(items),):
            raise ValueError(f"score() gave shape {scores.shape} for {len(items)} items")
        return scores


def _import_file(path: Path, file: str, key: str) -> ModuleType:
    if not path.is_file():
        raise BadInput(Fault(file, key, f"there is no file '{path}'", "write a path to a .py file"))
    spec = importlib.util.spec_from_file_location(f"evomerge_fitness_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        wrong = f"{path} cannot be imported: {one_line(error)}"
        raise BadInput(Fault(file, key, wrong, "mend the module")) from error
    if missing := [n for n in ("items", "score") if not callable(getattr(module, n, None))]:
        wrong = f"{path} has no function {missing[0]}"
        mend = "define items() and score(model, tokenizer, items)"
        raise BadInput(Fault(file, key, wrong, mend))
    return module


def item_hash(item: Any) -> str:
    """Return 16 hex digits that change with an item's content."""
    text = json.dumps(item, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_items(
    fitness: Fitness, items: int | None, heldout: float | Mapping[str, Any], seed: int
) -> Split:
    """Choose a fitness's items and hold a share of them out.

    Args:
        fitness: an opened fitness.
        items: how many to take before the split; None for all.
        heldout: a share in [0, 1), drawn with `seed`; {"last": share}, in order; or
            {"split": "test"}, the task's own (then `items` limits both sides).
        seed: the campaign's. Tasks of equal size hold the same ordinals out, so parallel
            tasks (one question in several languages) do not leak into each other.

    Returns:
        The split; either side may be empty.
    """
    rng = np.random.default_rng(seed)
    size = len(fitness.hashes)
    if isinstance(heldout, Mapping) and "split" in heldout:
        sides = np.arange(fitness.test_from), np.arange(fitness.test_from, size)
        taken = [rng.permutation(side)[:items] for side in sides]
        return Split(*(tuple(sorted(map(int, side))) for side in taken))
    if isinstance(heldout, Mapping):
        chosen, share = np.arange(size)[:items], heldout["last"]
    else:
        chosen, share = rng.permutation(size)[:items], heldout
    cut = len(chosen) - round(share * len(chosen))
    return Split(*(tuple(sorted(map(int, side))) for side in (chosen[:cut], chosen[cut:])))
